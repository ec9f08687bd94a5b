"""Checkpoints: whole or not at all, the job's own, and never code."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from kt_study.errors import DiskError
from worker.training.checkpoints import MAGIC, load_checkpoint, save_checkpoint

JOB, OTHER = "a" * 32, "b" * 32
CPU = torch.device("cpu")
STATE: dict[str, Any] = {
    "model": {"w": torch.arange(3.0)},
    "epoch": 2,
    "curve": [{"acc": None, "loss": 0.5}],
    "slow": None,
}


def saved(tmp_path: Path) -> Path:
    path = tmp_path / "job" / "checkpoint.pt"
    save_checkpoint(path, JOB, STATE)
    return path


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    state = load_checkpoint(saved(tmp_path), JOB, CPU)
    assert state is not None
    assert torch.equal(state["model"]["w"], STATE["model"]["w"])
    assert {name: state[name] for name in ("epoch", "curve", "slow")} == {
        name: STATE[name] for name in ("epoch", "curve", "slow")
    }


def test_none_where_there_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "none.pt", JOB, CPU) is None


def test_any_torn_or_altered_file_is_discarded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = saved(tmp_path).read_bytes()
    broken = [whole[:cut] for cut in (0, 5, 20, 60, len(whole) // 2, len(whole) - 1)]
    for place in (0, 17, 40, 100, len(whole) - 1):
        broken.append(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    for content in [*broken, whole + b"x"]:
        path = tmp_path / "c.pt"
        path.write_bytes(content)
        assert load_checkpoint(path, JOB, CPU) is None
        assert not path.exists()
    assert "incomplete or altered; starting again" in caplog.text


def test_another_jobs_checkpoint_is_discarded(tmp_path: Path) -> None:
    assert load_checkpoint(saved(tmp_path), OTHER, CPU) is None


class _Payload:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("code of a checkpoint was run",))


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    for payload in (pickle.dumps(_Payload()), _torch_saved(_Payload())):
        body = JOB.encode() + payload
        path = tmp_path / "c.pt"
        path.write_bytes(MAGIC + hashlib.blake2b(body, digest_size=16).digest() + body)
        assert load_checkpoint(path, JOB, CPU) is None


def _torch_saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskError, match="No space left"):
        save_checkpoint(path, JOB, {"epoch": 3})
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]
