"""Writes the migration from the newest revision to the current models: `make migration NAME=what_it_adds`.

Alembic compares `kt_study.tables` with a database at the newest revision. The migration works for both SQLite and PostgreSQL.
A new column that is a setting gets the setting's default in existing rows: they were measured with it, and an empty column
would mean another setting. Changes of indexes are written by hand.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.operations import ops

from kt_study.database import migrate, migrations_folder, newest_revision, parse_url, sqlalchemy_engine
from kt_study.schema import TRANSFERS
from kt_study.settings import SETTINGS

_TO_BE_ADJUSTED = "    # ###"
"""Comments of alembic's around what it writes."""


def write_migration(name: str) -> list[Path]:
    """Write it into the folder of migrations. Returns its path; none where the models ask for nothing."""
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    with tempfile.TemporaryDirectory() as scratch:
        address = parse_url(f"sqlite:///{scratch}/newest.db")
        migrate(address)
        engine = config.attributes["engine"] = sqlalchemy_engine(address)
        made = command.revision(
            config,
            message=f"{name.replace('_', ' ').capitalize()}.",
            autogenerate=True,
            rev_id=f"{int(newest_revision()) + 1:04d}",
            process_revision_directives=_complete,  # type: ignore[arg-type]
        )
        engine.dispose()
    scripts = made if isinstance(made, list) else [made]
    paths = [Path(script.path) for script in scripts if script is not None]
    for path in paths:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(line for line in lines if not line.startswith(_TO_BE_ADJUSTED)), encoding="utf-8")
    return paths


def _complete(_context: object, _revision: object, directives: list[ops.MigrationScript]) -> None:
    """Add the backfill; without any change, write nothing."""
    changes = directives[0].upgrade_ops
    assert changes is not None
    if changes.is_empty():
        directives.clear()
    changes.ops += [ops.ExecuteSQLOp(statement) for statement in _backfill(changes)]


def _backfill(changes: ops.UpgradeOps) -> Iterator[str]:
    """The default of each setting that is new, for the rows there are; plain SQL that both databases take."""
    for change in changes.ops:
        if isinstance(change, ops.ModifyTableOps) and change.table_name == TRANSFERS.name:
            for added in change.ops:
                if isinstance(added, ops.AddColumnOp) and added.column.name in SETTINGS:
                    value = sa.literal(SETTINGS[added.column.name].default)
                    spelled = value.compile(compile_kwargs={"literal_binds": True})
                    yield f"UPDATE {change.table_name} SET {added.column.name} = {spelled}"


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].isidentifier():
        sys.exit("give the migration a name of letters, digits and _: make migration NAME=what_it_adds")
    written = write_migration(sys.argv[1])
    print(*written or ["nothing to write: the newest migration makes the tables that the models describe"], sep="\n")
