from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from hilum_search import metrics
from hilum_search.metrics import agreement, agreements, dice


def box(first: int, last: int, shape: tuple[int, int, int] = (40, 30, 20)) -> NDArray[np.bool_]:
    mask = np.zeros(shape, bool)
    mask[first:last, 8:20, 6:14] = True
    return mask


def ball(radius_mm: float, spacing: tuple[float, float, float], move_mm: float = 0.0) -> NDArray[np.bool_]:
    i, j, k = np.ogrid[:72, :72, :72]
    x, y, z = spacing
    inside: NDArray[np.bool_] = ((i - 36) * x - move_mm) ** 2 + ((j - 36) * y) ** 2 + ((k - 36) * z) ** 2 < radius_mm**2
    return inside


def test_dice_counts_voxels_and_is_nan_where_there_are_none() -> None:
    answer, truth = np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2])
    scores = dice(answer, truth, [1, 2, 3])
    assert (scores[1], scores[2]) == (2 / 3, 2 / 3)
    assert math.isnan(scores[3])


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.7, 0.7), (3.0, 0.8, 0.8)])
def test_a_moved_box_lies_so_many_mm_away(spacing: tuple[float, float, float]) -> None:
    found = agreement(box(14, 24), box(10, 20), spacing)
    assert found.dice == pytest.approx(0.6)
    assert found.hd95_mm == pytest.approx(4 * spacing[0], rel=1e-6)  # the ends; the sides lie on each other
    assert 0 < found.assd_mm < 4 * spacing[0]
    assert (found.reference, found.answer) == (960, 960)


def test_slabs_that_are_moved_along_the_coarse_axis_are_far_apart_everywhere() -> None:
    one, other = np.zeros((30, 30, 12), bool), np.zeros((30, 30, 12), bool)
    one[:, :, 3], other[:, :, 5] = True, True
    found = agreement(one, other, (0.5, 0.5, 5.0))
    assert (found.dice, found.assd_mm, found.hd95_mm) == (0.0, 10.0, 10.0)
    # Surface Dice looks at faces: those that look at each other are 5 mm apart, the outer ones 10 mm from the nearest.
    nsd = [agreement(one, other, (0.5, 0.5, 5.0), tolerance).nsd for tolerance in (4.9, 5.0, 9.9, 10.0)]
    assert nsd[0] < 0.2 and nsd[1:3] == pytest.approx([0.5, 0.5], abs=0.1) and nsd[3] == 1.0


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.7, 1.4)])
def test_balls_within_each_other_are_a_shell_apart(spacing: tuple[float, float, float]) -> None:
    found = agreement(ball(20, spacing), ball(16, spacing), spacing, 2.0)
    voxel = max(spacing)
    assert found.dice == pytest.approx(2 * 16**3 / (20**3 + 16**3), abs=0.02)
    assert found.assd_mm == pytest.approx(4, abs=voxel / 2)
    assert found.hd95_mm == pytest.approx(4, abs=voxel)
    assert found.nsd < 0.1
    assert agreement(ball(20, spacing), ball(16, spacing), spacing, 5.0).nsd == 1.0


def test_the_surface_dice_of_moved_balls_is_the_share_of_area_that_moved_little() -> None:
    # A point of the unit sphere with normal n lies about move * |n_x| from the other; |n_x| is spread evenly over area.
    spacing, move = (1.0, 1.0, 1.0), 6.0
    nsd = {t: agreement(ball(24, spacing, move), ball(24, spacing), spacing, t).nsd for t in (2.0, 3.0, 4.0)}
    assert nsd[2.0] < 0.5 < nsd[3.0]
    assert all(share == pytest.approx(tolerance / move, abs=0.8 / move) for tolerance, share in nsd.items())


def test_equal_masks_agree_and_the_edge_of_the_image_is_surface() -> None:
    full = np.ones((6, 6, 6), bool)
    found = agreement(full, full, (1.0, 2.0, 3.0))
    assert (found.dice, found.assd_mm, found.hd95_mm, found.nsd) == (1.0, 0.0, 0.0, 1.0)
    cut = full.copy()
    cut[5] = False
    assert agreement(cut, full, (1.0, 2.0, 3.0)).hd95_mm == 1.0


def test_where_one_is_empty_there_is_no_distance_and_where_both_are_no_score() -> None:
    nothing, some = np.zeros((9, 9, 9), np.uint8), np.zeros((9, 9, 9), np.uint8)
    some[2:5, 2:5, 2:5] = 2
    for pair in ((nothing, some), (some, nothing)):
        one = agreements(*pair, [1, 2], (1.0, 1.0, 1.0))
        assert (one[2].dice, one[2].nsd) == (0.0, 0.0)
        assert math.isnan(one[2].assd_mm) and math.isnan(one[2].hd95_mm)
        assert all(math.isnan(v) for v in (one[1].dice, one[1].assd_mm, one[1].hd95_mm, one[1].nsd))
    assert (one[2].reference, one[2].answer) == (0, 27)


def test_only_the_box_around_a_label_matters() -> None:
    answer, truth = np.zeros((60, 50, 40), np.uint16), np.zeros((60, 50, 40), np.uint16)
    answer[20:58, 20:40, 20:30], truth[22:58, 20:40, 20:30] = 1, 1
    answer[:4, :4, :4], truth[:4, 1:4, :4] = 3, 3
    found = agreements(answer, truth, [1, 2, 3], (1.0, 1.5, 2.0))
    for label in (1, 3):
        assert found[label] == agreement(answer == label, truth == label, (1.0, 1.5, 2.0))


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(metrics).failed == 0
