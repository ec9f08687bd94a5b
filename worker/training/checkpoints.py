"""Checkpoints of an interrupted run: one file, checksummed, bound to its job, read without unpickling code.

16 bytes  magic
16 bytes  blake2b-128 of what follows
32 bytes  digest of the job, ASCII hex
the rest  torch.save of nested dicts and lists of tensors, numbers, strings and None
"""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
from pathlib import Path
from typing import Any

import torch

from kt_study.files import atomic_write

log = logging.getLogger("kt-study.worker")

MAGIC = b"kt-study ckpt 1\n"
_SUM, _JOB = 16, 32


def save_checkpoint(path: Path, job: str, state: dict[str, Any]) -> None:
    """Replace the checkpoint at `path` in one step.

    Args:
        job: digest of the job that the state belongs to, 32 hex digits.
        state: nested dicts and lists of tensors, numbers, strings, booleans and None.

    Raises:
        DiskError: no space or no permission; the old checkpoint is still there.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    body = job.encode().ljust(_JOB)[:_JOB] + buffer.getbuffer()
    with atomic_write(path) as scratch, scratch.open("wb") as stream:
        stream.write(MAGIC + hashlib.blake2b(body, digest_size=_SUM).digest())
        stream.write(body)


def load_checkpoint(path: Path, job: str, device: torch.device) -> dict[str, Any] | None:
    """The state saved at `path`, its tensors on `device`; None if there is no valid one.

    An incomplete or altered file, or one of another job, is deleted with a warning: the run starts from the beginning.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    head = len(MAGIC) + _SUM
    body = memoryview(content)[head:]
    if content[: len(MAGIC)] != MAGIC or hashlib.blake2b(body, digest_size=_SUM).digest() != content[len(MAGIC) : head]:
        _discard(path, "is incomplete or altered")
        return None
    if bytes(body[:_JOB]) != job.encode().ljust(_JOB)[:_JOB]:
        _discard(path, "belongs to another job")
        return None
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(body[_JOB:]), map_location=device, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        _discard(path, f"cannot be read by this torch ({error})")
        return None
    return state


def _discard(path: Path, why: str) -> None:
    log.warning("checkpoint %s %s; starting again", path, why)
    path.unlink(missing_ok=True)
