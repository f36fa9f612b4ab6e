"""A row of the table: who competes, how each is measured, and which figures come out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hilum_benchmark.figures import Figure, Measured, Rounds


@dataclass(frozen=True)
class Contender:
    """One who is measured, in a fresh process each time.

    Attributes:
        target: ``package.module:function``; it takes a Context and returns what it measured.
        argument: passed on in the Context.
    """

    target: str
    argument: str = ""


@dataclass(frozen=True)
class Context:
    """What a measuring function is given: the row's folder of prepared files, its argument, whether sizes are tiny."""

    folder: Path
    argument: str
    quick: bool


Measure = Callable[[Context], Measured]


@dataclass(frozen=True)
class Row:
    """One row, or one group of rows that share their runs.

    Attributes:
        name: as in ``--only``.
        title: as in the table.
        contenders: measured in turn, round after round.
        figures: from the raw rounds to the lines of the table.
        prepare: ``package.module:function`` that writes what all contenders read, once, in its own process; its
            argument is the row's name.
        packages: rooms and modules whose source decides the result; the row is measured again when one changed.
        rounds: how many are enough, where it is not the default (a job of minutes is run once).
        by_default: whether it runs without being named.
        note: a sentence for the table's foot.
    """

    name: str
    title: str
    contenders: dict[str, Contender]
    figures: Callable[[Rounds], list[Figure]]
    prepare: str | None = None
    packages: tuple[str, ...] = ("hilum_inference", "hilum_benchmark")
    rounds: int | None = None
    by_default: bool = True
    note: str = ""
