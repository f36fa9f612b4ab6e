"""Successive halving (Jamieson and Talwalkar, AISTATS 2016): all children train a little, the better ones go on.

A child that goes on starts from its own weights of the rung before and is charged the difference in steps only. What
that is not: the first part of one long training. Each rung runs through the whole schedule of the learning rate and
begins with an optimiser that remembers nothing. So a child of the last rung need not score what the same child scores
that trained as many steps in one go; how far the two rank alike is what ``ranks.kendall`` measures.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from hilum_search.children import Child, Evaluator, Result
from hilum_search.errors import SearchError
from hilum_search.progress import Report, Stage

FACTOR: Final = 3
"""From rung to rung a third of the children, three times the steps (our choice)."""
RUNGS: Final = 4
STAGE: Final = "halving"


@dataclass(frozen=True)
class Rung:
    """One rung.

    Attributes:
        count: of the children that reach it at most.
        steps: that each of them has trained in all when it leaves.
    """

    count: int
    steps: int


@dataclass(frozen=True)
class Standing:
    """A child on a rung.

    Attributes:
        place: of the child in the order given, from 0.
        rung: from 0.
        child: as it was trained for this rung.
        result: of that.
    """

    place: int
    rung: int
    child: Child
    result: Result


@dataclass(frozen=True)
class Halved:
    """How halving ended.

    Attributes:
        ranking: where each child stands at last, best first: by the rung it reached, then by fitness, then by place.
        trained: every training, in order.
        full_steps: that training every child to the end would have cost.
    """

    ranking: tuple[Standing, ...]
    trained: tuple[Standing, ...]
    full_steps: int

    @property
    def steps(self) -> int:
        """Paid: of all trainings together."""
        return sum(each.child.steps for each in self.trained)

    @property
    def scores(self) -> list[int]:
        """A number for each child by place, larger for the better ranked."""
        below = {standing.place: n for n, standing in enumerate(reversed(self.ranking))}
        return [below[place] for place in sorted(below)]


def ladder(count: int, steps: int) -> tuple[Rung, ...]:
    """Rungs from ``count`` children to the few that train all ``steps``.

    >>> [(rung.count, rung.steps) for rung in ladder(50, 2700)]
    [(50, 100), (17, 300), (6, 900), (2, 2700)]

    Raises:
        SearchError: too few children or steps for that many rungs.
    """
    shares = [FACTOR**n for n in range(RUNGS)]
    rungs = tuple(Rung(-(-count // share), steps * share // shares[-1]) for share in shares)
    check_rungs(rungs, count)
    return rungs


def check_rungs(rungs: Sequence[Rung], count: int) -> None:
    """Refuse rungs that do not suit ``count`` children.

    Raises:
        SearchError: no rung, a first one that is too narrow, or one that is no narrower and longer than the last.
    """
    if not rungs or rungs[0].count < count:
        raise SearchError(f"The first rung must take all {count} children.")
    if rungs[0].steps < 1 or rungs[-1].count < 1:
        raise SearchError("Every rung must train at least one child for at least one step.")
    for one, other in itertools.pairwise(rungs):
        if other.count >= one.count or other.steps <= one.steps:
            raise SearchError(
                f"A rung of {other.count} children and {other.steps} steps cannot follow one of {one.count} and "
                f"{one.steps}; it must take fewer and train longer."
            )


def halve(
    children: Sequence[Child], rungs: Sequence[Rung], evaluate: Evaluator, report: Report | None = None
) -> Halved:
    """Train children by successive halving.

    Args:
        children: their steps do not matter, the rungs' do.
        rungs: from all children to few.
        evaluate: trains and scores; one call a rung.
        report: told after every rung.

    Raises:
        SearchError: rungs that do not suit the children.
    """
    check_rungs(rungs, len(children))
    first = [dataclasses.replace(child, steps=rungs[0].steps) for child in children]
    trained = zip(first, evaluate(first), strict=True)
    return climb([Standing(place, 0, *each) for place, each in enumerate(trained)], rungs, evaluate, report)


def climb(
    first: Sequence[Standing], rungs: Sequence[Rung], evaluate: Evaluator, report: Report | None = None
) -> Halved:
    """From the first rung, where every child stands already, to the last; see ``halve``."""
    check_rungs(rungs, len(first))
    last, trained = {standing.place: standing for standing in first}, list(first)
    total = sum(min(rung.count, len(first)) for rung in rungs)
    for number, (before, rung) in enumerate(itertools.pairwise(rungs), 1):
        going = [s for s in ranked(last.values()) if s.rung == number - 1][: rung.count]
        children = [_going_on(standing.child, number, rung.steps - before.steps) for standing in going]
        results = zip(going, children, evaluate(children), strict=True)
        reached = [Standing(standing.place, number, child, result) for standing, child, result in results]
        last |= {standing.place: standing for standing in reached}
        trained += reached
        if report is not None:
            best = fitness(ranked(last.values())[0].result)
            report(Stage(STAGE, len(trained), total, best if math.isfinite(best) else None))
    return Halved(tuple(ranked(last.values())), tuple(trained), len(first) * rungs[-1].steps)


def ranked(standings: Iterable[Standing]) -> list[Standing]:
    """Best first: by rung, then fitness, then place."""
    return sorted(standings, key=lambda s: (-s.rung, -fitness(s.result), s.place))


def fitness(result: Result) -> float:
    """What children are compared by: the mean Dice; one that has none comes last."""
    return -math.inf if math.isnan(result.mean) else result.mean


def _going_on(child: Child, rung: int, steps: int) -> Child:
    """The child from its own weights; another seed, or it would see the windows of the rung before again."""
    seed = random.Random(f"{child.seed} rung {rung}").getrandbits(31)
    return dataclasses.replace(child, steps=steps, seed=seed, start=child.key)
