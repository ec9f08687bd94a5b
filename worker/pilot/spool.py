"""Results that were ready while the database was unreachable: stored in files, delivered later under their fencing number."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from kt_study.errors import DatabaseError, KtStudyError, LeaseLost, SchemaMismatch, UntrustedFile, UsageError
from kt_study.files import private_folder, write_private
from kt_study.records import Claim
from kt_study.store.results import Rows, plain_rows
from kt_study.trust import read_own

if TYPE_CHECKING:
    from kt_study.store.jobstore import JobStore

log = logging.getLogger(__name__)

_NAME = re.compile(r"job-[0-9]{9,}-[0-9]+\.json")


class Spool:
    """A folder of results that wait for the database, one file per claim.

    Several workers may share the folder and drain it concurrently: a result counts once. A
    worker that keeps sending heartbeats for a spooled claim keeps its lease; otherwise another may run the job again, and
    the spooled result is moved to `rejected/`.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.rejected_folder = self.folder / "rejected"

    def finish(self, store: JobStore, claim: Claim, rows: Rows) -> bool:
        """Finish a job, or store its rows here while the database is unreachable.

        Returns:
            True if the database has the rows, False if they are spooled.

        Raises:
            LeaseLost: the job is no longer this worker's.
            SchemaMismatch: the database lacks a column of the rows; waiting would not fix it.
            DiskError: the database is unreachable and the folder cannot be written either.
        """
        try:
            store.finish(claim, rows)
        except SchemaMismatch:
            raise
        except DatabaseError as error:
            path = self._keep(claim, rows)
            log.warning("job %s: %s; result kept in %s", claim.job_id, error, path)
            return False
        return True

    def waiting(self) -> list[Path]:
        """Files of waiting results, oldest job first."""
        return sorted(path for path in self.folder.glob("job-*.json") if _NAME.fullmatch(path.name))

    def rejected(self) -> list[Path]:
        """Files of results that came too late: another attempt had taken over the job."""
        return sorted(self.rejected_folder.glob("job-*.json"))

    def drain(self, store: JobStore) -> int:
        """Deliver the waiting results. Stops, for a later call, when the database becomes unreachable again.

        Returns:
            The number of results delivered.
        """
        delivered = 0
        for path in self.waiting():
            try:
                delivered += self._deliver(store, path)
            except (DatabaseError, OSError) as error:  # unreachable, or no space for a rejected one
                log.warning("%s; %d results still wait in %s", error, len(self.waiting()), self.folder)
                break
        return delivered

    def _keep(self, claim: Claim, rows: Rows) -> Path:
        path = self.folder / f"job-{claim.job_id:09d}-{claim.fence}.json"
        content = json.dumps({"claim": msgspec.to_builtins(claim), "rows": plain_rows(rows)})
        write_private(path, content.encode(), below=self.folder.parent)
        return path

    def _deliver(self, store: JobStore, path: Path) -> bool:
        try:
            kept = json.loads(read_own(path, self.folder.parent))
            store.finish(msgspec.convert(kept["claim"], Claim), kept["rows"])
        except FileNotFoundError:
            return False  # another process delivered it
        except (LeaseLost, UntrustedFile, UsageError, ValueError, KeyError) as error:
            self._reject(path, error)
            return False
        path.unlink(missing_ok=True)
        return True

    def _reject(self, path: Path, error: KtStudyError | ValueError | KeyError) -> None:
        private_folder(self.rejected_folder, below=self.folder.parent)
        target = self.rejected_folder / path.name
        path.replace(target)
        log.warning("spooled result not taken: %s; kept in %s", error, target)
