"""What the network sees, against MONAI's transforms and plain numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hilum_testing import manifest, phantom
from monai.data.meta_tensor import MetaTensor
from monai.transforms import Compose, Orientation, ScaleIntensityRange, Spacing
from numpy.typing import NDArray

from hilum_inference.errors import MismatchError, UnreadableError
from hilum_inference.manifest import Manifest
from hilum_inference.preprocess import Source, crop_box, model_grid
from hilum_inference.volume import Volume

OBLIQUE = np.array([[0.1, -0.78, 0, 4], [-0.78, -0.1, 0, 9], [0, 0, -2.5, 11], [0, 0, 0, 1]])


def _whole(volume: Volume, described: Manifest) -> NDArray[np.float32]:
    """All windows put together: the padded input of the network, (C, D, H, W)."""
    source = Source(volume, model_grid(volume, described), described)
    layout = source.layout
    image = np.full((volume.channels, *layout.shape), np.nan, np.float32)
    for start in layout:
        where = tuple(slice(s, s + n) for s, n in zip(start, layout.size, strict=True))
        image[(slice(None), *where)] = source.window(start)
    return image


@pytest.mark.parametrize("affine", [np.diag([1.0, 1, 1, 1]), np.diag([-0.8, -0.8, 2.5, 1]), OBLIQUE])
def test_equals_monais_orientation_spacing_and_window(affine: NDArray[np.float64]) -> None:
    image = phantom((40, 36, 30))
    described = manifest(geometry={"orientation": "RAS", "spacing": (1.2, 1.3, 1.4)})
    steps = Compose([
        Orientation("RAS", labels=None),
        Spacing((1.2, 1.3, 1.4), mode="bilinear", padding_mode="border"),
        ScaleIntensityRange(-200, 300, 0, 1, clip=True),
    ])  # fmt: skip
    expected = steps(
        MetaTensor(torch.from_numpy(image.astype(np.float32))[None], affine=torch.from_numpy(affine))
    ).numpy()
    got = _whole(Volume.from_array(image, affine), described)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, atol=2e-3)  # MONAI samples in float32 coordinates


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect"])
def test_small_volumes_are_padded_half_before_and_the_odd_voxel_after(mode: str) -> None:
    image = phantom((9, 30, 5))
    described = manifest(windows={"size": (16, 16, 16), "padding": mode, "padding_value": 0.25})
    got = _whole(Volume.from_array(image), described)[0]
    windowed = np.clip((image.astype(np.float32) + 200) / 500, 0, 1)
    fill: dict[str, Any] = {"constant_values": 0.25} if mode == "constant" else {}
    np.testing.assert_allclose(got, np.pad(windowed, [(3, 4), (0, 0), (5, 6)], mode, **fill), atol=1e-6)  # type: ignore[call-overload]


@pytest.mark.parametrize("stage", ["before-resampling", "after-resampling"])
def test_z_score_of_the_volume_is_taken_at_its_stage(stage: str) -> None:
    image = phantom((40, 30, 35))
    rule = {
        "steps": [[{"rule": "clip", "low": -900, "high": 500}, {"rule": "z-score", "scope": "volume"}]],
        "stage": stage,
    }
    described = manifest(intensity=rule, geometry={"spacing": (1.7, 1.7, 1.7)})
    got = _whole(Volume.from_array(image), described)
    plain = manifest(intensity={"steps": [[]]}, geometry={"spacing": (1.7, 1.7, 1.7)})
    resampled = np.clip(_whole(Volume.from_array(image), plain), -900, 500)
    clipped = np.clip(image.astype(np.float64), -900, 500)
    if stage == "after-resampling":
        np.testing.assert_allclose(got, (resampled - resampled.mean()) / resampled.std(), atol=1e-3)
    else:
        normalised = (clipped - clipped.mean()) / clipped.std()
        expected = _whole(Volume.from_array(normalised.astype(np.float32)), plain)
        np.testing.assert_allclose(got, expected, atol=1e-3)


def test_percentile_inside_a_mask() -> None:
    image = np.random.default_rng(0).integers(1, 900, (20, 20, 20)).astype(np.int16)
    image[:10] = 0
    step = {"rule": "percentile", "scope": "mask", "lower": 1, "upper": 99}
    described = manifest(intensity={"steps": [[step]], "mask_threshold": 0, "outside": -1})
    got = _whole(Volume.from_array(image), described)[0]
    inside = image > 0
    low, high = np.percentile(image[inside], [1, 99])
    np.testing.assert_allclose(got[inside], np.clip((image[inside] - low) / (high - low), 0, 1), atol=1e-5)
    assert (got[~inside] == -1).all()


@pytest.mark.parametrize("intercept", [0.0, -50.0])
def test_a_filled_mask_is_nnunets(intercept: float) -> None:
    """Holes count, a bay does not, and what only another channel holds counts too."""
    from nnunetv2.preprocessing.cropping.cropping import create_nonzero_mask
    from nnunetv2.preprocessing.normalization.default_normalization_schemes import ZScoreNormalization

    image = np.random.default_rng(0).normal(300, 90, (2, 24, 22, 20)).astype(np.float32).round()
    image[:, :4], image[:, :, 18:] = 0, 0
    image[:, 10:13, 8:11, 9:12] = 0  # a hole
    image[:, 15:18, 5:8, :9] = 0  # a bay, open at the edge of the volume
    image[0, 6:9, 3:6, 4:7] = 0  # empty in one channel alone
    image[:, 9, 15, 15] = -40
    stored = Volume(image - np.float32(intercept), Volume.from_array(image).grid, intercept=intercept)
    described = manifest(
        channels=[{"name": "t1"}, {"name": "t2"}],
        intensity={"steps": [[{"rule": "z-score", "scope": "filled"}]], "stage": "before-resampling"},
        windows={"size": (16, 16, 16), "placement": "nnunet", "weights": "nnunet"},
    )
    mask = np.where(create_nonzero_mask(image), 0, -1)
    assert 0 < (mask < 0).sum() < (image[0] == 0).sum()
    expected = [ZScoreNormalization(True, {}).run(channel.copy(), mask) for channel in image]
    np.testing.assert_allclose(_whole(stored, described), np.stack(expected), atol=1e-4)


def test_rescale_of_the_file_is_applied_once() -> None:
    image = phantom((20, 20, 20))
    stored = ((image + 1024) * 2).astype(np.uint16)
    volume = Volume(stored[None], Volume.from_array(image).grid, slope=0.5, intercept=-1024.0)
    expected = _whole(Volume.from_array(image), manifest())
    np.testing.assert_allclose(_whole(volume, manifest()), expected, atol=2e-3)


def test_the_crop_box_lies_on_its_grid_and_noise_does_not_move_it() -> None:
    image = np.full((64, 64, 64), -1000, np.int16)
    image[20:40, 18:41, 10:50] = 0
    crop = {"kind": "body", "grid": 8, "margin_mm": 0}
    described = manifest(crop=crop, geometry={"orientation": "LPS"})
    box = crop_box(Volume.from_array(image), described)
    assert box == ((24, 48), (16, 48), (8, 56))
    image[1, 1, 1] = 500
    assert crop_box(Volume.from_array(image), described) == box
    assert crop_box(Volume.from_array(np.full((20, 20, 20), -1000, np.int16)), described) is None


def test_non_zero_crop_keeps_every_voxel_that_is_not_zero() -> None:
    image = np.zeros((30, 30, 30), np.int16)
    image[3, 5, 7] = -4
    image[20, 22, 24] = 9
    box = crop_box(Volume.from_array(image), manifest(crop={"kind": "non-zero", "grid": 1, "margin_mm": 0}))
    assert box == ((3, 21), (5, 23), (7, 25))


def test_wrong_number_of_channels_names_those_needed() -> None:
    with pytest.raises(MismatchError, match="2 channel"):
        model_grid(Volume.from_array(np.zeros((2, 9, 9, 9), np.int16)), manifest())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_that_are_not_finite_are_refused_and_never_become_a_mask(value: float) -> None:
    image = phantom((20, 20, 20)).astype(np.float32)
    image[19, 19, 19] = value
    with pytest.raises(UnreadableError, match="not finite") as caught:
        _whole(Volume.from_array(image), manifest())
    assert caught.value.code == "non_finite_voxels"


@pytest.mark.parametrize(
    ("spacing", "target"),
    [((1.0, 1.2, 1.4), (0.8, 0.9, 1.3)), ((1.0, 1.0, 5.0), (0.8, 0.8, 2.5)), ((1.0, 1.0, 2.5), (0.8, 0.9, 5.0))],
    ids=["isotropic", "thick slices", "thick target"],
)
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 1, 0)])
def test_cubic_resampling_equals_nnunets(
    spacing: tuple[float, float, float], target: tuple[float, float, float], axes: tuple[int, int, int]
) -> None:
    nnunet = pytest.importorskip(
        "nnunetv2.preprocessing.resampling.default_resampling", reason="nnU-Net is not installed"
    )
    image = np.random.default_rng(0).normal(0, 300, (24, 40, 30)).astype(np.int16)
    geometry = {"orientation": "native", "axes": axes, "order": 3, "separate_z": "auto", "align": "edges"}
    described = manifest(
        geometry=geometry | {"spacing": [target[a] for a in axes]},
        intensity={"steps": [[{"rule": "z-score", "scope": "volume"}]], "stage": "before-resampling"},
    )
    got = _whole(Volume.from_array(image, np.diag([*spacing, 1.0])), described)[0]
    normalised = (image - image.mean()) / image.std()
    shape = [round(n * s / t) for n, s, t in zip(image.shape, spacing, target, strict=True)]
    expected = nnunet.resample_data_or_seg_to_shape(
        normalised[None].astype(np.float32).transpose(0, *(a + 1 for a in axes)),
        [shape[a] for a in axes],
        [spacing[a] for a in axes],
        [target[a] for a in axes],
        is_seg=False,
        order=3,
        order_z=0,
        force_separate_z=None,
    )[0]
    inside = tuple(slice((g - n) // 2, (g - n) // 2 + n) for g, n in zip(got.shape, expected.shape, strict=True))
    np.testing.assert_allclose(got[inside], expected, atol=1e-3)


@pytest.mark.parametrize("kind", ["body", "non-zero"])
@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (1.0, -1024.0), (-1.0, 0.0), (0.5, 100.0)])
def test_the_crop_does_not_depend_on_how_values_are_stored(kind: str, slope: float, intercept: float) -> None:
    values = np.zeros((20, 20, 20)) if kind == "non-zero" else np.full((20, 20, 20), -1000.0)
    values[5:15, 6:14, 4:12] = 40
    stored = np.round((values - intercept) / slope).astype(np.int16)
    plain = Volume.from_array(values.astype(np.int16))
    volume = Volume(stored[None], plain.grid, slope, intercept)
    described = manifest(crop={"kind": kind, "grid": 1, "margin_mm": 0})
    assert crop_box(volume, described) == crop_box(plain, described) == ((5, 15), (6, 14), (4, 12))
