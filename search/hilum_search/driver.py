"""What every search is driven by: a ledger, a place where children run, and a note of where it stands."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hilum_client.cluster import Cluster, open_cluster
from hilum_inference.files import write_atomically
from hilum_search.architecture import Architecture, to_json
from hilum_search.children import Child, Evaluator, Result, Work, gathered, in_ledger, on_cluster
from hilum_search.errors import DataError
from hilum_search.gpus import OPERATIONS, PASSES
from hilum_search.ledger import Hours, Ledger
from hilum_search.progress import Report, Stage

J = TypeVar("J")
R = TypeVar("R")

LEDGER, STATUS, REPORT, ARCHITECTURE = "ledger.sqlite", "status.json", "report.json", "architecture.json"
TOLD_EVERY = 1.0
"""Seconds between two notes of where a search stands."""
LOOKED_EVERY = 0.5
"""Seconds between two looks at what a job notes."""


class Driver:
    """The one process of a search that decides and writes.

    Args:
        work: what the search is about.
        ledger: open to be written.
        cluster: runs children.
        report: told of every stage.
    """

    def __init__(self, work: Work, ledger: Ledger, cluster: Cluster, report: Report | None) -> None:
        self.work, self.ledger, self.cluster = work, ledger, cluster
        self._report = report
        self._note = noting(work.out, os.getpid())
        self._begun: dict[str, tuple[float, int]] = {}

    def tell(self, stage: Stage) -> None:
        """Note where the search stands, for whoever looks from outside, and report it."""
        timed = self._timed(stage)
        if self._report is not None:
            self._report(timed)
        self._note(timed)

    def evaluator(self, stage: str, total: int = 0) -> Evaluator:
        """Trains children of a stage; where it has a ``total``, every child is told of."""
        told = {"done": 0}
        best: list[float] = []

        def done(_: Child, result: Result) -> None:
            told["done"] += 1
            best.append(result.mean)
            if total:
                known = [value for value in best if not math.isnan(value)]
                self.tell(Stage(stage, told["done"], total, max(known, default=None)))

        return in_ledger(self.ledger, self.cluster, self.work, stage, done)

    def follow(self, function: Callable[[J], R], job: J) -> R:
        """One long job, done where children are trained; what it notes by ``noting`` is reported meanwhile."""
        over = threading.Event()
        watch = threading.Thread(target=self._watch, args=(over,), daemon=True)
        watch.start()
        try:
            (result,) = self.map(function, [job])
        finally:
            over.set()
            watch.join()
        return result

    def _watch(self, over: threading.Event) -> None:
        """Report every new note until it is over, and the last one then."""
        seen = _note(self.work.out)
        while True:
            last = over.wait(LOOKED_EVERY)
            found = seen
            with contextlib.suppress(OSError):  # a shared folder may fail once
                found = _note(self.work.out)
            if found is not None and found != seen and self._report is not None:
                self._report(_stage(found))
            seen = found
            if last:
                return

    def map(self, function: Callable[[J], R], jobs: Sequence[J]) -> Iterator[R]:
        """Jobs that are no children, done where children are trained; results in the order asked."""
        return on_cluster(self.cluster, self.work, function, jobs)

    def finish(self, architecture: Architecture, found: Mapping[str, Any]) -> dict[str, Any]:
        """Write what the search came to, with the cost of every stage; what is written."""
        totals = self.ledger.totals()
        hours = {stage: {"cpu_hours": spent.cpu, "gpu_hours": spent.gpu} for stage, spent in totals.items()}
        report = dict(found) | {"cost": hours}
        write_atomically(self.work.out / ARCHITECTURE, to_json(architecture).encode())
        write_json(self.work.out / REPORT, report)  # last: a search with a report is finished
        return report

    def _timed(self, stage: Stage) -> Stage:
        """With the seconds left, by the pace since the stage began in this process."""
        began, first = self._begun.setdefault(stage.name, (time.monotonic(), stage.done))
        if stage.seconds_left is not None or stage.done <= first:
            return stage
        pace = (time.monotonic() - began) / (stage.done - first)
        return dataclasses.replace(stage, seconds_left=pace * (stage.total - stage.done))


def noting(out: Path, pid: int) -> Report:
    """Notes in a search's folder where its job stands, whatever machine the job runs on.

    Args:
        out: folder of the search.
        pid: of the search's driver, which is who runs the search.
    """
    told = -TOLD_EVERY

    def note(stage: Stage) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= TOLD_EVERY or stage.done == stage.total:
            told = now
            write_json(out / STATUS, dataclasses.asdict(stage) | {"pid": pid, "time": time.time()})

    return note


@dataclass(frozen=True)
class Place:
    """Where children run: processes of this machine, or a Ray cluster by its address."""

    workers: int = 1
    cluster: str | None = None


@contextlib.contextmanager
def driving(work: Work, plan: object, place: Place, report: Report | None = None) -> Iterator[Driver]:
    """A driver with its ledger and cluster open.

    Args:
        work: what the search is about.
        plan: the search's settings, a dataclass; with the recipe it decides which ledger is whose.
        place: where children run.
        report: told of every stage.

    Raises:
        DataError: the folder holds another search, or another driver works there; cases that cannot be used.
        ClusterError: no cluster at that address.
    """
    with (
        open_cluster(place.cluster, place.workers) as cluster,
        Ledger(work.out / LEDGER, settings_digest(work, plan)) as ledger,  # of these cases and no others
    ):
        yield Driver(work, ledger, cluster, report)


def settings_digest(work: Work, plan: Any) -> str:
    """SHA-256 of what decides a search: method, settings, recipe, and the files of all three parts."""
    recipe, cases = work.recipe.file.model_dump(mode="json"), gathered(work).digest()
    parts = [type(plan).__module__, dataclasses.asdict(plan), recipe, cases]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write a file whole or not at all."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


@dataclass(frozen=True)
class Standing:
    """A search seen from outside.

    Attributes:
        stage: the last one that was noted; None before the first.
        running: whether the process that noted it is alive.
        entries: in the ledger, by stage.
        spent: by stage.
        best: mean Dice by stage.
        finished: whether the report is written.
    """

    stage: Stage | None
    running: bool
    entries: Mapping[str, int]
    spent: Mapping[str, Hours]
    best: Mapping[str, float]
    finished: bool


def standing(out: Path) -> Standing:
    """Where the search in a folder stands, running or dead.

    Raises:
        DataError: no search there.
    """
    if not (out / LEDGER).is_file():
        raise DataError(f"There is no search in {out}; give the --out of hilum search vnas or c2fnas.")
    with Ledger.read(out / LEDGER) as ledger:
        entries, totals = ledger.entries(), ledger.totals()
    note = _note(out)
    stages = list(totals)
    counts = {stage: sum(entry.stage == stage for entry in entries) for stage in stages}
    scores = {stage: [_mean(entry.metrics) for entry in entries if entry.stage == stage] for stage in stages}
    best = {stage: max(found) for stage, values in scores.items() if (found := [v for v in values if v is not None])}
    return Standing(
        None if note is None else _stage(note),
        note is not None and alive(note["pid"]),
        counts,
        totals,
        best,
        (out / REPORT).is_file(),
    )


def _note(out: Path) -> dict[str, Any] | None:
    """The last note of a search; None before the first."""
    path = out / STATUS
    found: dict[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
    return found


def _stage(note: Mapping[str, Any]) -> Stage:
    return Stage(*(note[each.name] for each in dataclasses.fields(Stage)))


def alive(pid: int) -> bool:
    """Whether a process of that id runs on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _mean(metrics: Mapping[str, Any]) -> float | None:
    value = metrics.get("mean")
    return float(value) if isinstance(value, int | float) else None


def finals(networks: Sequence[Architecture], steps: int, seed: int) -> list[Child]:
    """Chosen networks, each to be trained on train and validation together and scored on the test."""
    return [Child(network, steps, seed, final=True) for network in networks]


def hours_told(spent: Iterable[Hours]) -> str:
    """What stages took together, in words; GPU hours where there were any."""
    every = list(spent)
    cpu, gpu = sum(each.cpu for each in every), sum(each.gpu for each in every)
    return f"{cpu:.2f} CPU hours" + (f", {gpu:.2f} GPU hours" if gpu else "")


def hours_of(report: Mapping[str, Any]) -> str:
    """What a search took as its report has it, in words."""
    return hours_told(Hours(each["cpu_hours"], each["gpu_hours"], 0.0) for each in report["cost"].values())


def fields(architecture: Architecture) -> dict[str, Any]:
    """The architecture as JSON has it, family included."""
    found: dict[str, Any] = json.loads(to_json(architecture))
    return found


def outcome(child: Child, result: Result) -> dict[str, Any]:
    """A child in a report."""
    return {
        "key": child.key,
        "architecture": fields(child.architecture),
        "dice": dict(result.dice),
        "mean": result.mean,
        "cpu_seconds": result.cpu_seconds,
        "gpu_seconds": result.gpu_seconds,
    }


@dataclass(frozen=True)
class Expected:
    """What a stage will take, before anything is trained.

    Attributes:
        name: of the stage.
        networks: trained in it, at most.
        steps: of all of them together.
        operations: floating-point operations of these steps: forward and back, two for a multiply-accumulate.
    """

    name: str
    networks: int
    steps: int
    operations: float


def expected(name: str, networks: int, steps: int, macs: float, batch: int) -> Expected:
    """A stage by the multiply-accumulates of one window of its networks."""
    return Expected(name, networks, steps, steps * batch * PASSES * OPERATIONS * macs)
