from __future__ import annotations

import doctest

from hilum_search import space
from hilum_search.architecture import C2FNAS_PANC, check_walk


def test_the_preset_holds_462_topologies_all_valid_and_different() -> None:
    found = list(space.topologies(12))
    assert len(found) == len(set(found)) == 462
    assert C2FNAS_PANC.levels in found
    for levels in found:
        check_walk(levels)


def test_ten_of_them_are_symmetric() -> None:
    assert sum(levels == levels[::-1] for levels in space.topologies(12)) == 10


def test_inputs_of_the_reconstruction() -> None:
    assert space.wiring(C2FNAS_PANC.levels) == (
        (0,), (1, 0), (2,), (3,), (4,), (5,), (6, 5), (7,), (8, 4), (9, 2), (10,), (11, 10),
    )  # fmt: skip


def test_stacked_hourglasses_come_from_the_same_generator() -> None:
    shape = space.hourglasses(2, 2)
    found = list(space.topologies(12, shape))
    assert len(found) == len(set(found)) == 165
    assert space.size(12, 3, shape) == 165 * 3**12
    for levels in found:
        inputs = space.wiring(levels)
        assert all(i < cell for cell, read in enumerate(inputs, start=1) for i in read)
    assert space.wiring(shape)[-1] == (8, 5)  # the second U's skip comes from its own way down


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(space).failed == 0
