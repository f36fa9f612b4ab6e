"""Grids: spacing, orientation, and what is refused."""

from __future__ import annotations

import doctest
import itertools

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilum_inference import volume
from hilum_inference.errors import GeometryError
from hilum_inference.volume import Grid, Volume


def test_doctests() -> None:
    assert doctest.testmod(volume).failed == 0


@given(
    axes=st.permutations([0, 1, 2]),
    signs=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    tilt=st.tuples(*[st.floats(-0.4, 0.4)] * 3),
)
def test_orientation_equals_nibabels_for_oblique_grids(
    axes: list[int], signs: tuple[int, int, int], tilt: tuple[float, float, float]
) -> None:
    a, b, c = tilt
    turn = np.eye(3)
    for (i, j), angle in zip(itertools.combinations(range(3), 2), (a, b, c), strict=True):
        step = np.eye(3)
        step[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        turn = turn @ step
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.eye(3)[:, axes] * np.array(signs) * np.array([0.7, 0.8, 2.5])
    grid = Grid((5, 6, 7), affine)
    assert grid.orientation == "".join(nibabel.orientations.aff2axcodes(affine))
    np.testing.assert_allclose(grid.spacing, (0.7, 0.8, 2.5))
    assert not grid.is_sheared


@pytest.mark.parametrize(
    ("matrix", "code"),
    [
        (np.full((4, 4), np.nan), "bad_affine"),
        (np.diag([1.0, 1, 0, 1]), "bad_spacing"),
        (np.diag([1.0, 1, 60, 1]), "bad_spacing"),
        (np.diag([1e300, 1, 1, 1]), "bad_spacing"),
        (np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "bad_affine"),
    ],
)
def test_grids_that_cannot_be_placed_are_refused(
    matrix: np.ndarray[tuple[int, int], np.dtype[np.float64]], code: str
) -> None:
    with pytest.raises(GeometryError) as caught:
        Grid((4, 4, 4), matrix)
    assert caught.value.code == code


def test_a_sheared_grid_says_so_and_two_close_grids_are_one() -> None:
    sheared = np.eye(4)
    sheared[1, 2] = 0.1
    assert Grid((4, 4, 4), sheared).is_sheared
    shifted = np.eye(4)
    shifted[0, 3] = 5e-4
    assert Grid((4, 4, 4), np.eye(4)).close_to(Grid((4, 4, 4), shifted))
    assert not Grid((4, 4, 4), np.eye(4)).close_to(Grid((4, 4, 5), np.eye(4)))


def test_values_are_rescaled_and_shapes_must_agree() -> None:
    stored = np.arange(8, dtype=np.uint8).reshape(1, 2, 2, 2)
    image = Volume(stored, Grid((2, 2, 2), np.eye(4)), slope=2.0, intercept=-3.0)
    np.testing.assert_array_equal(image.values(), stored[0] * 2.0 - 3.0)
    with pytest.raises(GeometryError):
        Volume(stored, Grid((2, 2, 3), np.eye(4)))
    with pytest.raises(GeometryError, match="3 axes"):
        Volume.from_array(np.zeros((2, 2)))
