"""collect against `pandas.read_sql` + `to_parquet`: 1,000,000 rows of the widest measured table, one after the other.

    python -m benchmarks.bench_collect [--rows 1000000]

Each way runs in a process of its own, so that its peak memory is its own, on the same SQLite database, which is made
first from invented rows (one study, one `complementarity` row a job). The targets are 15 s and 500 MB on 2 cores. The
`jobs` and `pairs` tables, as many rows again each, are timed apart: pandas is not asked for them.
"""

from __future__ import annotations

import argparse
import json
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import versions, write_result
from kt_study.schema import COMPLEMENTARITY
from kt_study.store import open_store

ROWS = 1_000_000
TARGET_S = 15.0
TARGET_MB = 500.0


def make_database(path: Path, rows: int) -> None:
    """A finished study of `rows` pairs, made by SQL; its numbers mean nothing."""
    open_store(f"sqlite:///{path}", create=True).add_study("bench", {})
    values = {
        "text": "'model_' || (i % 301)",
        "int": "i % 50000",
        "float": "(random() & 1048575) / 10485.75",
    }
    columns = ", ".join(column.name for column in COMPLEMENTARITY.columns)
    drawn = ", ".join(values[column.type] for column in COMPLEMENTARITY.columns)
    spec = """'{"dataset":"d","teacher":"t' || i || '","student":"s"}'"""
    numbers = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) "
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute(
            f"{numbers} INSERT INTO jobs(id, kind, digest, spec, state, created_at, changed_at) "
            f"SELECT i, 'complementarity', 'digest' || i, {spec}, 'done', 0, 0 FROM n"
        )
        connection.execute(f"{numbers} INSERT INTO study_jobs SELECT 1, i FROM n")
        connection.execute(f"{numbers} INSERT INTO complementarity(job_id, {columns}) SELECT i, {drawn} FROM n")


def by_collect(database: Path, out: Path) -> dict[str, float]:
    """Seconds to the last row of `complementarity`, and to the end."""
    from orchestrator.results.collect import collect

    start = time.perf_counter()
    last: dict[str, float] = {}
    counts: dict[str, int] = {}

    def note(table: str, rows: int) -> None:
        last[table] = time.perf_counter() - start
        counts[table] = counts.get(table, 0) + rows

    collect(f"sqlite:///{database}", out, progress=note)
    return {"seconds": last["complementarity"], "rows": counts["complementarity"],
            "seconds_with_jobs_and_pairs": time.perf_counter() - start, "all_rows": sum(counts.values())}  # fmt: skip


def by_pandas(database: Path, out: Path) -> dict[str, float]:
    """Seconds of the obvious way."""
    import pandas as pd
    import sqlalchemy as sa

    start = time.perf_counter()
    columns = ", ".join(f"c.{column.name}" for column in COMPLEMENTARITY.columns)
    query = (
        f"SELECT s.name AS study, c.job_id, {columns} FROM complementarity c JOIN study_jobs l ON l.job_id = c.job_id "
        "JOIN studies s ON s.id = l.study_id ORDER BY c.job_id"
    )
    frame = pd.read_sql(query, sa.create_engine(f"sqlite:///{database}"))
    frame.to_parquet(out, compression="zstd")
    return {"seconds": time.perf_counter() - start, "rows": len(frame)}


def measured(way: str, database: Path, out: Path) -> dict[str, float]:
    """Run one way in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.bench_collect", "--way", way, str(database), str(out)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def compare(rows: int, folder: Path) -> dict[str, object]:
    """Both ways, and the ratios."""
    database = folder / "kt-study.db"
    make_database(database, rows)
    ours = measured("collect", database, folder / "results")
    theirs = measured("pandas", database, folder / "pandas.parquet")
    return {
        "rows": rows,
        "collect": ours,
        "pandas": theirs,
        "time_ratio": round(theirs["seconds"] / ours["seconds"], 2),
        "memory_ratio": round(theirs["peak_mb"] / ours["peak_mb"], 2),
        "targets_met": ours["seconds"] < TARGET_S * rows / ROWS and ours["peak_mb"] < TARGET_MB,
    }


def main() -> None:
    """Print the figures, and keep those of a whole run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--way", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        _one_way(*arguments.way)
        return
    with tempfile.TemporaryDirectory() as folder:
        figures = compare(arguments.rows, Path(folder))
    print(json.dumps(figures, indent=2))
    if arguments.rows == ROWS:
        print(write_result("collect", figures | {"versions": versions("pyarrow", "pandas", "sqlalchemy")}))


def _one_way(way: str, database: str, out: str) -> None:
    found = {"collect": by_collect, "pandas": by_pandas}[way](Path(database), Path(out))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1024)
    print(json.dumps({name: round(value, 2) for name, value in found.items()} | {"peak_mb": round(peak, 1)}))


if __name__ == "__main__":
    main()
