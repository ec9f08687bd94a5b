"""`kt-study collect`: the job database as parquet, one folder per table and study.

    results/transfers/<study>/part-00000.parquet      the columns of docs/schema.md, `study` among them

A part has a fixed range of job numbers, with rows in the order of job and key. So its bytes depend only on its rows, not on
the number of collections. A part is written again, to a temporary file that is renamed, if its mark (such as the number of
rows for its jobs in the database) differs from the one in `results/_collected.json`, which is written last. Result rows
appear with their job's state `done` and do not change. So a count detects rows of a transaction that committed late, and
rows of an old job that a new study shares; the highest row number would miss both.
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
from kt_study.files import atomic_write, locked, require_ours, write_text
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
"""Rows in a row group, which a writer, or a reader of one column, has in memory."""


class Part(msgspec.Struct, frozen=True):
    """A collected part: its mark when it was read, its rows, its size in bytes."""

    mark: Mark
    rows: int
    bytes: int


class CollectedStudy(msgspec.Struct):
    """The collected parts of one study, by table (its name and schema digest). `origin` is when the study was created."""

    origin: float
    tables: dict[str, dict[int, Part]] = {}


class Manifest(msgspec.Struct):
    """`results/_collected.json`."""

    studies: dict[str, CollectedStudy]


@dataclass(frozen=True, kw_only=True)
class Collected:
    """The result of `collect`: `rows` in the folder for the selected studies, by table, and the files `written`.

    `starts` of the rows of `models` are untrained models from which a training of the study starts.
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
    """Update the parquet files under `out` from one consistent snapshot of the job database.

    Args:
        store_url: URL of the database; it is only read.
        out: the results folder.
        study: collect this study only; None for all of them.
        folder: the study folder, which has the files of `all_pairs` jobs; None for the folder of `out`.
        progress: called for every part written.

    Raises:
        UsageError: no study of that name, or a file that kt-study did not write is in the place of a part.
        DatabaseError: the database cannot be opened. If it becomes unreachable later, `collect` waits for it.
        DiskError: `out` cannot be written, or another collect is writing to it.
    """
    with reading(store_url) as reader:
        _require_ours(out, _selected(read_studies(reader), study))  # before anything is written
    with _locked(out):
        return through_outages(lambda: _collect(store_url, out, study, folder or out.absolute().parent, progress))


def _collect(store_url: str, out: Path, study: str | None, folder: Path, progress: Progress | None) -> Collected:
    with reading(store_url) as reader:
        selected = _selected(read_studies(reader), study)
        manifest = _read_manifest(out) or Manifest(studies={})
        written: list[Path] = []
        for one in selected:
            collected = _collected_before(manifest, one)
            for source in sources(folder):
                written += _update(reader, source, one, collected, out, progress)
        write_text(out / "_collected.json", msgspec.json.format(msgspec.json.encode(manifest)).decode())
    names = tuple(one.name for one in selected)
    return Collected(
        out=out, studies=names, rows=_count(manifest, names), starts=_count_starts(out, names), written=tuple(written)
    )


def study_folder(out: Path, table: str, study: str) -> Path:
    """The folder of one study's parts of one table. Readers skip names that begin with a dot or an underscore."""
    name = quote(study, safe="")
    return out / table / (f"%{ord(name[0]):02X}{name[1:]}" if name[0] in "._" else name)


def _selected(studies: list[Study], name: str | None) -> list[Study]:
    found = [study for study in studies if name in (None, study.name)]
    if not found and name is not None:
        there = ", ".join(study.name for study in studies) or "none"
        hint = nearest(name, [study.name for study in studies])
        raise UsageError(f"no study {name!r} in the database{hint} (there: {there})")
    return found


def _collected_before(manifest: Manifest, study: Study) -> CollectedStudy:
    """The study's entry in the manifest; a new one if there is none, or if it is for a study of another database."""
    found = manifest.studies.get(study.name)
    if found is None or found.origin != study.created_at:
        found = manifest.studies[study.name] = CollectedStudy(study.created_at)
    return found


def _update(
    reader: Reader, source: Source, study: Study, collected: CollectedStudy, out: Path, progress: Progress | None
) -> list[Path]:
    """Write the parts of one table whose mark has changed, and delete those that no longer exist."""
    folder = study_folder(out, source.table, study.name)
    before = collected.tables.get(_table_key(source.table), {})
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
    current = {f"part-{number:05d}.parquet" for number, part in after.items() if part.rows}
    for path in _parts(folder):
        if path.name not in current:
            path.unlink()
    others = {key: parts for key, parts in collected.tables.items() if not key.startswith(f"{source.table}:")}
    collected.tables = {**others, _table_key(source.table): after}
    return written


def _write_part(path: Path, source: Source, study: Study, mark: Mark, batches: Iterable[pa.RecordBatch]) -> Part:
    """Write a part in bounded memory; no file for no rows."""
    import pyarrow.parquet as pq

    rows = 0
    schema = arrow_schema(source.table)
    texts = [column.name for column in parquet_columns(source.table) if column.type == "text"]
    with contextlib.ExitStack() as stack:
        writer = None
        for group in _row_groups(_with_study(study.name, schema, batches)):
            if writer is None:
                scratch = stack.enter_context(atomic_write(path))
                writer = stack.enter_context(
                    pq.ParquetWriter(scratch, schema, compression="zstd", use_dictionary=texts)
                )
            writer.write_table(group, row_group_size=GROUP_ROWS)
            rows += group.num_rows
    return Part(mark, rows, path.stat().st_size if rows else 0)


def _with_study(name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Add the study's name as first column. NaN becomes missing, since PostgreSQL can store it and SQLite cannot."""
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
    """The manifest of earlier collections; None if it is missing or damaged, since everything can be collected again."""
    try:
        return msgspec.json.decode((out / "_collected.json").read_bytes(), type=Manifest)
    except (FileNotFoundError, NotADirectoryError, msgspec.MsgspecError):
        return None


def _require_ours(out: Path, studies: Sequence[Study]) -> None:
    """Refuse to overwrite files of other programs. The lock file marks a folder of `collect`."""
    if _read_manifest(out) is None:
        folders = [study_folder(out, table, study.name) for study in studies for table in PARQUET_TABLES]
        targets = [out / "_collected.json", *(part for folder in folders for part in _parts(folder))]
        require_ours(out / ".collect.lock", targets)


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Prevent two collects from writing to one folder."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = locked(out / ".collect.lock")
    except BlockingIOError as error:
        raise DiskError(f"{out}: another collect is writing here; try again when it has finished") from error
    except OSError as error:
        raise DiskError(f"{out}: cannot be written: {error.strerror}; choose another folder with --out") from error
    try:
        yield
    finally:
        os.close(lock)
