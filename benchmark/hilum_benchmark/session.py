"""Measures rows one after the other, contenders in turn, and keeps what was measured before."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hilum_benchmark import machine, report
from hilum_benchmark.process import MeasurementError, measure
from hilum_benchmark.row import Contender, Context, Row

Say = Callable[[str], None]
Results = dict[str, list[dict[str, float]]]
DEFAULT_ROUNDS = 3


@dataclass(frozen=True)
class Choice:
    """What to measure and how.

    Attributes:
        rounds: of each row that does not say itself how many are enough.
        quick: tiny sizes.
        again: measure also what was measured with these versions and this source before.
        work: where prepared files lie; None: a temporary folder.
    """

    rounds: int = DEFAULT_ROUNDS
    quick: bool = False
    again: bool = False
    work: Path | None = None


def run(kind: str, rows: list[Row], out: Path, choice: Choice, say: Say) -> report.Report:
    """Measure ``rows`` into ``out``; the report with the rows measured before."""
    result = report.Report(kind, choice.quick, machine.facts(), report.read(out, kind, choice.quick))
    for row in rows:
        about: dict[str, Any] = {
            "versions": machine.versions(),
            "source": machine.source_digest(row.packages),
        }
        about["cpu"] = result.machine["cpu"]
        count = min(row.rounds or choice.rounds, choice.rounds)
        if not choice.again and is_current(result.rows.get(row.name), about, count):
            say(f"{row.name}: kept, measured before with the same versions and source")
            continue
        started = time.time()
        load = machine.facts()["load_average"]
        rounds, failed = _measure(row, count, choice, say)
        about |= {"load_average": load, "failed": failed, "seconds": round(time.time() - started, 1)}
        result.keep(row, rounds, about)
        result.write(out)
    return result


def is_current(before: dict[str, Any] | None, about: dict[str, Any], rounds: int) -> bool:
    """Whether a row was measured with these versions, source and processor, often enough, without failures."""
    if before is None or before.get("failed"):
        return False
    same = all(before.get(name) == value for name, value in about.items())
    return same and all(len(measured) >= rounds for measured in before["rounds"].values())


def _measure(row: Row, count: int, choice: Choice, say: Say) -> tuple[Results, dict[str, str]]:
    rounds: Results = {name: [] for name in row.contenders}
    failed: dict[str, str] = {}
    with _folder(choice.work, row.name) as folder:
        if row.prepare is not None:
            say(f"{row.name}: preparing")
            try:
                measure(Contender(row.prepare, row.name), Context(folder, row.name, choice.quick))
            except MeasurementError as error:
                say(f"{row.name}: {error}")
                return rounds, dict.fromkeys(row.contenders, str(error))
        for number in range(count):
            for name, contender in row.contenders.items():
                if name in failed:
                    continue
                say(f"{row.name}: {name}, round {number + 1} of {count}")
                try:
                    measured = measure(contender, Context(folder, contender.argument, choice.quick))
                except MeasurementError as error:
                    failed[name] = str(error)
                    say(f"{row.name}: {name} {error}")
                else:
                    rounds[name].append(measured)
                    say("  " + ", ".join(f"{key} {value:.4g}" for key, value in measured.items()))
    return rounds, failed


@contextmanager
def _folder(work: Path | None, name: str) -> Iterator[Path]:
    if work is not None:
        (work / name).mkdir(parents=True, exist_ok=True)
        yield work / name
        return
    with tempfile.TemporaryDirectory(prefix="hilum-benchmark-") as folder:
        yield Path(folder)
