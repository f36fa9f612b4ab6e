"""The job store: one SQLite file in WAL mode, synchronous=FULL, written through SQLAlchemy Core.

Only changes of state are rows; progress stays in memory. Every write runs in BEGIN IMMEDIATE, so that two writers wait
instead of failing half-way. The gateway is the only writer while it runs (see ``datastore.hold``).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa

from hilum_client.wire import FINISHED, Status
from hilum_inference.errors import HilumError
from hilum_server.datastore import ORPHANS

Priority = Literal["interactive", "batch"]

SCHEMA = 2
BUSY_SECONDS = 5.0

NETWORK_FILE_SYSTEMS = frozenset(
    ("nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "afs", "ceph", "glusterfs", "lustre", "gpfs", "beegfs", "ocfs2")
) | frozenset(("gfs2", "ncpfs", "davfs", "9p", "fuse.sshfs", "fuse.s3fs", "fuse.rclone", "fuse.gcsfuse"))
"""File systems whose locks SQLite cannot trust."""

_tables = sa.MetaData()
_jobs = sa.Table(
    "jobs",
    _tables,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String, nullable=False, unique=True),
    sa.Column("owner", sa.String, nullable=False),
    sa.Column("key", sa.String),
    sa.Column("status", sa.String, nullable=False, index=True),
    sa.Column("model", sa.String, nullable=False),
    sa.Column("version", sa.String, nullable=False),
    sa.Column("digest", sa.String, nullable=False),
    sa.Column("priority", sa.String, nullable=False),
    sa.Column("images", sa.JSON, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("started", sa.Float),
    sa.Column("ended", sa.Float),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("error", sa.JSON),
    sa.Column("result", sa.JSON),
    sa.Column("report", sa.JSON),
    sa.Column("asked", sa.String),
    sa.UniqueConstraint("owner", "key"),
)

_MIGRATIONS: tuple[Sequence[Any], ...] = (
    (
        sa.text(
            "CREATE TABLE jobs (seq INTEGER NOT NULL PRIMARY KEY, id VARCHAR NOT NULL, owner VARCHAR NOT "
            'NULL, "key" VARCHAR, status VARCHAR NOT NULL, model VARCHAR NOT NULL, version VARCHAR NOT NULL, digest '
            "VARCHAR NOT NULL, priority VARCHAR NOT NULL, images JSON NOT NULL, created FLOAT NOT NULL, started FLOAT, "
            "ended FLOAT, attempts INTEGER NOT NULL, error JSON, result JSON, report JSON, "
            'UNIQUE (owner, "key"), UNIQUE (id))'
        ),
        sa.text("CREATE INDEX ix_jobs_status ON jobs (status)"),
    ),
    (sa.text("ALTER TABLE jobs ADD COLUMN asked VARCHAR"),),
)
"""Statements that lead from schema n to n + 1; only ever appended to."""


class StoreError(HilumError):
    """The store cannot be used; the message says why and what to do."""

    code = "job_store"


@dataclass(frozen=True)
class Job:
    """One piece of work, as its row says.

    Attributes:
        images: channel name -> id of a volume.
        key: the caller's Idempotency-Key, unique for one owner.
        digest: of the model's version at submission.
        created, started, ended: seconds since 1970.
        error: ``{"status", "code", "detail"}`` of a failed job; ``status`` as HTTP would say it.
        result: ``{"sha256", "bytes"}`` of the mask.
        asked: the order as the caller wrote it, as JSON; what a repeat under the same key is held against.
    """

    id: str
    owner: str
    model: str
    version: str
    images: Mapping[str, str]
    priority: Priority = "batch"
    digest: str = ""
    key: str | None = None
    status: Status = "queued"
    created: float = 0.0
    started: float | None = None
    ended: float | None = None
    attempts: int = 0
    error: Mapping[str, Any] | None = None
    result: Mapping[str, Any] | None = None
    report: Mapping[str, Any] | None = None
    asked: str | None = None

    def same_order(self, other: Job) -> bool:
        """Whether both ask for the same; jobs of an earlier release are told by what they came to."""
        if self.asked is not None and other.asked is not None:
            return self.asked == other.asked
        named = other.model in ("", self.model)  # an order need not name the only model
        return named and (set(self.images.values()), self.priority) == (set(other.images.values()), other.priority)

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen to it by itself."""
        return self.status in FINISHED


def file_system_of(path: Path, mounts: str | None = None) -> str:
    """Type of the file system that holds ``path`` as the kernel names it; ``unknown`` where there is no mount table."""
    table = Path("/proc/self/mounts")
    if mounts is None and not table.exists():
        return "unknown"
    real = os.path.realpath(path)
    best, kind = "", "unknown"
    for line in (table.read_text() if mounts is None else mounts).splitlines():
        _, point, name = line.split(" ")[:3]
        point = point.replace("\\040", " ").rstrip("/")
        if (real == point or real.startswith(point + "/")) and len(point) >= len(best):
            best, kind = point, name
    return kind


class Store:
    """Jobs on disk. All methods block for a few milliseconds: call them from a thread, not from the event loop."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._engine: sa.Engine | None = None

    def open(self) -> Store:
        """Open or create the file and bring it to this schema.

        Raises:
            StoreError: in no data folder, on a network file system, from a newer release, in use, or damaged.
        """
        if not self.path.parent.is_dir():
            raise StoreError(f"No gateway has run on {self.path.parent} yet; name its data folder with --data.")
        kind = file_system_of(self.path.parent)
        if kind in NETWORK_FILE_SYSTEMS:
            raise StoreError(
                f"The data folder lies on a network file system ({kind}), where the job store cannot lock safely; "
                "choose a local folder with --data."
            )
        url = sa.URL.create("sqlite", database=str(self.path))  # a folder's name may hold ? and %
        engine = sa.create_engine(url, connect_args={"timeout": BUSY_SECONDS}, hide_parameters=True)
        sa.event.listen(engine, "connect", _set_pragmas)
        sa.event.listen(engine, "begin", _begin_immediate)
        self._engine = engine
        try:
            self._check()
            self._migrate()
            self.unfinished()  # the gateway cannot start without them
        except (sa.exc.DatabaseError, sqlite3.DatabaseError, ValueError, TypeError) as error:
            engine.dispose()
            raise self._unusable(getattr(error, "orig", error)) from error
        self.path.chmod(0o600)
        return self

    def close(self) -> None:
        """Close every connection; the WAL is folded into the file."""
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None

    def add(self, job: Job) -> tuple[Job, bool]:
        """The job with this owner and key where there is one, else ``job`` stored; and whether it is new."""
        with self._begin() as connection:
            if job.key is not None:
                same = sa.select(_jobs).where(_jobs.c.owner == job.owner, _jobs.c.key == job.key)
                row = connection.execute(same).mappings().first()
                if row is not None:
                    return _job(row), False
            connection.execute(sa.insert(_jobs).values(_row(job)))
        return job, True

    def get(self, job_id: str) -> Job | None:
        """One job."""
        with self._begin() as connection:
            row = connection.execute(sa.select(_jobs).where(_jobs.c.id == job_id)).mappings().first()
        return None if row is None else _job(row)

    def by_key(self, owner: str, key: str) -> Job | None:
        """The job an owner submitted under an Idempotency-Key."""
        query = sa.select(_jobs).where(_jobs.c.owner == owner, _jobs.c.key == key)
        with self._begin() as connection:
            row = connection.execute(query).mappings().first()
        return None if row is None else _job(row)

    def ids(self) -> frozenset[str]:
        """Ids of all jobs."""
        with self._begin() as connection:
            return frozenset(connection.execute(sa.select(_jobs.c.id)).scalars())

    def list(
        self, owner: str | None = None, limit: int = 1000, status: Status | None = None, before: str | None = None
    ) -> tuple[Job, ...]:
        """The newest jobs first, of one owner or of all, in one status or in any, older than the job ``before``."""
        query = sa.select(_jobs).order_by(_jobs.c.seq.desc()).limit(limit)
        if owner is not None:
            query = query.where(_jobs.c.owner == owner)
        if status is not None:
            query = query.where(_jobs.c.status == status)
        if before is not None:
            query = query.where(_jobs.c.seq < sa.select(_jobs.c.seq).where(_jobs.c.id == before).scalar_subquery())
        with self._begin() as connection:
            return tuple(_job(row) for row in connection.execute(query).mappings())

    def unfinished(self) -> tuple[Job, ...]:
        """Queued and running jobs, oldest first."""
        query = sa.select(_jobs).where(_jobs.c.status.not_in(FINISHED)).order_by(_jobs.c.seq)
        with self._begin() as connection:
            return tuple(_job(row) for row in connection.execute(query).mappings())

    def counts(self) -> dict[str, int]:
        """Number of jobs in each status."""
        query = sa.select(_jobs.c.status, sa.func.count()).group_by(_jobs.c.status)
        with self._begin() as connection:
            return {str(status): int(count) for status, count in connection.execute(query)}

    def save(self, job: Job, was: Status) -> bool:
        """Write a changed job if its row is still in status ``was``; whether it was."""
        statement = sa.update(_jobs).where(_jobs.c.id == job.id, _jobs.c.status == was).values(_row(job))
        with self._begin() as connection:
            return bool(connection.execute(statement).rowcount == 1)

    def recover(self, attempts: int, poison: Mapping[str, Any]) -> tuple[Job, ...]:
        """Put running jobs back into the queue after a crash, or fail them after their last attempt; all unfinished."""
        for job in self.unfinished():
            if job.status == "running":
                self.save(requeued(job, attempts, poison), was="running")
        return self.unfinished()

    def delete(self, job_id: str) -> bool:
        """Forget a job; whether there was one."""
        with self._begin() as connection:
            return bool(connection.execute(sa.delete(_jobs).where(_jobs.c.id == job_id)).rowcount == 1)

    def finished_before(self, moment: float) -> tuple[Job, ...]:
        """Finished jobs that ended before ``moment``."""
        query = sa.select(_jobs).where(_jobs.c.status.in_(FINISHED), _jobs.c.ended < moment)
        with self._begin() as connection:
            return tuple(_job(row) for row in connection.execute(query).mappings())

    def _begin(self) -> Any:
        if self._engine is None:
            raise StoreError("The job store is closed.")
        return self._engine.begin()

    def _check(self) -> None:
        """Look at every page, about 3 s for each GiB, before anything is changed.

        Raises:
            sqlite3.DatabaseError: one of them is damaged.
        """
        if self._engine is None:
            return
        with contextlib.closing(self._engine.raw_connection()) as connection:  # takes no lock that a writer minds
            found = str(connection.cursor().execute("PRAGMA quick_check(1)").fetchone()[0])
        if found != "ok":
            raise sqlite3.DatabaseError(found)

    def _unusable(self, error: BaseException) -> StoreError:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
            return StoreError(f"The job store {self.path} is locked by another program; end that, then try again.")
        said = " ".join(str(error).split())[:200]
        return StoreError(
            f"The job store {self.path} is damaged or cannot be opened ({said}); put a backup in its place, or move it "
            f"away with its -wal and -shm: results that the store does not know are kept in jobs/{ORPHANS}."
        )

    def _migrate(self) -> None:
        with self._begin() as connection:
            schema = int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
            if schema > SCHEMA:
                raise StoreError(
                    f"The job store has schema {schema}, this release knows {SCHEMA}; use a newer release."
                )
            for steps in _MIGRATIONS[schema:]:
                for step in steps:
                    connection.execute(step)
            connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA}")


def now_after(*moments: float | None) -> float:
    """Now, and never before what has been: the clock may have been set back."""
    return max([time.time(), *(moment for moment in moments if moment is not None)])


def requeued(job: Job, attempts: int, poison: Mapping[str, Any]) -> Job:
    """A running job after its worker ended: queued again, or failed where its attempts are used up."""
    if job.attempts >= attempts:
        return replace(job, status="failed", ended=now_after(job.created, job.started), error=dict(poison))
    return replace(job, status="queued", started=None)


def _row(job: Job) -> dict[str, Any]:
    return {column.name: getattr(job, column.name) for column in _jobs.columns if column.name != "seq"}


def _job(row: Mapping[str, Any]) -> Job:
    return Job(**{name: value for name, value in row.items() if name != "seq"})


def _set_pragmas(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where _begin_immediate says, not where the driver guesses
    for pragma in ("journal_mode = WAL", "synchronous = FULL", f"busy_timeout = {int(BUSY_SECONDS * 1000)}"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_immediate(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
