"""Axis maps against scipy, scikit-image and nibabel."""

from __future__ import annotations

import doctest
import itertools
from typing import Any

import nibabel
import numpy as np
import pytest
from scipy import ndimage
from skimage.transform import resize

from hilum_inference import geometry
from hilum_inference.geometry import AxisMap, fit
from hilum_inference.manifest import Geometry
from hilum_inference.volume import Grid

ORIENTATIONS = [
    "".join(letters) for axes in itertools.permutations(("RL", "AP", "SI")) for letters in itertools.product(*axes)
]


def test_doctests() -> None:
    assert doctest.testmod(geometry).failed == 0


@pytest.mark.parametrize(("size", "have", "want"), [(175, 0.5, 1.4), (10, 0.6, 0.8), (26, 0.6, 0.8), (33, 0.75, 1.5)])
def test_halves_of_a_voxel_are_rounded_as_in_nnunet(size: int, have: float, want: float) -> None:
    from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

    grid = Grid((size, size, size), np.diag([have, have, have, 1]))
    expected = tuple(compute_new_shape([size] * 3, [have] * 3, [want] * 3))
    assert fit(grid, Geometry(orientation="native", spacing=(want, want, want), align="edges")).shape == expected


@pytest.mark.parametrize(("size", "have", "want"), [(55, 0.6, 0.8), (319, 0.6, 0.8), (103, 0.6, 0.8), (34, 0.75, 1.5)])
def test_halves_of_a_voxel_are_rounded_as_in_monai(size: int, have: float, want: float) -> None:
    from monai.data.utils import compute_shape_offset

    grid = Grid((size, size, size), np.diag([have, have, have, 1]))
    expected, _ = compute_shape_offset((size,) * 3, grid.affine, np.diag([want, want, want, 1]))
    assert fit(grid, Geometry(spacing=(want, want, want))).shape == tuple(expected)


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize(("n", "m"), [(17, 40), (40, 17), (5, 9), (2, 5), (1, 3)])
def test_edges_alignment_equals_scikit_image(n: int, m: int, order: int) -> None:
    values = np.random.default_rng(n * m).normal(size=n).astype(np.float32)
    mapping = AxisMap(n, m, n / m, n / m / 2 - 0.5, order)
    expected = resize(values, (m,), order=order, mode="edge", anti_aliasing=False, clip=False)
    got = mapping.resample(values, 0)
    if order == 0:  # which neighbour a tie goes to is a convention: ours is the higher one
        ties = np.isclose(mapping.positions % 1, 0.5)
        np.testing.assert_array_equal(got[~ties], expected[~ties])
    else:
        np.testing.assert_allclose(got, expected, atol=2e-5)


def test_cubic_equals_scipys_spline_in_the_middle_of_a_volume() -> None:
    values = np.random.default_rng(1).normal(size=(20, 7)).astype(np.float32)
    places = np.linspace(0, 19, 33)
    expected = ndimage.map_coordinates(
        values, np.meshgrid(places, np.arange(7), indexing="ij"), order=3, mode="nearest"
    )
    got = AxisMap(20, 33, 19 / 32, 0.0, 3).resample(values, 0)
    np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_a_part_of_an_axis_equals_the_part_of_the_whole(order: int) -> None:
    values = np.random.default_rng(2).normal(size=(4, 50)).astype(np.float32)
    mapping = AxisMap(50, 31, 49 / 30, 0.0, order)
    whole = mapping.resample(values, 1)
    for first, last in [(0, 1), (3, 17), (30, 31), (0, 31)]:
        low, high = mapping.source_range(first, last)
        np.testing.assert_allclose(
            mapping.resample(values[:, low:high], 1, (first, last)), whole[:, first:last], atol=1e-6
        )


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_orientation_equals_nibabels(orientation: str) -> None:
    stored = "PIR"
    affine = np.array([[0, 0, 3, 5], [-1.5, 0, 0, 8], [0, -2, 0, 9], [0, 0, 0, 1.0]])
    image = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    assert Grid((2, 3, 4), affine).orientation == stored
    transform = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt(stored), nibabel.orientations.axcodes2ornt(orientation)
    )
    expected = nibabel.orientations.apply_orientation(image, transform)
    grid = fit(Grid((2, 3, 4), affine), Geometry(orientation=orientation))
    np.testing.assert_array_equal(grid.view(image[None])[0], expected)
    back = np.zeros((2, 3, 4), int)
    grid.restore(expected, back)
    np.testing.assert_array_equal(back, image)


def test_restore_takes_the_nearest_voxel_as_itk_does() -> None:
    sitk = pytest.importorskip("SimpleITK")
    small = np.random.default_rng(3).integers(0, 5, (9, 8, 7)).astype(np.uint8)
    grid = fit(Grid((16, 15, 9), np.diag([0.8, 0.9, 2.5, 1.0])), Geometry(spacing=(1.5, 1.5, 3.0)))
    assert grid.shape == (9, 9, 8)
    small = np.random.default_rng(3).integers(0, 5, grid.shape).astype(np.uint8)
    moving = sitk.GetImageFromArray(small.T)
    moving.SetSpacing((1.5, 1.5, 3.0))
    fixed = sitk.GetImageFromArray(np.zeros((9, 15, 16), np.uint8))
    fixed.SetSpacing((0.8, 0.9, 2.5))
    extrapolated = sitk.Resample(moving, fixed, sitk.Transform(), sitk.sitkNearestNeighbor, 255)
    expected = sitk.GetArrayFromImage(extrapolated).T
    got = np.zeros((16, 15, 9), np.uint8)
    grid.restore(small, got)
    np.testing.assert_array_equal(got[expected != 255], expected[expected != 255])


def test_a_tie_goes_to_the_higher_voxel_whatever_the_rounding_of_its_position() -> None:
    for n in range(3, 200):
        for m in range(2, 120):
            mapping = AxisMap(n, m, n / m, n / m / 2 - 0.5, 0)
            exact = [((2 * p + 1) * n) // (2 * m) for p in range(m)]  # floor(position + 1/2) in whole numbers
            np.testing.assert_array_equal(mapping.nearest, np.minimum(exact, n - 1))


def test_between_edges_a_tie_goes_where_scipy_lets_it_go() -> None:
    """nnU-Net reads nearest planes with it; the rounding of a position decides ties."""
    from scipy.ndimage import map_coordinates

    for n in range(10, 60, 3):
        for m in range(10, 200, 3):
            places = n / m * (np.arange(m) + 0.5) - 0.5
            expected = map_coordinates(np.arange(n, dtype=float), [places], order=0, mode="nearest")
            there = AxisMap.between_edges(n, m, 0)
            np.testing.assert_array_equal(there.nearest, expected)
            np.testing.assert_array_equal(AxisMap.between_edges(m, n, 0).inverse(0).nearest, expected)


def test_a_spacing_that_a_header_states_counts_where_the_affine_agrees() -> None:
    from hilum_inference.io import placed

    turned = np.eye(4)
    turned[:3, :3] = [[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 3.0000002]]
    rule = Geometry(spacing=(1, 1, 1), order=3, separate_z="auto", align="edges")
    grids = [placed((8, 8, 8), turned, spacing) for spacing in (None, (1.0, 1.0, 3.0), (1.0, 1.0, 3.5))]
    assert [grid.stated for grid in grids] == [None, (1.0, 1.0, 3.0), None]
    assert [[m.order for m in fit(grid, rule).maps] for grid in grids] == [[3, 3, 0], [3, 3, 3], [3, 3, 0]]


@pytest.mark.parametrize("turned", [0.0, 1e-9, 1e-7, 1e-3, 0.26])
def test_grids_lie_where_monai_puts_them(turned: float) -> None:
    """MONAI keeps the first voxel where a corner of the grid allows it, and else the centre: oblique images mostly."""
    monai = pytest.importorskip("monai.transforms")
    torch = pytest.importorskip("torch")
    from monai.data import MetaTensor
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng(3)
    spacings = ((1.5, 1.4, 2.0), (2.0, 2.0, 2.0))
    for n in range(12):
        affine = np.eye(4)
        have = rng.uniform(0.8, 3, 3) if n % 2 else rng.choice([0.5, 0.7, 1.0, 1.25, 3.0], 3)  # halves of voxels, too
        affine[:3, :3] = Rotation.from_rotvec(rng.uniform(-1, 1, 3) * turned).as_matrix() @ np.diag(have)
        affine[:3, 3] = rng.uniform(-80, 80, 3)
        affine = np.asarray(np.float32(affine), np.float64)
        image = rng.normal(0, 1, (20, 24, 18)).astype(np.float32)
        want = spacings[n % 2]
        given = MetaTensor(torch.from_numpy(image[None]), affine=torch.from_numpy(affine))
        expected = monai.Spacing(pixdim=want)(given)[0].numpy()
        grid = fit(Grid((20, 24, 18), affine), Geometry(orientation="native", spacing=want))
        found: Any = image
        for axis in range(3):
            found = grid.maps[axis].resample(found, axis)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SRP", "IAL"])
def test_a_voxel_of_the_oriented_and_cropped_array_lies_where_it_was_stored(orientation: str) -> None:
    affine = np.array([[0, -2, 0, 5], [3, 0, 0, 1], [0, 0, 1.5, 2], [0, 0, 0, 1.0]])
    grid, box = Grid((6, 7, 5), affine), ((1, 4), (2, 5), (0, 3))
    oriented = fit(grid, Geometry(orientation=orientation), box)
    where = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"))  # each voxel's own stored index
    there = geometry._box_affine(grid, oriented.axes, oriented.flipped, box)
    for d, h, w in itertools.product(range(3), repeat=3):
        stored = oriented.view(where)[:, d, h, w]
        np.testing.assert_allclose((there @ [d, h, w, 1])[:3], (affine @ [*stored, 1])[:3])


def test_separate_z_is_nnunets_rule() -> None:
    thick = Grid((64, 64, 20), np.diag([1, 1, 5.0, 1]))
    rule = Geometry(spacing=(1, 1, 5), order=3, separate_z="auto")
    assert [m.order for m in fit(thick, rule).maps] == [3, 3, 0]
    assert [m.order for m in fit(Grid((64, 64, 20), np.diag([1, 1, 2.0, 1])), rule.model_copy(update={"spacing": (1, 1, 2)})).maps] == [3, 3, 3]  # noqa: E501  # fmt: skip


def test_sizes_are_those_of_the_two_conventions() -> None:
    grid = Grid((512, 512, 300), np.diag([0.8, 0.8, 1.5, 1]))
    assert fit(grid, Geometry(spacing=(1.5, 1.5, 1.5))).shape == (274, 274, 300)
    assert fit(grid, Geometry(spacing=(1.5, 1.5, 1.5), align="edges")).shape == (273, 273, 300)
