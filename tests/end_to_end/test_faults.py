"""What goes wrong in the middle: a launch that is killed, an image that cannot be read, data that is not there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli import kt_study, refused, succeeds
from tests.databases import Databases, ask
from tests.end_to_end.small import draw_images, write_study


@pytest.fixture
def small(tmp_path: Path, databases: Databases) -> Path:
    """A study folder with images, not planned yet."""
    draw_images(tmp_path / "train", per_class=20, seed=0)
    draw_images(tmp_path / "val", per_class=20, seed=1)
    write_study(tmp_path)
    databases.settle(tmp_path)
    return tmp_path


def test_a_killed_launch_is_finished_by_the_next(small: Path) -> None:
    succeeds(small, "plan")
    launch = _start(small, "launch", "--workers", "2", "--wait", "--lease", "10")
    _until(lambda: _done(small) >= 2, seconds=180)
    workers = _workers(small)
    for pid in [launch.pid, *workers]:
        os.kill(pid, signal.SIGKILL)
    launch.wait()
    assert workers
    assert _done(small) < _total(small)

    said = succeeds(small, "launch", "--workers", "2", "--wait", "--lease", "10", timeout=400)

    assert "complete" in said
    assert _done(small) == _total(small) == 6 + 6 + 6  # passes, pairs, transfers
    for table in ("transfers", "complementarity"):
        assert ask(small, f"SELECT count(*), count(DISTINCT job_id) FROM {table}") == [(6, 6)]


def test_an_unreadable_image_fails_its_jobs_and_no_other(small: Path) -> None:
    broken = small / "train" / "pear" / "007.png"
    broken.write_bytes(broken.read_bytes()[:100])
    succeeds(small, "plan")

    done = kt_study(small, "launch", "--workers", "1", "--wait", timeout=400)

    assert done.returncode == 1, done.stderr
    seen = json.loads(kt_study(small, "status", "--json").stdout)
    assert seen["counts"]["complementarity"] == {"done": 6}
    assert "done" not in seen["counts"]["transfer"]
    (failure,) = seen["failures"]
    assert str(Path("pear") / "007.png") in failure["message"]
    assert failure["count"] == 3  # the training pass of each model, shared by those it teaches and learns from


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('train = "train"', 'train = "trian"'), "trian"),
        (('timm = "test_resnet"', 'timm = "tset_resnet"'), "test_resnet"),
        (("pairs = 6", "pairs = 7"), "6"),
        (('objectives = ["kl_dp"]', 'objectives = ["kl_pd"]'), "did you mean 'kl_dp'"),
        (("random_weights = true", 'checkpoint = "gone.safetensors"'), "gone.safetensors"),
        (("[transfer]", "[transfers]"), "did you mean 'transfer'?"),
        (("epochs = 2", 'epochs = "two"'), "[transfer] epochs"),
        (('kind = "imagefolder"', 'kind = "imagefloder"'), "imagefolder"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(
    small: Path, databases: Databases, change: tuple[str, str], said: str
) -> None:
    study = small / "study.toml"
    study.write_text(study.read_text().replace(*change))
    assert said in refused(small, "plan")
    assert databases.is_empty(small)


def test_a_checkpoint_that_does_not_fit_is_refused_and_one_swapped_later_fails_its_jobs_alone(
    small: Path, databases: Databases
) -> None:
    import timm
    from safetensors.torch import save_file

    def save(architecture: str) -> None:
        save_file(timm.create_model(architecture, num_classes=3).state_dict(), small / "own.safetensors")

    study = small / "study.toml"
    study.write_text(study.read_text().replace("random_weights = true", 'checkpoint = "own.safetensors"', 1))
    save("test_vit")
    line = refused(small, "plan")
    for part in (
        "'tiny0'",
        "own.safetensors does not fit",
        "missing (conv1",
        "unexpected (blocks",
        "correct `checkpoint`",
    ):
        assert part in line
    assert databases.is_empty(small)

    save("test_resnet")
    succeeds(small, "plan")
    save("test_vit")
    assert kt_study(small, "launch", "--workers", "1", "--wait", timeout=400).returncode == 1

    seen = json.loads(kt_study(small, "status", "--json").stdout)
    assert any(
        "own.safetensors" in failure["message"] and "tiny0" in failure["message"] for failure in seen["failures"]
    )
    assert seen["counts"]["logits"]["done"] == 4  # the other two models' passes over both splits


def _start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "kt_study", *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _until(condition, *, seconds: float) -> None:  # type: ignore[no-untyped-def]
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it did not come to that"
        time.sleep(0.1)


def _done(folder: Path) -> int:
    return int(ask(folder, "SELECT count(*) FROM jobs WHERE state = 'done'")[0][0])


def _total(folder: Path) -> int:
    return int(ask(folder, "SELECT count(*) FROM jobs")[0][0])


def _workers(folder: Path) -> list[int]:
    return [pid for (pid,) in ask(folder, "SELECT pid FROM workers WHERE ended_at IS NULL")]
