"""The study file, its folder and the database of a command, and the options that set them."""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kt_study.database import files_of, parse_url, sqlite_url
from kt_study.errors import DiskError, UsageError
from kt_study.paths import StudyPaths
from kt_study.study import StudyFile, read_study
from kt_study.trust import owner, require_own, require_own_study

if TYPE_CHECKING:
    from kt_study.store import JobStore

Command = TypeVar("Command", bound=Callable[..., Any])

STUDY_FILE = Path("study.toml")
"""The default study file of a command."""


@dataclass(frozen=True, kw_only=True)
class StudyContext:
    """The study that `--study` and `--db` name."""

    study_path: Path
    db_flag: str | None

    @property
    def folder(self) -> Path:
        """The study folder."""
        return self.study_path.resolve().parent

    @property
    def paths(self) -> StudyPaths:
        """The study's files."""
        return StudyPaths(root=self.folder)

    @cached_property
    def study(self) -> StudyFile:
        """The study file. Raises StudyFileError."""
        return read_study(self.study_path)

    @property
    def name(self) -> str:
        """The study's name."""
        return self.study.study.name

    @property
    def database_url(self) -> str:
        """`--db`, else KT_STUDY_DB, else the study file's, else the SQLite file in the study folder.

        Raises:
            UntrustedFile: it is in a study file that another account can write.
        """
        given = self.db_flag or os.environ.get("KT_STUDY_DB")
        if not given and (url := self.study.study.database) and not parse_url(url).is_sqlite:
            require_own(self.study_path, self.folder)  # it decides where the password is sent
        return given or self.study.study.database or sqlite_url(self.paths.database)

    def require_own(self) -> None:
        """Refuse a study that others can write, before any of its code runs. Raises UntrustedFile."""
        require_own(self.study_path, self.folder)
        require_own_study(self.folder, *files_of(parse_url(self.database_url)))

    def require_writable(self) -> None:
        """Refuse a study folder that a plan cannot be written to, before the work of planning. Raises DiskError."""
        address = parse_url(self.database_url)
        indices = (self.paths.dataset_index("").parent, self.paths.cache, self.folder)
        written = [next(place for place in indices if place == self.folder or place.exists())]
        if address.is_sqlite:
            written += [place for place in (Path(address.path).parent, Path(address.path)) if place.exists()]
        for there in written:
            if not os.access(there, os.W_OK):
                raise DiskError(
                    f"{there} is read-only for you ({stat.filemode(there.stat().st_mode)}, owner {owner(there)}), and a plan "
                    "is written there; plan in a copy of the study folder, or look at the plan with --dry-run"
                )

    def require_planned_here(self, store: JobStore) -> None:
        """Refuse a study of this name that was planned in another folder, where its jobs have their files.

        A SQLite file in the study folder is moved and copied with it, so it belongs to no other folder.

        Raises:
            UsageError: the message has both ways out.
        """
        address = parse_url(store.url)
        own_file = address.is_sqlite and Path(address.path).resolve().parent == self.folder
        if own_file or self.name not in store.studies():
            return
        planned_in = Path(store.study(self.name).get("folder") or self.folder)
        if planned_in == self.folder or (planned_in.exists() and planned_in.samefile(self.folder)):
            return
        raise UsageError(
            f"study {self.name!r} of this database was planned in {planned_in}, where its jobs have their files; choose "
            f"another name in {self.study_path}, or move the study to this folder with `kt-study plan --adopt`"
        )

    def store(self, *, create: bool = False, waits: bool = False) -> JobStore:
        """The job store.

        Args:
            create: create missing tables.
            waits: its calls are made with `orchestrator.terminal.outage.through_outages`, which waits in their place.

        Raises:
            DatabaseError: it cannot be opened, or does not exist and `create` is false. With `waits`, an existing SQLite
                file that cannot be opened is waited for.
        """
        from kt_study.store import open_store
        from orchestrator.terminal.outage import PATIENCE_S, through_outages

        if not waits:
            return open_store(self.database_url, create=create)
        address = parse_url(self.database_url)
        opened = functools.partial(open_store, self.database_url, create=create, patience_s=PATIENCE_S)
        return through_outages(opened) if address.is_sqlite and Path(address.path).exists() else opened()


def with_study_context(command: Command) -> Command:
    """Add --study and --db to a command, and pass it a `StudyContext` as its first argument, `context`."""

    @click.option(
        "--study",
        "study_path",
        type=click.Path(path_type=Path, readable=False),
        default=str(STUDY_FILE),
        help="The study file.",
    )
    @click.option(
        "--db", "db_flag", metavar="URL", help="Job database (default: KT_STUDY_DB, else from the study file)."
    )
    @functools.wraps(command)
    def wrapped(*args: Any, study_path: Path, db_flag: str | None, **kwargs: Any) -> Any:
        return command(StudyContext(study_path=study_path, db_flag=db_flag), *args, **kwargs)

    return wrapped  # type: ignore[return-value]
