from __future__ import annotations

import dataclasses
import doctest
import itertools
import math
import random
import subprocess
import sys
from collections.abc import Sequence

import pytest

from hilum_search import space
from hilum_search.architecture import BASIC, C2FNAS, C2FNAS_PANC, C2FNAS_SMALL, Architecture
from hilum_search.c2fnas import scale as module
from hilum_search.c2fnas.scale import Axes, Budget, Scaled, Window, grid, scale, stretch
from hilum_search.cost import cost
from hilum_search.errors import ArchitectureError

BASE = C2FNAS(4, (0, 0, 1, 0), ("2d", "3d", "p3d", "2d"))
AXES = Axes([(8, 8, 8), (16, 16, 8)], [3, 5], [2, 4])
FEW = Axes([(8, 8, 16), (8, 8, 8)], [3], [2])


@pytest.fixture(scope="module")
def every() -> list[Scaled]:
    return grid(BASE, AXES, 1, 3, Budget())


def walks(cells: int) -> list[tuple[int, ...]]:
    return list(space.topologies(cells))


def test_the_example_holds() -> None:
    assert doctest.testmod(module).attempted > 0
    assert doctest.testmod(module).failed == 0


def test_as_many_cells_is_the_same_network() -> None:
    chance = random.Random(0)
    for levels in walks(12)[::7]:
        one = C2FNAS(8, levels, tuple(chance.choice(BASIC) for _ in range(12)), full_resolution_skip=True)
        assert stretch(one, 12) == one


@pytest.mark.parametrize("cells", [7, 8, 11, 13, 18, 24])
def test_every_stretch_is_a_walk_of_the_space(cells: int) -> None:
    valid = set(walks(cells))
    for levels in walks(12)[::11]:
        found = stretch(C2FNAS(8, levels, ("3d",) * 12), cells)
        assert found.levels in valid
        assert len(found.operators) == cells


def test_an_hourglass_keeps_its_shape() -> None:
    shape = space.hourglasses(2, 1)
    levels = next(walk for walk in space.topologies(9, shape) if walk != tuple(sorted(walk)))
    found = stretch(C2FNAS(8, levels, ("3d",) * 9), 12)
    assert found.levels in set(space.topologies(12, shape))


def test_stays_keep_their_share_and_the_rest_goes_to_the_shallow() -> None:
    assert stretch(C2FNAS_PANC, 24).levels == tuple(level for level in C2FNAS_PANC.levels for _ in range(2))
    assert stretch(C2FNAS(8, (0, 1, 0), ("2d", "3d", "p3d")), 4).levels == (0, 0, 1, 0)
    assert stretch(C2FNAS(8, (0, 1, 1, 1, 1, 0), ("2d",) * 6), 3).levels == (0, 1, 0)
    assert stretch(C2FNAS(8, (0, 1, 1, 1, 1, 0), ("2d",) * 6), 9).levels == (0, 0, 1, 1, 1, 1, 1, 1, 0)


def test_operators_follow_their_place_in_the_stay() -> None:
    assert stretch(C2FNAS_PANC, 24).operators == tuple(name for name in C2FNAS_PANC.operators for _ in range(2))
    assert stretch(BASE, 6).operators == ("2d", "3d", "3d", "p3d", "2d", "2d")
    back = stretch(C2FNAS(8, (0, 0, 0, 1, 0), ("2d", "3d", "2d", "p3d", "3d")), 3)
    assert back.operators == ("3d", "p3d", "3d")  # the middle of three


def test_too_few_cells_are_refused() -> None:
    with pytest.raises(ArchitectureError, match="visits 7 levels; 6 cells are too few"):
        stretch(C2FNAS_PANC, 6)


def test_the_grid_holds_every_combination_with_its_cost(every: list[Scaled]) -> None:
    assert [(one.window, len(one.architecture.levels), one.architecture.filters) for one in every] == list(
        itertools.product(AXES.windows, AXES.cells, AXES.filters)
    )
    assert every[-1] == Scaled(every[-1].architecture, (16, 16, 8), cost(every[-1].architecture, 1, 3, (16, 16, 8)))
    assert grid(BASE, Axes([(8, 8, 8)] * 2, [3, 3], [2]), 1, 3, Budget()) == every[:1]


def test_the_grid_keeps_what_else_the_base_has() -> None:
    (found,) = grid(C2FNAS_SMALL, Axes([(16, 16, 16)], [6], [4]), 1, 3, Budget())
    assert found.architecture == dataclasses.replace(C2FNAS_SMALL, filters=4)


def test_a_budget_leaves_out_what_is_over_it(every: list[Scaled]) -> None:
    three = [one for one in every if len(one.architecture.levels) == 3]
    limit = sorted(one.cost.macs for one in three)[2]
    timed: list[Window] = []

    def latency(architecture: Architecture, window: Window) -> float:
        timed.append(window)
        return float(math.prod(window))

    quick = grid(BASE, dataclasses.replace(AXES, cells=[3]), 1, 3, Budget(limit, 600.0), latency)
    light = [one for one in three if one.cost.macs <= limit]
    assert timed == [one.window for one in light]  # what has too many multiply-accumulates is not timed
    assert quick == [dataclasses.replace(one, latency_ms=512.0) for one in light if one.window == (8, 8, 8)]
    assert 0 < len(quick) < len(light) < len(three)


def test_a_budget_that_nobody_keeps_names_the_smallest() -> None:
    with pytest.raises(ArchitectureError, match=r"3 cells, 2 filters and a window of 8x8x8, takes \S+ GMAC; allow"):
        grid(BASE, FEW, 1, 3, Budget(macs=10))
    with pytest.raises(ArchitectureError, match=r"window of 8x8x8, takes \S+ GMAC and 8 ms; allow"):
        grid(BASE, FEW, 1, 3, Budget(latency_ms=1.0), lambda _, window: window[2])


@pytest.mark.parametrize(
    ("axes", "budget", "message"),
    [
        (Axes([(8, 8, 6)], [3], [2]), Budget(), "multiples of 4"),
        (Axes([], [3], [2]), Budget(), "grid is empty"),
        (Axes([(8, 8, 8)], [2], [2]), Budget(), "too few"),
        (AXES, Budget(latency_ms=3.0), "needs a measure"),
    ],
    ids=["stride", "empty", "cells", "latency"],
)
def test_a_grid_that_cannot_be_is_refused(axes: Axes, budget: Budget, message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        grid(BASE, axes, 1, 3, budget)


def test_the_best_wins_and_of_equals_the_lighter(every: list[Scaled]) -> None:
    asked: list[tuple[Architecture, Window]] = []

    def evaluate(pairs: Sequence[tuple[Architecture, Window]]) -> list[float]:
        asked.extend(pairs)
        return [math.nan, *(0.5 for _ in pairs[1:-1]), 0.2]

    found = scale(every, evaluate)
    assert asked == [(one.architecture, one.window) for one in every]
    assert found.best == min(every[1:-1], key=lambda one: one.cost.macs)
    assert [one for one, _ in found.table[-2:]] == [every[-1], every[0]]
    assert len(found.table) == len(every)
    with pytest.raises(ArchitectureError, match="no candidate"):
        scale([], evaluate)


def test_a_wrong_number_of_scores_is_no_scaling() -> None:
    one = Scaled(BASE, (8, 8, 8), cost(BASE, 1, 3, (8, 8, 8)))
    with pytest.raises(ValueError, match="zip"):
        scale([one], lambda _: [])


def test_stretching_needs_no_torch() -> None:
    code = "import sys, hilum_search.c2fnas.scale; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
