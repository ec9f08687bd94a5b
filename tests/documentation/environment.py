"""Where blocks of the documentation run: as written, by bash, in a folder of their own, with kt-study on the PATH.

What differs from a user's machine is here and nowhere else: `kt-study init` writes the demo's study, which is then made
smaller, the checkout is a copy, and what a development cluster cannot give is substituted.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.documentation.blocks import ROOT, Block
from tests.photos import photos_dir

SMALLER = {
    'universe = "digits-zoo"': 'universe = "digits-zoo"\ninclude = ["digits/resnet_b", "digits/mixer_a"]',
    "pairs = 132": "pairs = 2",
    "models = 12": "models = 2",
    "pairs = 24": "pairs = 1",
    "epochs = 10": "epochs = 1",
}
"""Of the study file that `kt-study init` writes: two models instead of twelve, one epoch."""

_PRELUDE = f"""
kt-study() {{
    command kt-study "$@" || return
    if [[ $* == init ]]; then {sys.executable} -m tests.documentation.environment; fi
}}
"""


def shrink(study: Path) -> None:
    """Make the study that `init` wrote smaller; every change must hit."""
    text = study.read_text(encoding="utf-8")
    for old, new in SMALLER.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    study.write_text(text, encoding="utf-8")


def copy_checkout(target: Path) -> Path:
    """The checkout as it stands, without what git ignores. Returns `target`."""
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").split()]
    return shutil.copytree(ROOT, target, symlinks=True, ignore=shutil.ignore_patterns(".git", *ignored))


def imagenet(folder: Path) -> Path:
    """An ImageNet folder with train/ and val/, both with the 200 photographs, each in the folder of its class."""
    folder.mkdir()
    for split in ("train", "val"):
        (folder / split).symlink_to(photos_dir(), target_is_directory=True)
    return folder


def run(
    block: Block,
    folder: Path,
    *,
    substitutions: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    codes: tuple[int, ...] = (0,),
    timeout: float = 600,
) -> str:
    """Run a block in `folder`, or write its file there. Returns what it wrote; the test fails if the block does."""
    text = block.text
    for old, new in (substitutions or {}).items():
        text = text.replace(old, new)
    if block.verb == "write":
        target = folder / block.rest.split(" ")[1]
        target.write_text(text, encoding="utf-8")
        return ""
    program = [sys.executable, "-c", text]
    if block.language in ("console", "bash"):
        program = ["bash", "-euo", "pipefail", "-c", _PRELUDE + text]
    done = subprocess.run(
        program,
        cwd=folder,
        env=_environment(folder) | dict(environment or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode in codes, f"{block.where} ended with {done.returncode}:\n{text}\n{done.stdout}"
    return done.stdout


def _environment(folder: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    home = folder.parent / f"{folder.name}-home"
    home.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KT_STUDY_")}
    return {**kept, "PATH": path, "HOME": str(home), "PYTHONPATH": str(ROOT)}


if __name__ == "__main__":
    shrink(Path("study.toml"))
