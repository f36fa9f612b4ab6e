"""What is printed: figures computed from the raw rounds, each beside what it should reach."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Measured = Mapping[str, float]
Rounds = Mapping[str, Sequence[Measured]]
"""For each contender what each round measured, in the order of the rounds."""

LEAST = 1e-9
"""Below what any clock here shows; a quick run may measure nothing at all."""

BEST = 1000.0
"""The margin of a figure that is nothing where little is allowed."""

Better = Literal["more", "less"]


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        what: what was measured.
        peer: beside whom; None: an absolute figure.
        value, low, high: from the medians, and the least and most of the single rounds.
        reach: what it should reach.
        unit: of the four; ``x`` is "times less than the peer".
        better: whether more or less is better.
    """

    what: str
    peer: str | None
    value: float
    low: float
    high: float
    reach: float
    unit: str
    better: Better = "more"

    @property
    def reached(self) -> bool:
        """Whether the value is as good as it should be; False where it is not a number."""
        return self.value >= self.reach if self.better == "more" else self.value <= self.reach

    @property
    def margin(self) -> float:
        """How many times better than it should be; 1 is just reached."""
        if self.better == "more":
            return self.value / self.reach
        if self.value <= 0:
            return BEST
        return self.reach / self.value


@dataclass(frozen=True)
class Metric:
    """One number of one contender."""

    contender: str
    name: str

    def values(self, rounds: Rounds) -> list[float]:
        """Its value in every round."""
        return [measured[self.name] for measured in rounds.get(self.contender, ())]


def times_less(rounds: Rounds, what: str, ours: Metric, peer: Metric, reach: float) -> list[Figure]:
    """How many times less ours needs than the peer; nothing where one of them has no rounds.

    >>> rounds = {"a": [{"s": 2.0}, {"s": 4.0}], "b": [{"s": 8.0}, {"s": 10.0}]}
    >>> times_less(rounds, "time", Metric("a", "s"), Metric("b", "s"), 2)[0].value
    3.0
    """
    mine, theirs = ours.values(rounds), peer.values(rounds)
    if not mine or not theirs:
        return []
    each = [b / max(a, LEAST) for a, b in zip(mine, theirs, strict=False)]
    value = statistics.median(theirs) / max(statistics.median(mine), LEAST)
    return [Figure(what, peer.contender, value, min(each), max(each), reach, "x")]


def geometric_mean(figures: Iterable[Figure], what: str, reach: float) -> list[Figure]:
    """The geometric mean of several ratios to one peer."""
    parts = list(figures)
    if not parts:
        return []
    value, low, high = (
        statistics.geometric_mean(values) for values in zip(*((f.value, f.low, f.high) for f in parts), strict=True)
    )
    return [Figure(what, parts[0].peer, value, low, high, reach, "x")]


def at_most(values: Sequence[float], what: str, limit: float, unit: str) -> list[Figure]:
    """The median of ``values`` beside an upper limit."""
    return _absolute(values, what, limit, unit, "less")


def at_least(values: Sequence[float], what: str, limit: float, unit: str) -> list[Figure]:
    """The median of ``values`` beside a lower limit."""
    return _absolute(values, what, limit, unit, "more")


def _absolute(values: Sequence[float], what: str, limit: float, unit: str, better: Better) -> list[Figure]:
    if not values:
        return []
    return [Figure(what, None, statistics.median(values), min(values), max(values), limit, unit, better)]
