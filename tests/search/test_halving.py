from __future__ import annotations

import doctest
import math
from collections.abc import Sequence

import pytest

from hilum_search import halving
from hilum_search.architecture import C2FNAS
from hilum_search.children import Child, Result
from hilum_search.errors import SearchError
from hilum_search.halving import Halved, Rung, halve, ladder
from hilum_search.progress import Stage

RUNGS = (Rung(8, 10), Rung(3, 30), Rung(1, 90))


def _children(count: int) -> list[Child]:
    return [Child(C2FNAS(n + 1, (0, 1, 0), ("3d",) * 3), 0, seed=4) for n in range(count)]


class _Judge:
    """Scores children by their filters and remembers who came."""

    def __init__(self, worth: Sequence[float]) -> None:
        self.worth = worth
        self.calls: list[list[Child]] = []

    def __call__(self, children: Sequence[Child]) -> list[Result]:
        self.calls.append(list(children))
        return [Result(mean=self.worth[_place(child)]) for child in children]


def _place(child: Child) -> int:
    assert isinstance(child.architecture, C2FNAS)
    return child.architecture.filters - 1


def _places(halved: Halved) -> list[int]:
    return [standing.place for standing in halved.ranking]


def test_the_best_of_each_rung_go_on_for_the_steps_that_are_missing() -> None:
    judge = _Judge([0.1, 0.8, 0.3, 0.7, 0.2, 0.9, 0.4, 0.6])
    found = halve(_children(8), RUNGS, judge)
    assert [[_place(child) for child in call] for call in judge.calls] == [list(range(8)), [5, 1, 3], [5]]
    assert [{child.steps for child in call} for call in judge.calls] == [{10}, {20}, {60}]
    assert found.steps == 8 * 10 + 3 * 20 + 60
    assert found.full_steps == 8 * 90
    assert _places(found) == [5, 1, 3, 7, 6, 2, 4, 0]
    assert [standing.rung for standing in found.ranking] == [2, 1, 1, 0, 0, 0, 0, 0]


def test_a_child_goes_on_from_its_own_weights_and_sees_other_windows() -> None:
    judge = _Judge([0.1, 0.2, 0.3])
    halve(_children(3), RUNGS, judge)
    first, second, third = judge.calls
    assert [child.start for child in first] == [""] * 3
    assert [child.start for child in second] == [first[2].key, first[1].key, first[0].key][: len(second)]
    assert third[0].start == second[0].key
    assert len({first[2].seed, second[0].seed, third[0].seed}) == 3
    assert first[2].architecture == second[0].architecture == third[0].architecture


def test_a_higher_rung_ranks_before_a_better_score_on_a_lower_one() -> None:
    def fading(children: Sequence[Child]) -> list[Result]:
        return [Result(mean=(0.5 + 0.1 * _place(child)) / (1 if child.steps == 10 else 10)) for child in children]

    found = halve(_children(4), (Rung(4, 10), Rung(2, 30)), fading)
    assert _places(found) == [3, 2, 1, 0]
    assert found.ranking[0].result.mean < found.ranking[-1].result.mean


def test_scores_are_by_place_and_larger_for_the_better_ranked() -> None:
    found = halve(_children(4), (Rung(4, 10), Rung(1, 20)), _Judge([0.2, 0.9, 0.1, 0.4]))
    assert found.scores == [1, 3, 0, 2]


def test_equals_keep_their_order_and_a_child_without_a_score_is_last() -> None:
    found = halve(_children(4), (Rung(4, 10), Rung(2, 20)), _Judge([0.5, math.nan, 0.5, 0.5]))
    assert _places(found) == [0, 2, 3, 1]


def test_fewer_children_than_the_rungs_would_take_all_go_on() -> None:
    found = halve(_children(2), RUNGS, _Judge([0.1, 0.2]))
    assert found.steps == 2 * 10 + 2 * 20 + 60


def test_every_rung_is_reported_with_the_trainings_done() -> None:
    told: list[Stage] = []
    halve(_children(8), RUNGS, _Judge([n / 10 for n in range(8)]), told.append)
    assert [(stage.name, stage.done, stage.total, stage.best) for stage in told] == [
        ("halving", 11, 12, 0.7),
        ("halving", 12, 12, 0.7),
    ]


def test_the_usual_ladder_costs_less_than_a_sixth() -> None:
    found = halve(_children(50), ladder(50, 2700), _Judge([n / 100 for n in range(50)]))
    assert _places(found)[0] == 49
    assert found.steps < found.full_steps / 6


@pytest.mark.parametrize(
    ("rungs", "reason"),
    [
        ((), "must take all 5"),
        ((Rung(4, 10),), "must take all 5"),
        ((Rung(5, 0),), "at least one step"),
        ((Rung(5, 10), Rung(0, 20)), "at least one child"),
        ((Rung(5, 10), Rung(5, 20)), "must take fewer and train longer"),
        ((Rung(5, 10), Rung(4, 10)), "must take fewer and train longer"),
    ],
)
def test_rungs_that_do_not_suit_are_refused(rungs: tuple[Rung, ...], reason: str) -> None:
    judge = _Judge([0.0] * 5)
    with pytest.raises(SearchError, match=reason):
        halve(_children(5), rungs, judge)
    assert judge.calls == []


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(halving).failed == 0
