from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilum_inference.volume import Volume
from hilum_search import measure
from hilum_search.errors import DataError
from hilum_search.measure import POINTS, Spread, channel_facts, count_ids, filled_shape, mixed

CHANCE = np.random.default_rng(0)
VALUES = CHANCE.normal(50, 20, (9, 8, 7)).astype(np.float32)
IDS = (VALUES > 40).astype(np.uint8) * np.uint8(3)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "BLOCK", 100)


@pytest.mark.parametrize("order", ["C", "F"])
def test_figures_do_not_depend_on_blocks_or_memory(order: str) -> None:
    image, labels = (Volume.from_array(np.array(each, order=order)) for each in (VALUES, IDS))  # type: ignore[call-overload]
    labels = Volume(np.ascontiguousarray(labels.array), labels.grid)
    assert count_ids(labels) == {0: int((IDS == 0).sum()), 3: int((IDS == 3).sum())}
    facts = channel_facts(image, 0, labels, int((IDS > 0).sum()))
    chosen = VALUES[IDS > 0].astype(np.float64)
    assert facts.labelled is not None
    np.testing.assert_allclose(facts.labelled.percentiles, np.percentile(chosen, POINTS), rtol=1e-6)
    np.testing.assert_allclose((facts.labelled.mean, facts.labelled.sd), (chosen.mean(), chosen.std()), rtol=1e-6)
    expected = [VALUES.min(), *np.percentile(VALUES, (0.5, 99.5)), VALUES.max()]
    np.testing.assert_allclose(facts.whole, expected, rtol=1e-5)


def test_a_large_case_is_sampled_and_the_sample_is_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SAMPLED", 150)
    image, labels = Volume.from_array(VALUES), Volume.from_array(IDS)
    labelled = int((IDS > 0).sum())
    first, again = (channel_facts(image, 0, labels, labelled).labelled for _ in range(2))
    assert first == again
    assert first is not None and abs(first.mean - VALUES[IDS > 0].mean()) < 5


def test_rescaled_values() -> None:
    plain = Volume.from_array(np.array([[[0, 2, 4]]], np.int16))
    image = Volume(plain.array, plain.grid, slope=0.5, intercept=-1)
    assert channel_facts(image, 0, plain, 2).whole[::3] == (-1, 1)
    assert filled_shape(image) == (1, 1, 3)
    assert count_ids(Volume(plain.array, plain.grid, slope=0.5, intercept=1)) == {1: 1, 2: 1, 3: 1}


def test_nothing_labelled() -> None:
    image = Volume.from_array(VALUES)
    assert channel_facts(image, 0, Volume.from_array(np.zeros_like(IDS)), 0).labelled is None


def test_the_box_of_what_is_filled() -> None:
    array = np.zeros((2, 9, 8, 7), np.int16)
    array[0, 2:5, 3, 1:7] = 1
    array[1, 4, 5, 2] = -1
    assert filled_shape(Volume.from_array(array)) == (3, 3, 6)
    assert filled_shape(Volume.from_array(np.zeros((4, 5, 6)))) == (4, 5, 6)


@pytest.mark.parametrize(
    ("value", "reason"),
    [(0.5, "holds 0.5"), (np.nan, "holds nan"), (-1, "this one holds -1"), (70000, "between 0 and 65535.* 70000")],
)
def test_what_no_reference_holds(value: float, reason: str) -> None:
    array = np.zeros((3, 3, 3), np.float64)
    array[1, 1, 1] = value
    with pytest.raises(DataError, match=reason):
        count_ids(Volume.from_array(array))


def test_a_reference_of_several_channels() -> None:
    with pytest.raises(DataError, match="this one has 2"):
        count_ids(Volume.from_array(np.zeros((2, 3, 3, 3), np.uint8)))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_are_not_finite(value: float) -> None:
    array = np.zeros((3, 3, 3), np.float64)
    array[1, 1, 1] = value
    with pytest.raises(DataError, match="not finite"):
        channel_facts(Volume.from_array(array), 0, Volume.from_array(np.zeros((3, 3, 3))), 0)


@given(st.lists(st.tuples(st.floats(-500, 500), st.floats(1, 50)), min_size=1, max_size=5))
def test_cases_put_together(cases: list[tuple[float, float]]) -> None:
    parts = [np.random.default_rng(1).normal(mean, sd, 4000).astype(np.float32) for mean, sd in cases]
    found = mixed([measure._spread(part) for part in parts])
    together = np.concatenate(parts)
    assert found.mean == pytest.approx(together.mean(dtype=np.float64), abs=1e-2)
    assert found.sd == pytest.approx(together.std(dtype=np.float64), rel=1e-3)
    places = np.sort(together)
    for point in (0.5, 5, 50, 95, 99.5):  # what lies below each point is right to 3 % of the voxels, at the ends to 0.5
        share = np.searchsorted(places, found.at(point)) / len(places) * 100
        assert abs(share - point) < (0.5 if point in (0.5, 99.5) else 3)


def test_what_few_cases_hold_does_not_smear_the_ends() -> None:
    """Metal in half of the cases, 0.6 % of their voxels: the percentile 99.5 of all lies beside it."""
    rng = np.random.default_rng(2)
    parts = [rng.normal(100, 40, 50_000).astype(np.float32) for _ in range(20)]
    for part in parts[::2]:
        part[:300] = 3000
    together = np.concatenate(parts)
    found = mixed([measure._spread(part) for part in parts])
    for point in (0.5, 99.5):
        assert found.at(point) == pytest.approx(np.percentile(together, point), abs=4)


def test_one_case_put_together_is_itself() -> None:
    spread = Spread(tuple(float(p) for p in POINTS), 3.0, 2.0)
    assert mixed([spread]) == spread
    flat = Spread((7.0,) * len(POINTS), 7.0, 0.0)
    assert mixed([flat, flat]) == flat


def test_examples_of_the_docstrings() -> None:
    found = doctest.testmod(measure)
    assert found.attempted > 0 and found.failed == 0
