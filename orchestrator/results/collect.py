"""`kt-study collect`: the job database as parquet, one folder per table and study.

    results/transfers/<study>/part-00000.parquet      the columns of docs/schema.md, `study` among them

A part holds a fixed range of job numbers, with rows in the order of job and key. So its bytes depend only on its rows, however
often they were collected. A part is written again, to a temporary file that is renamed, if its mark (such as the number of
rows for its jobs in the database) differs from the one in `results/_collected.json`, which is written last. Result rows
appear with their job's state `done` and do not change. So a count detects rows of a transaction that committed late, and
rows of an old job that a new study shares; a highest row number alone would miss both.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec

from kt_study.errors import DiskError, UsageError
from kt_study.files import locked, require_ours, write_text, written_aside
from kt_study.hashing import digest
from kt_study.nearest import nearest
from kt_study.parquet import MODELS, PARQUET_TABLES, arrow_schema, parquet_columns
from kt_study.training import UNTRAINED
from orchestrator.results.rows import Mark, Source, Study, read_studies, sources
from orchestrator.results.streaming import Reader, reading
from orchestrator.terminal.outage import through_outages

if TYPE_CHECKING:
    import pyarrow as pa

Progress = Callable[[str, int], None]
"""Called with a table's name and the number of rows just written to it."""

GROUP_ROWS = 65_536
"""Rows in a row group: what a writer, and a reader of one column, holds at a time."""


class Part(msgspec.Struct, frozen=True):
    """What is known of a collected part: the mark it was read under, its rows, its size in bytes."""

    mark: Mark
    rows: int
    bytes: int


class CollectedStudy(msgspec.Struct):
    """What is collected of one study. `origin` tells databases apart; a table's key is its name and schema digest."""

    origin: float
    tables: dict[str, dict[int, Part]] = {}


class Manifest(msgspec.Struct):
    """`results/_collected.json`."""

    studies: dict[str, CollectedStudy]


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What `collect` found. `rows` counts what is now in the folder for the chosen studies, `written` what was new.

    Of the rows of `models`, `starts` are untrained ones that a training of the study starts from.
    """

    out: Path
    studies: tuple[str, ...]
    rows: dict[str, int]
    starts: int
    written: tuple[Path, ...]


def collect(
    store_url: str,
    out: Path,
    study: str | None = None,
    *,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Collected:
    """Bring the parquet under `out` up to date with the job database, in one consistent reading of it.

    Args:
        store_url: URL of the database; it is only read.
        out: the results folder.
        study: collect this study only; all of them when None.
        folder: the study folder, which holds the files of `all_pairs` jobs; the folder of `out` when None.
        progress: called for every part written.

    Raises:
        UsageError: no study of that name, or files of others lie where the parts would go.
        DatabaseError: the database cannot be opened. One that goes away afterwards is waited for.
        DiskError: `out` cannot be written, or another collect is writing to it.
    """
    with reading(store_url) as reader:
        _require_ours(out, _choose(read_studies(reader), study))  # before anything is made under `out`
    with _locked(out):
        return through_outages(lambda: _collect(store_url, out, study, folder or out.absolute().parent, progress))


def _collect(store_url: str, out: Path, study: str | None, folder: Path, progress: Progress | None) -> Collected:
    with reading(store_url) as reader:
        chosen = _choose(read_studies(reader), study)
        manifest = _read_manifest(out) or Manifest(studies={})
        written: list[Path] = []
        for one in chosen:
            known = _known(manifest, one)
            for source in sources(folder):
                written += _bring_up_to_date(reader, source, one, known, out, progress)
        write_text(out / "_collected.json", msgspec.json.format(msgspec.json.encode(manifest)).decode())
    names = tuple(one.name for one in chosen)
    return Collected(
        out=out, studies=names, rows=_count(manifest, names), starts=_count_starts(out, names), written=tuple(written)
    )


def study_folder(out: Path, table: str, study: str) -> Path:
    """The folder of one study's parts of one table. Readers skip names that begin with a dot or an underscore."""
    name = quote(study, safe="")
    return out / table / (f"%{ord(name[0]):02X}{name[1:]}" if name[0] in "._" else name)


def _choose(studies: list[Study], name: str | None) -> list[Study]:
    chosen = [study for study in studies if name in (None, study.name)]
    if not chosen and name is not None:
        there = ", ".join(study.name for study in studies) or "none"
        hint = nearest(name, [study.name for study in studies])
        raise UsageError(f"no study {name!r} in the database{hint} (there: {there})")
    return chosen


def _known(manifest: Manifest, study: Study) -> CollectedStudy:
    """What the manifest knows of the study, or nothing if that was the study of another database."""
    known = manifest.studies.get(study.name)
    if known is None or known.origin != study.created_at:
        known = manifest.studies[study.name] = CollectedStudy(study.created_at)
    return known


def _bring_up_to_date(
    reader: Reader, source: Source, study: Study, known: CollectedStudy, out: Path, progress: Progress | None
) -> list[Path]:
    """Write the parts of one table whose mark has moved, and remove those that are no more."""
    folder = study_folder(out, source.table, study.name)
    before = known.tables.get(_table_key(source.table), {})
    after: dict[int, Part] = {}
    written = []
    for number, mark in sorted(source.marks(reader, study).items()):
        path = folder / f"part-{number:05d}.parquet"
        part = before.get(number)
        if part is None or part.mark != mark or not _intact(path, part):
            part = _write_part(path, source, study, mark, source.batches(reader, study, number))
            written += [path] if part.rows else []
            if part.rows and progress:
                progress(source.table, part.rows)
        after[number] = part
    _remove_others(folder, {f"part-{number:05d}.parquet" for number, part in after.items() if part.rows})
    for key in [key for key in known.tables if key.startswith(f"{source.table}:")]:
        del known.tables[key]
    known.tables[_table_key(source.table)] = after
    return written


def _write_part(path: Path, source: Source, study: Study, mark: Mark, batches: Iterable[pa.RecordBatch]) -> Part:
    """Write a part in bounded memory; no file for no rows."""
    import pyarrow.parquet as pq

    rows = 0
    schema = arrow_schema(source.table)
    words = [column.name for column in parquet_columns(source.table) if column.type == "text"]
    with contextlib.ExitStack() as stack:
        writer = None
        for group in _row_groups(_with_study(study.name, schema, batches)):
            if writer is None:
                scratch = stack.enter_context(written_aside(path))
                writer = stack.enter_context(
                    pq.ParquetWriter(scratch, schema, compression="zstd", use_dictionary=words)
                )
            writer.write_table(group, row_group_size=GROUP_ROWS)
            rows += group.num_rows
    return Part(mark, rows, path.stat().st_size if rows else 0)


def _with_study(name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The study's name as first column. NaN becomes missing, as SQLite cannot store one and PostgreSQL can."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for batch in batches:
        columns = [
            pc.if_else(pc.is_nan(column), None, column) if pa.types.is_floating(column.type) else column
            for column in batch.columns
        ]
        yield pa.record_batch([pa.repeat(pa.scalar(name, pa.string()), batch.num_rows), *columns], schema=schema)


def _row_groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Tables of exactly GROUP_ROWS rows, the last one shorter, whatever the sizes of the batches."""
    import pyarrow as pa

    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        while rows + batch.num_rows >= GROUP_ROWS:
            head, batch = batch.slice(0, GROUP_ROWS - rows), batch.slice(GROUP_ROWS - rows)
            yield pa.Table.from_batches([*waiting, head]).combine_chunks()
            waiting, rows = [], 0
        if batch.num_rows:
            waiting.append(batch)
            rows += batch.num_rows
    if waiting:
        yield pa.Table.from_batches(waiting).combine_chunks()


def _intact(path: Path, part: Part) -> bool:
    return not part.rows or (path.is_file() and path.stat().st_size == part.bytes)


def _remove_others(folder: Path, wanted: set[str]) -> None:
    for path in _parts(folder):
        if path.name not in wanted:
            path.unlink()


def _parts(folder: Path) -> list[Path]:
    """The files of this folder that have the name of a part."""
    return [path for path in folder.glob("part-*.parquet") if re.fullmatch(r"part-[0-9]{5,}\.parquet", path.name)]


def _table_key(table: str) -> str:
    return f"{table}:{digest([[c.name, c.type, c.unit, c.meaning, c.source] for c in parquet_columns(table)])}"


def _count(manifest: Manifest, studies: tuple[str, ...]) -> dict[str, int]:
    rows = dict.fromkeys(PARQUET_TABLES, 0)
    for study in studies:
        for key, parts in manifest.studies[study].tables.items():
            rows[key.split(":")[0]] += sum(part.rows for part in parts.values())
    return rows


def _count_starts(out: Path, studies: tuple[str, ...]) -> int:
    import pyarrow.parquet as pq

    parts = [path for study in studies for path in study_folder(out, MODELS.name, study).glob("part-*.parquet")]
    names = [name for path in parts for name in pq.read_table(path, columns=["model"]).column(0).to_pylist()]
    return sum(name.endswith(UNTRAINED) for name in names)


def _read_manifest(out: Path) -> Manifest | None:
    """What was collected before; None without a readable manifest, as everything can be collected again."""
    try:
        return msgspec.json.decode((out / "_collected.json").read_bytes(), type=Manifest)
    except (FileNotFoundError, NotADirectoryError, msgspec.MsgspecError):
        return None


def _require_ours(out: Path, studies: Sequence[Study]) -> None:
    """Refuse to write over files of others. The lock file marks a folder to which something was collected."""
    if _read_manifest(out) is None:
        folders = [study_folder(out, table, study.name) for study in studies for table in PARQUET_TABLES]
        targets = [out / "_collected.json", *(part for folder in folders for part in _parts(folder))]
        require_ours(out / ".collect.lock", targets)


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep two collects from writing to one folder."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = locked(out / ".collect.lock")
    except BlockingIOError as error:
        raise DiskError(f"{out}: another collect is writing here; try again when it has ended") from error
    except OSError as error:
        raise DiskError(f"{out}: cannot be written: {error.strerror}; choose another folder with --out") from error
    try:
        yield
    finally:
        os.close(lock)
