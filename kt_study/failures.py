"""Errors as stored in the job table: grouped by cause, and classified by whether a retry may succeed."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import traceback
from collections.abc import Iterator
from types import TracebackType

from kt_study.errors import EnvironmentUnusable, SchemaMismatch, UsageError
from kt_study.printable import not_utf8
from kt_study.records import Failure

GROUP_SHOWN = 8  # characters of a group that are shown, and enough to select it
WORKER_DIED = "WorkerDied"  # error and group of an attempt whose worker died

# Transient: a full or stale file system, the network, a device whose memory another process used.
_TRANSIENT_ERRNO = frozenset(
    {
        errno.EIO, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOMEM, errno.ESTALE,
        errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.EREMOTEIO, errno.EHOSTUNREACH, errno.ENETUNREACH,
    }
)  # fmt: skip
_TRANSIENT_NAMES = frozenset(
    {"OutOfMemoryError", "AcceleratorError", "DistBackendError"}
)  # torch's, which is not imported here
_TRANSIENT_PHRASES = ("CUDA error", "cuDNN error", "CUBLAS", "NCCL", "DataLoader worker", "out of memory")

# Messages about a full disk without an errno: of safetensors and the hub's client, SQLite, torch.save, np.save.
_DISK_FULL_ERRNO = frozenset({errno.ENOSPC, errno.EDQUOT})
_DISK_FULL_MESSAGE = re.compile(
    r"No space left on device|Disk quota exceeded|database or disk is full|PytorchStreamWriter failed|"
    r"unexpected pos \d+ vs \d+|^\d+ requested and \d+ written$"
)

_ADVICE = {
    errno.EACCES: "ask its owner for permission to read it and to enter the folders above it",
    errno.EPERM: "ask its owner for permission",
    errno.ELOOP: "it is a link that leads back to itself: remove the link",
    errno.ENAMETOOLONG: "shorten the name or the path",
    errno.EIO: "the disk may be failing",
    errno.ESTALE: "the file server has lost it: try again",
}
_PATHLIB = ("Symlink loop", "Could not determine home directory")

_NUMBERS = re.compile(r"0x[0-9a-fA-F]+|\b[0-9a-f]{12,}\b|[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_PATHS = re.compile(r"(?:[A-Za-z]:)?(?:[\w.~+-]*[/\\])+[\w.+-]*")
_OURS = ("kt_study.", "worker.", "orchestrator.")
_QUOTED = re.compile(r"(?<!\w)'[^'\n]*'|\"[^\"\n]*\"")


def unusable(error: BaseException) -> str:
    """One line for a file that the system refused: which, why and what to do. Empty for an error that is none of these.

    It covers what any command may meet at any of its files, so that no command needs a guard of its own.
    """
    if isinstance(error, UnicodeEncodeError):  # only of names that the file system brought
        before, after = error.object[: error.start], error.object[error.start :]
        return not_utf8(re.split(r"[\"'\n\x1f]", before)[-1] + re.split(r"[\"'\n\x1f]", after)[0])
    if isinstance(error, RuntimeError) and str(error).startswith(_PATHLIB):  # which is how Python 3.11 and 3.12 say it
        return f"{str(error).rstrip('.')}; correct the path, or remove the link"
    if not isinstance(error, OSError) or error.errno is None:
        return ""
    if not isinstance(error.filename, str | bytes | os.PathLike):
        if _has_no_working_folder():
            return "the working folder has been deleted; change to one that exists"
        return f"{error.strerror}; {_ADVICE[error.errno]}" if error.errno in _ADVICE else ""  # as pyarrow's say it
    advice = _ADVICE.get(error.errno, "correct the path")
    return f"{os.fsdecode(error.filename)}: {error.strerror}; {advice}"


def _has_no_working_folder() -> bool:
    try:
        os.getcwd()  # noqa: PTH109 -- asked for by `Path` too
    except FileNotFoundError:
        return True
    return False


def describe(error: BaseException) -> Failure:
    """The failure record of an exception: its class, first line, traceback, group, and whether trying again may help."""
    lines = str(error).strip().splitlines()
    return Failure(
        error=type(error).__name__,
        message=_storable(lines[0].strip() if lines else type(error).__name__),
        traceback=_storable("".join(traceback.format_exception(error))),
        group=group(error),
        transient=is_transient(error),
    )


def _storable(text: str) -> str:
    """The text as databases take it: bytes that are not UTF-8, as in a file name, and NUL written as their codes."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def group(error: BaseException) -> str:
    """A digest of the cause, 12 hex digits: the classes, messages and places, without paths, quoted names, numbers and lines.

    Two workers that fail on different images at the same place in the code are in one group.
    """
    parts = []
    for cause in _chain(error):
        parts += [type(cause).__qualname__, plain_cause(str(cause)), *_places(cause.__traceback__)]
    return hashlib.blake2b("\n".join(parts).encode("utf-8", "backslashreplace"), digest_size=6).hexdigest()


def plain_cause(message: str) -> str:
    """The first line of a message with paths, quoted names and numbers taken out."""
    first = message.strip().splitlines()[0] if message.strip() else ""
    return _NUMBERS.sub("#", _PATHS.sub("<path>", _QUOTED.sub("<name>", first)))


def is_transient(error: BaseException) -> bool:
    """Whether a retry may succeed: never after wrong input, maybe after a fault of the node, disk or network."""
    if is_disk_full(error):  # also as a cause: a file that could not be written looks like wrong input to its reader
        return True
    if isinstance(error, UsageError | SchemaMismatch):
        return False
    if isinstance(error, EnvironmentUnusable | MemoryError | ConnectionError | TimeoutError | EOFError):
        return True
    if isinstance(error, OSError):
        return error.errno in _TRANSIENT_ERRNO
    if type(error).__name__ in _TRANSIENT_NAMES:
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in _TRANSIENT_PHRASES)


def is_disk_full(error: BaseException) -> bool:
    """Whether a full disk or quota caused the error, whichever library raised it."""
    return any(
        (isinstance(cause, OSError) and cause.errno in _DISK_FULL_ERRNO) or _DISK_FULL_MESSAGE.search(str(cause))
        for cause in _chain(error)
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, its cause, the cause of that, and so on."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def _places(trace: TracebackType | None) -> list[str]:
    """Module and function of each frame of ours and of the innermost, outermost first.

    The frames of libraries between them differ from model to model (timm has a function for each).
    """
    places = [
        f"{frame.f_globals.get('__name__', '')}:{frame.f_code.co_qualname}" for frame, _ in traceback.walk_tb(trace)
    ]
    return [place for place in places[:-1] if place.startswith(_OURS)] + places[-1:]
