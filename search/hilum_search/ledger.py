"""The ledger of a search: one SQLite file to which outcomes are added and from which nothing is ever taken.

WAL with synchronous=FULL: an entry that was added survives ``kill -9`` and a cut of power. The driver of the search
alone writes; anyone may read meanwhile, and after it died.
"""

from __future__ import annotations

import contextlib
import json
import math
import platform
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from hilum_search.errors import DataError

NAME: Final = "ledger.sqlite"

_COLUMNS: Final = ("number", "key", "stage", "architecture", "seed", "metrics", "cost", "versions", "time")
_SELECT: Final = f"SELECT {', '.join(_COLUMNS)} FROM entries"  # noqa: S608 - the names above
_INSERT: Final = f"INSERT INTO entries ({', '.join(_COLUMNS[1:])}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
_TABLES: Final = "SELECT count(*) FROM sqlite_schema"

_SCHEMA: Final = (
    "CREATE TABLE search (settings TEXT NOT NULL)",
    "CREATE TABLE entries (number INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, stage TEXT NOT NULL, "
    "architecture TEXT NOT NULL, seed INTEGER NOT NULL, metrics TEXT NOT NULL, cost TEXT NOT NULL, "
    "versions TEXT NOT NULL, time TEXT NOT NULL)",
    # REPLACE deletes without the trigger of DELETE, hence the guard of INSERT.
    "CREATE TRIGGER entries_replace BEFORE INSERT ON entries "
    "WHEN EXISTS (SELECT 1 FROM entries WHERE key = NEW.key OR number = NEW.number) "
    "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END",
    *(
        f"CREATE TRIGGER {table}_{verb.lower()} BEFORE {verb} ON {table} "
        "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
        for table in ("search", "entries")
        for verb in ("UPDATE", "DELETE")
    ),
)


@dataclass(frozen=True)
class Entry:
    """One outcome.

    Attributes:
        key: by which a search finds again what it did; unique.
        stage: of the search that asked for it.
        architecture: digest of the network; empty where there is none.
        seed: of whatever was left to chance.
        metrics: what came out; numbers that are not finite are None.
        cost: ``cpu_seconds``, ``gpu_seconds`` and ``wall_seconds``, as far as they are known.
        versions: of hilum, Python and what computes.
        number: from 1, in the order of adding.
        time: of adding, ISO 8601, UTC.
    """

    key: str
    stage: str
    architecture: str
    seed: int
    metrics: Mapping[str, Any]
    cost: Mapping[str, float]
    versions: Mapping[str, str]
    number: int
    time: str

    @property
    def content(self) -> dict[str, Any]:
        """What does not depend on when and where it was found: all but time, cost and versions."""
        return {
            "key": self.key,
            "stage": self.stage,
            "architecture": self.architecture,
            "seed": self.seed,
            "metrics": self.metrics,
        }


@dataclass(frozen=True)
class Hours:
    """What a stage cost, in hours."""

    cpu: float
    gpu: float
    wall: float


class Ledger:
    """The ledger in a file, for one thread.

    Args:
        path: of the file; it and its folder are made where they are missing.
        settings: digest of what decides the search.

    Raises:
        DataError: the ledger belongs to another search, another driver is writing to it, or it is no ledger.
    """

    def __init__(self, path: Path, settings: str = "") -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as opened:
            self._lock = opened.enter_context(contextlib.closing(_hold(path)))
            self._base = opened.enter_context(contextlib.closing(_connect(path, "rwc")))
            with _as_told(path):
                _prepare(self._base, settings)
                (found,) = self._base.execute("SELECT settings FROM search").fetchone()
            if found != settings:
                raise DataError(
                    f"The ledger in {path.parent} belongs to another search or other settings; use a new folder."
                )
            self._opened = opened.pop_all()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Open the ledger of a running or dead search, to read only.

        Raises:
            DataError: there is none, or the file is no ledger.
        """
        missing = DataError(f"There is no ledger of a search in {path.parent}.")
        if not path.is_file():
            raise missing
        ledger = cls.__new__(cls)
        ledger._path = path
        with contextlib.ExitStack() as opened:
            ledger._base = opened.enter_context(contextlib.closing(_connect(path, "ro")))
            with _as_told(path):
                if ledger._base.execute(_TABLES).fetchone() == (0,):
                    raise missing
                ledger.entries()
            ledger._opened = opened.pop_all()
        return ledger

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._opened.close()

    def get(self, key: str) -> Entry | None:
        """The entry of a key; None where nothing was added under it."""
        return next(iter(self._select("WHERE key = ?", key)), None)

    def entries(self, stage: str | None = None) -> list[Entry]:
        """All entries, or those of one stage, in the order of adding."""
        if stage is None:
            return self._select("ORDER BY number")
        return self._select("WHERE stage = ? ORDER BY number", stage)

    def add(
        self,
        *,
        key: str,
        stage: str,
        architecture: str,
        seed: int,
        metrics: Mapping[str, Any],
        cost: Mapping[str, float],
    ) -> Entry:
        """Add an outcome; it is on disk when this returns. The same content again returns the entry that is there.

        Raises:
            DataError: the key is there with other content.
        """
        texts = [_json(values) for values in (metrics, cost, versions())]
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        new = _entry((0, key, stage, architecture, seed, *texts, now))
        old = self.get(key)
        if old is None:
            with _as_told(self._path):
                self._base.execute(_INSERT, (key, stage, architecture, seed, *texts, now))
            old = self.get(key)
        if old is None or old.content != new.content:
            raise DataError(
                f"The ledger in {self._path.parent} holds {key} with another outcome: this machine or its software "
                "does not repeat what the search did before; use a new folder."
            )
        return old

    def contents(self) -> list[dict[str, Any]]:
        """All entries without times, costs and versions: equal for equal searches, however many workers they had."""
        return [entry.content for entry in self.entries()]

    def totals(self) -> dict[str, Hours]:
        """The cost of each stage, in the order in which they began."""
        spent: dict[str, list[Mapping[str, float]]] = {}
        for entry in self.entries():
            spent.setdefault(entry.stage, []).append(entry.cost)
        return {stage: _hours(costs) for stage, costs in spent.items()}

    def _select(self, where: str, *values: str) -> list[Entry]:
        with _as_told(self._path):
            return [_entry(row) for row in self._base.execute(f"{_SELECT} {where}", values)]


@cache
def versions() -> dict[str, str]:
    """Versions of hilum, Python, and of torch and numpy where they are installed."""
    found = {"python": platform.python_version()}
    for name in ("hilum", "torch", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _hold(path: Path) -> sqlite3.Connection:
    """A lock beside the ledger, held by an open transaction: whatever ends this process frees it.

    Raises:
        DataError: another driver holds it.
    """
    with _as_told(path):
        lock = sqlite3.connect(path.with_name(f".{path.name}.lock"), timeout=0, isolation_level=None)
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            lock.close()
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            raise DataError(
                f"Another search is writing to the ledger in {path.parent}; wait for its end, or stop it."
            ) from error
    return lock


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    with _as_told(path):
        return sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None)


def _prepare(base: sqlite3.Connection, settings: str) -> None:
    """Make the tables where they are missing, all at once."""
    base.execute("PRAGMA journal_mode = WAL")
    base.execute("PRAGMA synchronous = FULL")
    if base.execute(_TABLES).fetchone() != (0,):
        return
    base.execute("BEGIN IMMEDIATE")
    for statement in _SCHEMA:
        base.execute(statement)
    base.execute("INSERT INTO search VALUES (?)", (settings,))
    base.execute("COMMIT")


@contextlib.contextmanager
def _as_told(path: Path) -> Iterator[None]:
    """What SQLite says of the file, as one sentence."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise DataError(
            f"The ledger {path} cannot be used ({error}); make room on the disk, or use a new folder."
        ) from error


def _entry(row: Sequence[Any]) -> Entry:
    number, key, stage, architecture, seed, *texts, time = row
    metrics, cost, found = map(json.loads, texts)
    return Entry(key, stage, architecture, seed, metrics, cost, found, number, time)


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(_finite(values), sort_keys=True, allow_nan=False)


def _finite(value: Any) -> Any:
    """The value as JSON can hold it."""
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _hours(costs: Sequence[Mapping[str, float]]) -> Hours:
    cpu, gpu, wall = (
        math.fsum(cost.get(f"{kind}_seconds") or 0.0 for cost in costs) / 3600 for kind in ("cpu", "gpu", "wall")
    )
    return Hours(cpu, gpu, wall)
