"""The coarse-to-fine space: which level walks there are, and what each cell reads.

Source: C2FNAS (Yu et al., CVPR 2020), sections on the topology and the cell; the wiring rule is our reconstruction.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from hilum_search.architecture import BASIC, DEEPEST_LEVEL, check_walk

SHAPE = (*range(DEEPEST_LEVEL + 1), *reversed(range(DEEPEST_LEVEL)))
"""The U of the paper's preset: down to the deepest level and up again, each level visited at least once."""


def hourglasses(count: int, deepest: int = DEEPEST_LEVEL) -> tuple[int, ...]:
    """The shape of ``count`` U's one after the other, each down to level ``deepest``.

    >>> hourglasses(2, 2)
    (0, 1, 2, 1, 0, 1, 2, 1, 0)
    """
    return (0, *([*range(1, deepest + 1), *reversed(range(deepest))] * count))


def topologies(cells: int = 12, shape: tuple[int, ...] = SHAPE) -> Iterator[tuple[int, ...]]:
    """Every level walk of ``cells`` cells along ``shape``, shortest stays first.

    >>> len(list(topologies(12)))
    462
    >>> list(topologies(7))
    [(0, 1, 2, 3, 2, 1, 0)]
    """
    for cuts in itertools.combinations(range(1, cells), len(shape) - 1):
        bounds = (0, *cuts, cells)
        stays = (b - a for a, b in itertools.pairwise(bounds))
        yield tuple(itertools.chain.from_iterable([level] * stay for level, stay in zip(shape, stays, strict=True)))


def size(cells: int = 12, operators: int = len(BASIC), shape: tuple[int, ...] = SHAPE) -> int:
    """Number of architectures of ``cells`` cells: topologies times operator choices.

    >>> size(12) == 462 * 3**12
    True
    """
    return math.comb(cells - 1, len(shape) - 1) * int(operators**cells)


def wiring(levels: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """The outputs that each cell reads, one tuple a cell; 0 is the stem, i the i-th cell, the previous output first.

    The second input is the output before the previous one where it has the cell's level, else, on a step up, the last
    output of that level on the way down.

    >>> wiring((0, 0, 1, 0))
    ((0,), (1, 0), (2,), (3, 2))
    """
    check_walk(levels)
    placed = (0, *levels)  # level of every output, the stem's first
    inputs: list[tuple[int, ...]] = []
    for cell in range(1, len(placed)):
        second = _second_input(placed, cell)
        inputs.append((cell - 1,) if second is None else (cell - 1, second))
    return tuple(inputs)


def _second_input(placed: tuple[int, ...], cell: int) -> int | None:
    level = placed[cell]
    if cell >= 2 and placed[cell - 2] == level:
        return cell - 2
    if placed[cell - 1] > level:
        return max(i for i in range(cell - 1) if placed[i] == level)
    return None
