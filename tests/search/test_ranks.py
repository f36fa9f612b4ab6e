from __future__ import annotations

import math

import numpy as np
import pytest

from hilum_search.errors import SearchError
from hilum_search.ranks import kendall


def test_the_same_order_agrees_fully_whatever_the_scale() -> None:
    for other, tau in (([10, 20, 21, 22, 900], 1), ([5, 4, 3, 2, 1], -1)):
        found = kendall([1, 2, 3, 4, 5], other)
        assert (found.tau, found.low, found.high) == pytest.approx((tau, tau, tau))
        assert found.count == 5


def test_ties_count_as_neither() -> None:
    # Pairs: 4 agree, 1 contradicts, 1 is tied in the first row: 3 / sqrt(5 * 6).
    assert kendall([1, 1, 2, 3], [1, 2, 4, 3]).tau == pytest.approx(3 / math.sqrt(30))


@pytest.mark.parametrize("different", [3, 8, 1000])
def test_tau_is_scipys(different: int) -> None:
    from scipy.stats import kendalltau

    one, other = np.random.default_rng(different).integers(different, size=(2, 25)).tolist()
    assert kendall(one, other).tau == pytest.approx(kendalltau(one, other, variant="b").statistic)


def test_the_interval_holds_tau_and_narrows_with_more_networks() -> None:
    chance, widths = np.random.default_rng(0), []
    for count in (10, 100):
        truth = chance.normal(size=count)
        found = kendall(truth.tolist(), (truth + chance.normal(size=count) / 2).tolist())
        assert -1 <= found.low < found.tau < found.high <= 1
        assert found.count == count
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 2


def test_unrelated_scores_have_an_interval_around_zero() -> None:
    chance = np.random.default_rng(1)
    found = kendall(chance.normal(size=30).tolist(), chance.normal(size=30).tolist())
    assert found.low < 0 < found.high


def test_the_interval_follows_from_the_seed() -> None:
    one, other = [1.0, 2, 3, 4, 5, 6, 7], [2.0, 1, 3, 5, 4, 7, 6]
    assert kendall(one, other, seed=1) == kendall(one, other, seed=1)


def test_an_order_with_few_different_scores_still_has_an_interval() -> None:
    found = kendall([0, 0, 1], [0, 1, 1])
    assert found.tau == pytest.approx(0.5)
    assert math.isfinite(found.low)
    assert math.isfinite(found.high)


@pytest.mark.parametrize(
    ("one", "other", "reason"),
    [
        ([1, 2], [1, 2], "score at least 3"),
        ([1, 2, 3], [1, 2], "3 scores of one kind and 2 of the other"),
        ([1, 2, math.nan], [1, 2, 3], "not finite"),
        ([1, 2, 3], [4, 4, 4], "rank nothing"),
    ],
)
def test_scores_that_cannot_be_compared_are_refused(one: list[float], other: list[float], reason: str) -> None:
    with pytest.raises(SearchError, match=reason):
        kendall(one, other)
