"""`make faults`: break a small study in every way we know, on SQLite and on Slurm with PostgreSQL, until the time is up.

    make faults SECONDS=3600 SEED=7     an hour of rounds
    make faults SEED=7 ROUND=12         one of them again
    make faults KINDS="node down"       some kinds of faults only (with commas; all: python -m tests.faults --list)

Ends with 0 when every promise was kept, 1 after the first that was not, 3 where this machine cannot do it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.faults import disk
from tests.faults.catalogue import FAULTS, SLURM, SQLITE
from tests.faults.run import Ground, Tally, backend_of, drawn, on_a_cluster_of_its_own, play, unbroken
from tests.faults.study import BrokenPromise, Left


def main() -> int:
    """The run that the command line asks for. Returns the exit code."""
    given = _arguments()
    if given.list:
        print("\n".join(FAULTS))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    seed = secrets.randbelow(10_000) if given.seed is None else given.seed
    root = Path(tempfile.mkdtemp(prefix="kt-faults-"))
    root.chmod(0o755)  # PostgreSQL runs as another account
    tally = Tally()
    _say(f"seed {seed}, folder {root}")
    kept = False
    try:
        kept = _rounds(given, seed, root, tally)
    except OSError as error:
        print(f"faults: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    finally:
        print(tally.table(), flush=True)
        if not kept:
            shutil.rmtree(root, ignore_errors=True)
    return int(kept)


def _rounds(given: argparse.Namespace, seed: int, root: Path, tally: Tally) -> bool:
    """Play rounds until the time is up. Returns whether a promise was broken, and a folder kept."""
    kinds = _kinds(given.kinds, tally)
    numbers = [given.round] if given.round else range(1, 1_000_000)
    broken = False
    with contextlib.ExitStack() as stack:
        grounds: dict[str, Ground] = {}
        references: dict[str, Left] = {}
        limit = time.monotonic() + given.seconds
        for number in numbers:
            if time.monotonic() > limit and not given.round:
                break
            backend = backend_of(number)
            faults = drawn(seed, number, kinds)
            if not faults or given.backend not in (None, backend):
                continue
            if backend not in grounds:
                mounts = not any(FAULTS[name].mounts for name in tally.skipped)
                ground = Ground(root=root, mounts=mounts)
                if backend == SLURM:
                    ground = stack.enter_context(on_a_cluster_of_its_own(root, mounts=mounts))
                grounds[backend] = ground
                _say(f"the unbroken run, {backend}")
                try:
                    references[backend] = unbroken(grounds[backend], backend)
                except BrokenPromise as promise:
                    print(f"{promise}\nkept in {root}/reference-{backend}", flush=True)
                    return True
            _say(f"round {number}, {backend}: {', '.join(fault.name for fault in faults)}")
            try:
                play(grounds[backend], number, faults, references[backend], seed=seed, tally=tally, say=_say)
            except BrokenPromise as promise:
                broken = True
                print(f"{promise}\nround {number} of seed {seed} is kept in {root}/round-{number}", flush=True)
                again = f" KINDS={given.kinds!r}" if given.kinds else ""
                print(f"again with: make faults SEED={seed} ROUND={number}{again}", flush=True)
                if not given.keep_going:
                    break
    return broken


def _kinds(text: str, tally: Tally) -> list[str]:
    """The kinds to draw from. What this machine cannot do is left out, or in CI is an error."""
    chosen = [name.strip() for name in text.split(",") if name.strip()] or list(FAULTS)
    if unknown := [name for name in chosen if name not in FAULTS]:
        sys.exit(f"faults: no kind {unknown[0]!r}; there are {', '.join(FAULTS)}")
    if trouble := disk.trouble():
        if os.environ.get("KT_STUDY_REQUIRE"):
            raise OSError(f"{trouble}, and KT_STUDY_REQUIRE allows no kind to be skipped")
        tally.skipped.update({name: f"skipped: {trouble}" for name, fault in FAULTS.items() if fault.mounts})
    return [name for name in chosen if name not in tally.skipped]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600.0, help="no round begins after that many")
    parser.add_argument("--seed", type=int, help="of all draws; printed where it is not given")
    parser.add_argument("--round", type=int, help="only this one")
    parser.add_argument("--kinds", default="", help="only these kinds of faults, with commas between them")
    parser.add_argument("--backend", choices=(SQLITE, SLURM), help="only this one")
    parser.add_argument("--keep-going", action="store_true", help="after a broken promise too")
    parser.add_argument("--list", action="store_true", help="print the kinds of faults")
    return parser.parse_args()


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
