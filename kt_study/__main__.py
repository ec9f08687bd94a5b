"""Starts the command line and the pilots, after a check that no other package hides `worker` and `orchestrator`.

This is the only module of kt_study that imports from the layers above.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kt_study.pilots import PilotOptions


def shadowing_file(package: str) -> Path | None:
    """The file that hides our `package` (orchestrator or worker), or None where Python finds ours."""
    home = Path(__file__).resolve().parent.parent
    spec = importlib.util.find_spec(package)
    if spec is None:
        return home / package
    places = [Path(place).resolve() for place in spec.submodule_search_locations or ()]
    if home / package in places[:1]:
        return None
    return Path(spec.origin) if spec.origin else (places[0] if places else home / package)


def refuse_shadows() -> None:
    """Exit with code 3 and one line when PYTHONPATH or the working folder hides one of our packages."""
    for package in ("orchestrator", "worker"):
        if file := shadowing_file(package):
            print(
                f"kt-study: {file} hides kt-study's own package {package!r}; "
                "rename it or take its folder out of PYTHONPATH",
                file=sys.stderr,
            )
            raise SystemExit(3)


def start_pilot(options: PilotOptions) -> str:
    """What submitit runs on a node: one pilot, until no work is left for it. Returns how it ended, one line.

    submitit's own files are private, before and after; those of the study are as the user's umask wants them.
    """
    refuse_shadows()
    from worker.pilot.entry import run_pilot

    os.environ.pop("PYTHONSAFEPATH", None)  # it was for the way here, not for the user's commands
    if options.umask is not None:
        os.umask(options.umask)
    try:
        return run_pilot(options)
    finally:
        os.umask(0o077)


def main() -> None:
    """The console script."""
    refuse_shadows()
    from orchestrator.cli import main as command_line

    command_line()


if __name__ == "__main__":
    if not sys.flags.safe_path:
        sys.path.append(sys.path.pop(0))  # the working folder, whose files `python -m` puts before what is installed
    main()
