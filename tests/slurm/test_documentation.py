"""The documentation's blocks for a cluster, run as written on the development cluster, with a database of their own, and
those for ImageNet, on a folder of photographs that is laid out like it."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kt_study.errors import DatabaseError
from orchestrator.cluster import postgres_server
from tests.cli import kt_study, succeeds
from tests.documentation.blocks import ROOT, Block, commands, of, pages_for
from tests.documentation.environment import imagenet, run
from tests.require import require
from tests.slurm.dev_cluster import DevCluster, dev_cluster
from tests.slurm.study import ClusterStudy

ONE_MACHINE = {"--workers 16": "--workers 1"}
"""The cluster's three nodes are one machine."""

INSTALLED = {" --install": ""}

PAGES = pages_for("slurm")

TRANSFERS = "1,995 runs; pairs per objective: 399 kl, 399 xe_kl, 399 xe_kl_mcl, 399 kl_dp, 399 kl_dp_unsupervised"
"""Of paper-10pct: Table 5's 20 students and 20 teachers, one model being both, and five objectives."""


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
    for old in ONE_MACHINE:
        assert any(old in block.text for page in PAGES for block in of(page, "slurm"))


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.timeout(900)
def test_a_page_from_its_first_block_to_its_last(page: str, cluster: DevCluster, home: Path, tmp_path: Path) -> None:
    cluster.wait_until_idle()
    folder = tmp_path / "study"
    folder.mkdir()
    environment = {"SLURM_CONF": str(cluster.slurm_conf), "HOME": str(home)}
    said = run(_whole(page), folder, substitutions=ONE_MACHINE, environment=environment)
    assert "the GPUs of partition 'gpu' are fake: workers compute on the CPU (--device cpu)" in said
    assert "1 worker in Slurm job " in said
    assert (folder / "results" / "transfers").is_dir()


@pytest.mark.usefixtures("cluster")  # which says whether this machine can have one
@pytest.mark.timeout(1000)
def test_the_first_run_on_a_development_cluster(home: Path, tmp_path: Path) -> None:
    (block,) = of("slurm/README.md", "dev-cluster")
    assert " --install" in block.text
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "slurm").symlink_to(ROOT / "slurm")
    place = Path(tempfile.mkdtemp(prefix="kt-dev-"))  # a short name, for its sockets
    environment = {"KT_STUDY_DEV_CLUSTER": str(place), "HOME": str(home)}
    try:
        said = run(block, checkout, substitutions=INSTALLED, environment=environment, timeout=900)
    finally:
        dev_cluster(place, "down")
        shutil.rmtree(place)
    assert "2 workers in Slurm job " in said
    assert "complete: " in said
    assert (home / "first-run" / "results" / "transfers").is_dir()
    assert said.rstrip().splitlines()[-1].startswith("stopped: ")


def _whole(page: str) -> Block:
    """The page's blocks as one script, since they share a shell; a page that starts at `plan` gets a study file."""
    parts = of(page, "slurm")
    script = "".join(block.text for block in parts)
    if "kt-study init" not in script:
        script = f"kt-study init\n{script}"
    return Block(page=page, line=parts[0].line, language="console", verb="run", rest="slurm", text=script)


def test_these_pages_want_imagenet() -> None:
    assert pages_for("imagenet") == ["docs/quickstart.md", "docs/reproducing-the-paper.md"]


def test_the_quickstart_makes_the_papers_study_of_an_imagenet_folder(tmp_path: Path) -> None:
    (block,) = of("docs/quickstart.md", "imagenet")
    images, folder = imagenet(tmp_path / "imagenet"), tmp_path / "scratch" / "paper"
    run(block, tmp_path, substitutions={"/data/imagenet": str(images), "/scratch/me/paper": str(folder)})
    said = succeeds(folder, "plan", "--dry-run")
    assert "complementarity: 466 ordered pairs of 301 models" in said
    assert "pairs per objective: 400 kl, 400 kl_dp" in said


@pytest.mark.timeout(600)
def test_the_papers_study_on_the_cluster_fails_for_its_weights_alone(study: ClusterStudy, tmp_path: Path) -> None:
    """timm's weights cannot be had offline, so every job that starts fails, and says so; nothing else goes wrong."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "no-weights")}
    environment = {"SLURM_CONF": study.environment["SLURM_CONF"], "KT_STUDY_DB": study.url, **offline}
    images = {"/data/imagenet": str(imagenet(tmp_path / "imagenet"))}
    (block,) = of("docs/reproducing-the-paper.md", "imagenet")
    study.folder.mkdir()
    said = run(block, study.folder, substitutions={**ONE_MACHINE, **images}, environment=environment)
    assert said.count(f"transfer: {TRANSFERS}\n") == 2
    assert "2,112 new jobs, 0 planned before; dry run: nothing written\n" in said
    assert "2,112 new jobs, 0 planned before; next: kt-study launch\n" in said
    assert "1 worker in Slurm job " in said

    study.wait_until(lambda store: store.workload("paper").failed >= 3, 200, "a failure of three jobs")
    seen = study.status()
    assert set(seen["counts"]["logits"]) <= {"ready", "running", "failed"}
    assert seen["counts"]["transfer"] == {"blocked": 1995}
    (cause,) = seen["failures"]
    assert cause["error"] == "WeightsError"
    assert re.fullmatch(r"model '(.*)': weights of timm's '\1' cannot be had \(.*\); fetch .*", cause["message"])
    assert commands(block)[-2:] == ["kt-study collect", "kt-study report"]
    assert re.search(r" 39 models, 1,995 pairs, 2,112 jobs, \d+ attempts; ", study.succeeds("collect"))
    study.succeeds("report")
    page = (study.folder / "report" / "index.html").read_text()
    assert "No results yet." not in page
    assert re.search(r"\d+ jobs? failed \(.*\)\. .* cannot be had", page) and "kt-study retry --error " in page

    assert "2,112 jobs cancelled" in study.succeeds("cancel")
    assert study.cluster is not None
    study.cluster.wait_until_idle()
    assert study.status()["counts"] == {"logits": {"cancelled": 117}, "transfer": {"cancelled": 1995}}
