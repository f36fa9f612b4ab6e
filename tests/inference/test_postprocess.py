"""Largest part and crumbs; statistics in millilitres and millimetres."""

from __future__ import annotations

import numpy as np
import pytest
from hilum_testing import manifest

from hilum_inference.manifest import Label
from hilum_inference.postprocess import clean
from hilum_inference.statistics import label_statistics
from hilum_inference.volume import Grid


def test_only_the_largest_part_of_the_named_label_stays() -> None:
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[1:6, 1:6, 1:6] = 1
    labels[10:13, 10:13, 10:13] = 1
    labels[15:17, 1:3, 1:3] = 2
    labels[15:17, 10:18, 1:3] = 2
    clean(labels, manifest(post_processing={"largest_component": ["soft"]}), 1.0)
    assert (labels == 1).sum() == 125
    assert (labels == 2).sum() == 8 + 32


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_parts_on_one_line_are_parts_too(axis: int) -> None:
    labels = np.zeros((5, 5, 5), np.uint8)
    line: list[int | slice] = [2, 2, 2]
    line[axis] = slice(0, 5)
    labels[tuple(line)] = [1, 0, 1, 1, 0]
    clean(labels, manifest(post_processing={"largest_component": ["soft"]}), 1.0)
    assert labels[tuple(line)].tolist() == [0, 0, 1, 1, 0]


def test_crumbs_below_the_volume_go_for_every_label_and_diagonal_neighbours_hold() -> None:
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[0, 0, 0] = labels[1, 1, 1] = 1
    labels[5, 5, 5] = 2
    clean(labels, manifest(post_processing={"smallest_ml": 0.002}), 0.001)
    assert (labels == 1).sum() == 2
    assert (labels == 2).sum() == 0


def test_statistics_equal_plain_counting_on_any_memory_order() -> None:
    random = np.random.default_rng(0)
    labels = (random.integers(0, 4, (9, 8, 7)) * (random.random((9, 8, 7)) > 0.7)).astype(np.uint8)
    labels[labels == 3] = 0
    grid = Grid((9, 8, 7), np.array([[0, -2, 0, 5], [3, 0, 0, 1], [0, 0, 1.5, 2], [0, 0, 0, 1.0]]))
    wanted = [Label(name="a", id=1), Label(name="b", id=2), Label(name="c", id=3)]
    for ordered in (labels, np.asfortranarray(labels)):
        a, b, c = label_statistics(ordered, grid, wanted)
        places = np.argwhere(labels == 1)
        assert a.voxels == len(places)
        assert np.isclose(a.ml, len(places) * 9 / 1000)
        assert a.box == tuple(zip(places.min(0), places.max(0), strict=True))
        np.testing.assert_allclose(a.centroid_mm or (), (grid.affine @ [*places.mean(0), 1])[:3])
        assert b.voxels == (labels == 2).sum()
        assert (c.voxels, c.box, c.centroid_mm) == (0, None, None)
