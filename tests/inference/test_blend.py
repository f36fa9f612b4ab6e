"""The streaming blender against the plain sum over the whole volume, and against the two reference libraries."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hilum_inference.blend import Blender, peak_bytes, weigh
from hilum_inference.windows import Layout, weight_map


def _plain(layout: Layout, windows: list[NDArray[np.float32]], weights: NDArray[np.float32]) -> NDArray[np.float64]:
    sums = np.zeros((windows[0].shape[0] + 1, *layout.shape))
    for start, window in zip(layout, windows, strict=True):
        where = tuple(slice(s, s + n) for s, n in zip(start, layout.size, strict=True))
        sums[:-1][:, *where] += window * weights
        sums[-1][where] += weights
    return sums


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(6, 23)] * 3),
    size=st.tuples(*[st.integers(2, 6)] * 3),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.7]),
    placement=st.sampled_from(["monai", "nnunet"]),
)
def test_streamed_sums_equal_the_plain_sums_and_each_voxel_comes_once(shape, size, overlap, placement) -> None:  # type: ignore[no-untyped-def]
    layout = Layout(shape, size, overlap, placement)
    random = np.random.default_rng(0)
    windows = [random.normal(size=(2, *size)).astype(np.float32) for _ in layout]
    weights = weight_map(size, "monai")
    blender = Blender(layout, 2, weights)
    got = np.full((3, *shape), np.nan)
    most = 0
    for start, window in zip(layout, windows, strict=True):
        blocks = blender.add(start, weigh(window[None], weights)[0])
        most = max(
            most,
            sum(part.nbytes for cell in blender._cells.values() for part in cell) + sum(b.sums.nbytes for b in blocks),
        )
        for block in blocks:
            where = tuple(slice(s, s + n) for s, n in zip(block.start, block.sums.shape[:3], strict=True))
            assert np.isnan(got[:, *where]).all()
            got[:-1][:, *where] = np.moveaxis(block.sums, -1, 0)
            got[-1][where] = block.weights
    np.testing.assert_allclose(got, _plain(layout, windows, weights), rtol=1e-5, atol=1e-5)
    assert most <= peak_bytes(layout, 2)


def test_memory_does_not_grow_with_the_length_of_the_scan() -> None:
    short, long = (Layout((n, 64, 64), (32, 32, 32), 0.5, "monai") for n in (128, 4096))
    assert peak_bytes(short, 8) == peak_bytes(long, 8)


def test_a_last_row_pushed_back_adds_a_strip_and_not_a_slab() -> None:
    even, pushed = (peak_bytes(Layout((n, 256, 256), (32, 32, 32), 0.5, "monai"), 8) for n in (320, 322))
    assert pushed <= even * 1.1


def test_sweep_runs_along_the_longest_axis() -> None:
    starts = list(Layout((20, 64, 32), (16, 16, 16), 0.5, "monai"))
    assert [s[1] for s in starts] == sorted(s[1] for s in starts)
    assert len(starts) == len(set(starts))


@pytest.mark.parametrize("shape", list(itertools.permutations((16, 24, 40))))
def test_every_order_of_axes_blends_constants_to_themselves(shape: tuple[int, int, int]) -> None:
    layout = Layout(shape, (16, 16, 16), 0.5, "nnunet")
    weights = weight_map((16, 16, 16), "nnunet")
    blender = Blender(layout, 1, weights)
    window = weigh(np.full((1, 1, 16, 16, 16), 3, np.float32), weights)[0]
    covered = 0
    for start in layout:
        for block in blender.add(start, window):
            covered += block.weights.size
            np.testing.assert_allclose(block.sums[..., 0] / block.weights, 3, rtol=1e-6)
    assert covered == np.prod(shape)
