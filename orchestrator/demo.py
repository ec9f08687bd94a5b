"""`make demo`: a study of the embedded digits zoo with the user's commands, and a table at the end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from kt_study.errors import EnvironmentUnusable, KtStudyError


def main(folder: Path) -> None:
    """Run the whole study in `folder`, or resume an unfinished run there.

    Raises:
        EnvironmentUnusable: a command failed; its message says why.
    """
    began = time.monotonic()
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    if not (folder / "study.toml").exists():
        _kt_study(folder, "init")
    _kt_study(folder, "plan")
    _kt_study(folder, "launch", "--workers", str(len(os.sched_getaffinity(0))), "--wait")
    _kt_study(folder, "collect")
    _kt_study(folder, "report")
    print(_summary(folder))
    print(f"\ndone in {time.monotonic() - began:.0f} s; next: docs/first-hour.md, with your own images and models")


def _kt_study(folder: Path, *arguments: str) -> None:
    print(f"\n$ kt-study {' '.join(arguments)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "kt_study", *arguments], cwd=folder, check=False)
    if done.returncode:
        raise EnvironmentUnusable(f"kt-study {arguments[0]} ended with {done.returncode} in {folder}")


def _summary(folder: Path) -> str:
    import kt_study

    results = kt_study.load(folder / "results")
    parts = [
        _objectives(results),
        _complementary(results),
        f"database  {folder / 'kt-study.db'}",
        f"parquet   {folder / 'results'}",
        f"report    {folder / 'report' / 'index.html'}",
    ]
    return "\n".join(parts)


def _objectives(results: kt_study.Results) -> str:  # type: ignore[name-defined]  # noqa: F821
    transfers = results.transfers
    by_pair = transfers.pivot_table(index=["student", "teacher"], columns="objective", values="delta_transf")
    beyond = by_pair.sub(by_pair["labels"], axis=0).mean() if "labels" in by_pair else {}
    head = f"{'objective':<22}{'transfers':>10}{'success':>10}{'mean delta':>12}{'beyond labels':>15}{'best':>8}{'worst':>8}"
    lines = ["", head]
    for objective, rows in transfers.groupby("objective"):
        delta = rows["delta_transf"]
        lines.append(
            f"{objective:<22}{len(rows):>10}{100 * (delta > 0).mean():>8.1f} %{delta.mean():>+12.2f}"
            f"{beyond.get(objective, float('nan')):>+15.2f}"
            f"{delta.max():>+8.2f}{delta.min():>+8.2f}"
        )
    lines.append("success: % of transfers that raised the student's accuracy; deltas in points")
    lines.append("beyond labels: mean difference to training the same student on the labels, without a teacher")
    return "\n".join(lines)


def _complementary(results: kt_study.Results, top: int = 5) -> str:  # type: ignore[name-defined]  # noqa: F821
    pairs = results.complementarity.nlargest(top, "rho_pos")
    lines = ["", f"most complementary of {len(results.complementarity)} ordered pairs", ""]
    lines.append(f"{'teacher':<20}{'student':<20}{'rho_pos':>9}{'rho_neg':>9}{'delta_acc':>11}")
    lines += [
        f"{pair.teacher:<20}{pair.student:<20}{pair.rho_pos:>7.2f} %{pair.rho_neg:>7.2f} %{pair.delta_acc:>+11.2f}"
        for pair in pairs.itertuples()
    ]
    return "\n".join([*lines, "rho_pos: teacher right and student wrong, % of validation samples", ""])


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo"))
    except KtStudyError as error:
        print(f"kt-study: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
