"""The documentation's blocks for a cluster, run as written on the development cluster, with a database of their own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kt_study.errors import DatabaseError
from orchestrator import postgres_server
from tests.cli import kt_study
from tests.documentation.blocks import Block, blocks, of
from tests.documentation.surroundings import run
from tests.require import require
from tests.slurm.dev_cluster import DevCluster

FAKE_GPUS = {
    "--workers 16": "--workers 1 --device cpu",
    "--partition gpu --dry-run": "--partition gpu --dry-run --device cpu",
}
"""The cluster's GPUs are links to /dev/null, and its three nodes are one machine."""

PAGES = sorted({block.page for block in blocks() if block.verb == "run" and block.rest == "slurm"})


@pytest.fixture
def home() -> Iterator[Path]:
    """A user's home, where `kt-study db` puts its server; open above, since root's server runs as another account."""
    try:
        postgres_server.binaries()
    except DatabaseError as error:
        require("postgres", False, str(error))
    made = Path(tempfile.mkdtemp(prefix="kt-study-home-"))
    made.chmod(0o755)
    yield made
    kt_study(made, "db", "stop", environment={"HOME": str(made)})
    shutil.rmtree(made, ignore_errors=True)


def test_there_are_such_pages() -> None:
    assert {"README.md", "docs/quickstart.md"} <= set(PAGES)
    for old in FAKE_GPUS:
        assert any(old in block.text for page in PAGES for block in of(page, "slurm"))


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.timeout(900)
def test_a_page_from_its_first_block_to_its_last(page: str, cluster: DevCluster, home: Path, tmp_path: Path) -> None:
    cluster.wait_until_idle()
    folder = tmp_path / "study"
    folder.mkdir()
    environment = {"SLURM_CONF": str(cluster.slurm_conf), "HOME": str(home)}
    said = run(_whole(page), folder, substitutions=FAKE_GPUS, environment=environment)
    assert "1 worker in Slurm job " in said
    assert (folder / "results" / "transfers").is_dir()


def _whole(page: str) -> Block:
    """The page's blocks as one script, since they share a shell; a page that starts at `plan` gets a study file."""
    parts = of(page, "slurm")
    script = "".join(block.text for block in parts)
    if "kt-study init" not in script:
        script = f"kt-study init\n{script}"
    return Block(page=page, line=parts[0].line, language="console", verb="run", rest="slurm", text=script)
