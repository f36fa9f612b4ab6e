"""Percentiles without holding the values, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hilum_inference.intensity import percentiles


@given(
    values=arrays(np.float32, st.integers(1, 60), elements=st.floats(-1e6, 1e6, width=32)),
    lower=st.floats(0, 49),
    upper=st.floats(51, 100),
)
def test_equal_to_numpy(values: np.ndarray[tuple[int], np.dtype[np.float32]], lower: float, upper: float) -> None:
    expected = np.percentile(values.astype(np.float64), [lower, upper])
    got = percentiles(lambda: np.array_split(values, 3), (lower, upper))
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_equal_to_numpy_on_an_image_with_much_background() -> None:
    random = np.random.default_rng(0)
    image = np.where(random.random(200_000) > 0.6, random.normal(0, 300, 200_000), 0).astype(np.float32)
    got = percentiles(lambda: np.array_split(image, 7), (0.5, 99.5))
    np.testing.assert_allclose(got, np.percentile(image.astype(np.float64), [0.5, 99.5]), rtol=1e-6)


def test_no_values_at_all() -> None:
    assert percentiles(list, (1, 99)) == pytest.approx((0.0, 1.0))
