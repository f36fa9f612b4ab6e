"""Compound scaling: a found network with more or fewer cells, filters and voxels a window, under a budget.

Source: the C2FNAS talk (WACV 2020), third step: a grid over patch size, number of cells and number of filters. How a
topology is stretched to another number of cells is our choice.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from hilum_search.architecture import C2FNAS, Architecture
from hilum_search.errors import ArchitectureError

if TYPE_CHECKING:
    from hilum_search.cost import Cost

Window = tuple[int, int, int]
"""Sides D, H, W in voxels."""
Latency = Callable[[Architecture, Window], float]
"""Milliseconds that a network takes for one window."""
Evaluate = Callable[[Sequence[tuple[Architecture, Window]]], Sequence[float]]
"""Mean Dice of networks trained and scored with these windows, in the order asked."""


@dataclass(frozen=True)
class Axes:
    """The values that are combined: windows, numbers of cells, filters of the stem."""

    windows: Sequence[Window]
    cells: Sequence[int]
    filters: Sequence[int]


@dataclass(frozen=True)
class Budget:
    """The most that one window may take; None: no limit.

    Attributes:
        macs: multiply-accumulates.
        latency_ms: by the caller's measure.
    """

    macs: int | None = None
    latency_ms: float | None = None


@dataclass(frozen=True)
class Scaled:
    """A network of the grid, its window and what one window costs; ``latency_ms`` None where nobody measured."""

    architecture: C2FNAS
    window: Window
    cost: Cost
    latency_ms: float | None = None


@dataclass(frozen=True)
class Scaling:
    """The best network of a grid, and all with their scores, best first."""

    best: Scaled
    table: tuple[tuple[Scaled, float], ...]


def stretch(architecture: C2FNAS, cells: int) -> C2FNAS:
    """The architecture with another number of cells, along the same shape (our choice).

    The stay at each level of the walk keeps its share of the cells, at least one cell; what is left over goes to the
    stay that lacks most of its share, of equals to the shallowest, then to the first. Each cell takes the operator of
    the old cell that lies at the same place of the same stay.

    Raises:
        ArchitectureError: fewer cells than the walk has stays.

    >>> stretch(C2FNAS(8, (0, 0, 1, 0), ("2d", "3d", "p3d", "2d")), 6)
    C2FNAS(filters=8, levels=(0, 0, 0, 1, 0, 0), operators=('2d', '3d', '3d', 'p3d', '2d', '2d'), \
full_resolution_skip=False)
    """
    stays = [(level, len(list(same))) for level, same in itertools.groupby(architecture.levels)]
    if cells < len(stays):
        raise ArchitectureError(f"The walk visits {len(stays)} levels; {cells} cells are too few for it.")
    lengths = _lengths(stays, cells)
    levels = tuple(level for (level, _), new in zip(stays, lengths, strict=True) for _ in range(new))
    starts = itertools.accumulate((old for _, old in stays), initial=0)
    operators = tuple(
        architecture.operators[start + (2 * place + 1) * old // (2 * new)]
        for start, (_, old), new in zip(starts, stays, lengths, strict=False)
        for place in range(new)
    )
    return dataclasses.replace(architecture, levels=levels, operators=operators)


def grid(
    base: C2FNAS, axes: Axes, in_channels: int, classes: int, budget: Budget, latency: Latency | None = None
) -> list[Scaled]:
    """Every combination that keeps the budget, in the order of windows, cells, filters.

    Args:
        base: what is scaled.
        axes: the values combined; a value given twice counts once.
        in_channels, classes: of the network, background among the classes.
        budget: of one window.
        latency: asked of those only that keep the budget of multiply-accumulates; None: no latency is known.

    Raises:
        ArchitectureError: nothing to combine, too few cells, a window that is no multiple of the network's stride, a
            budget of latency without a measure.
        TooLargeError: a budget that no combination keeps.
    """
    if budget.latency_ms is not None and latency is None:
        raise ArchitectureError("A budget of latency needs a measure of it: give latency, or limit macs.")
    every = _combined(base, axes, in_channels, classes)
    light = [one for one in every if budget.macs is None or one.cost.macs <= budget.macs]
    if not light:
        raise _nothing(min(every, key=lambda one: one.cost.macs))
    if latency is None:
        return light
    timed = [dataclasses.replace(one, latency_ms=latency(one.architecture, one.window)) for one in light]
    kept = [one for one in timed if budget.latency_ms is None or _ms(one) <= budget.latency_ms]
    if not kept:
        raise _nothing(min(timed, key=_ms))
    return kept


def scale(candidates: Sequence[Scaled], evaluate: Evaluate) -> Scaling:
    """Evaluate the candidates; of equal ones the one of fewer multiply-accumulates is the better.

    Raises:
        ArchitectureError: no candidate.
    """
    if not candidates:
        raise ArchitectureError("There is no candidate to scale to.")
    scores = evaluate([(one.architecture, one.window) for one in candidates])
    rows = [(one, float(score)) for one, score in zip(candidates, scores, strict=True)]
    rows.sort(key=lambda row: (math.inf if math.isnan(row[1]) else -row[1], row[0].cost.macs))
    return Scaling(rows[0][0], tuple(rows))


def _lengths(stays: Sequence[tuple[int, int]], cells: int) -> list[int]:
    """New lengths of (level, old length), one at least, ``cells`` in all."""
    whole = sum(old for _, old in stays)
    lengths = [1] * len(stays)

    def lack(place: int) -> tuple[Fraction, int, int]:
        level, old = stays[place]
        return Fraction(old * cells, whole) - lengths[place], -level, -place

    for _ in range(cells - len(stays)):
        lengths[max(range(len(stays)), key=lack)] += 1
    return lengths


def _combined(base: C2FNAS, axes: Axes, in_channels: int, classes: int) -> list[Scaled]:
    from hilum_search.cost import cost

    found: dict[tuple[C2FNAS, Window], Scaled] = {}
    for window, cells, filters in itertools.product(axes.windows, axes.cells, axes.filters):
        network = dataclasses.replace(stretch(base, cells), filters=filters)
        if any(side < 1 or side % network.stride for side in window):
            raise ArchitectureError(
                f"The window {window} must have sides that are multiples of {network.stride}, the network's stride."
            )
        if (network, window) not in found:
            found[network, window] = Scaled(network, window, cost(network, in_channels, classes, window))
    if not found:
        raise ArchitectureError("The grid is empty: give at least one window, one number of cells and one of filters.")
    return list(found.values())


def _ms(one: Scaled) -> float:
    return math.inf if one.latency_ms is None else one.latency_ms


class TooLargeError(ArchitectureError):
    """No size of a grid keeps the budget."""


def _nothing(smallest: Scaled) -> TooLargeError:
    sides = "x".join(map(str, smallest.window))
    time = "" if smallest.latency_ms is None else f" and {smallest.latency_ms:.3g} ms"
    return TooLargeError(
        f"No network of the grid keeps the budget: the smallest, with {len(smallest.architecture.levels)} cells, "
        f"{smallest.architecture.filters} filters and a window of {sides}, takes {smallest.cost.macs / 1e9:.3g} GMAC"
        f"{time}; allow more or give smaller values."
    )
