"""Errors grouped by cause, and told apart by whether a retry may help."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from kt_study.errors import DataError, DiskError
from kt_study.failures import describe, group, is_transient, plain_cause
from kt_study.store import JobStore
from tests.store.making import claim_one, job, plan


def _raise(error: BaseException) -> None:
    raise error


def caught(error: BaseException) -> BaseException:
    try:
        _raise(error)
    except BaseException as found:
        return found
    raise AssertionError("nothing was raised")


def test_paths_numbers_and_names_do_not_matter() -> None:
    one = caught(ValueError("cannot decode /scratch/7/a.jpg at byte 12 of 'n01440764' (0x7f3a)"))
    other = caught(ValueError("cannot decode C:\\data\\b.png at byte 99812 of 'n99' (0xdeadbeef)"))
    assert group(one) == group(other)
    assert len(group(one)) == 12


def test_class_message_and_place_do_matter() -> None:
    base = caught(ValueError("shapes differ"))
    assert group(base) != group(caught(TypeError("shapes differ")))
    assert group(base) != group(caught(ValueError("dtypes differ")))

    def elsewhere() -> None:
        raise ValueError("shapes differ")

    try:
        elsewhere()
    except ValueError as error:
        assert group(base) != group(error)


def test_the_way_through_a_library_does_not_matter() -> None:
    """timm has a function for each architecture, between ours and the one that fails for all of them."""

    def through(between: str) -> str:
        library: dict[str, Callable[[], None]] = {}
        exec(f"def fail():\n    raise OSError('offline')\ndef {between}():\n    fail()", library)
        try:
            library[between]()
        except OSError as error:
            return group(error)

    assert through("resnet18") == through("convnext_tiny")


def test_the_cause_behind_an_error_matters() -> None:
    def wrapped(reason: str) -> str:
        try:
            try:
                raise LookupError(reason)
            except LookupError as error:
                raise RuntimeError("job failed") from error
        except RuntimeError as error:
            return group(error)

    assert wrapped("no row 7") == wrapped("no row 8")
    assert wrapped("no row 7") != wrapped("no such column")


@pytest.mark.parametrize(
    ("message", "plain"),
    [
        ("expected 3 channels, got 4", "expected # channels, got #"),
        ("loss is nan at step 1e-5", "loss is nan at step #"),
        ("/a/b.c: no space left", "<path>: no space left"),
        ("two\nlines", "two"),
        ("model 'a': timm's 'b.c_in1k' cannot be had", "model <name>: timm's <name> cannot be had"),
        ("", ""),
    ],
)
def test_plain_causes(message: str, plain: str) -> None:
    assert plain_cause(message) == plain


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (OSError(errno.ENOSPC, "no space"), True),
        (OSError(errno.ESTALE, "stale file handle"), True),
        (FileNotFoundError(errno.ENOENT, "none"), False),
        (PermissionError(errno.EACCES, "denied"), False),
        (ConnectionResetError("peer"), True),
        (DiskError("full"), True),
        (DataError("no such class"), False),
        (OutOfMemoryError("tried to allocate"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed"), True),
        (MemoryError(), True),
        (ValueError("bad"), False),
    ],
)
def test_what_a_retry_may_fix(error: Exception, passes: bool) -> None:
    assert is_transient(error) is passes


def test_describe_keeps_what_a_user_needs() -> None:
    failure = describe(caught(ValueError("first line\nsecond line")))
    assert (failure.error, failure.message, failure.transient) == ("ValueError", "first line", False)
    assert Path(__file__).name in failure.traceback and "second line" in failure.traceback
    assert describe(caught(KeyboardInterrupt())).message == "KeyboardInterrupt"


def test_a_message_of_any_characters_can_be_stored(store: JobStore) -> None:
    """Of the user's own code, or with the name of a file that is not UTF-8."""
    plan(store, job(1))
    claim = claim_one(store)
    store.fail(claim, describe(caught(ValueError("caf\udce9 and \0"))))
    (attempt,) = store.job(claim.job_id).attempts
    assert attempt.message == r"caf\udce9 and \x00"
