from __future__ import annotations

import pytest

from hilum_benchmark.figures import Figure, Metric, at_least, at_most, geometric_mean, times_less

ROUNDS = {
    "ours": [{"s": 1.0}, {"s": 2.0}, {"s": 4.0}],
    "peer": [{"s": 10.0}, {"s": 8.0}, {"s": 12.0}],
    "gone": [],
}


def test_a_ratio_is_that_of_the_medians_and_its_range_that_of_the_rounds() -> None:
    [figure] = times_less(ROUNDS, "time", Metric("ours", "s"), Metric("peer", "s"), 4)
    assert (figure.value, figure.low, figure.high) == (5.0, 3.0, 10.0)
    assert figure.reached
    assert figure.margin == pytest.approx(1.25)


def test_a_contender_without_rounds_gives_no_figure() -> None:
    assert times_less(ROUNDS, "time", Metric("ours", "s"), Metric("gone", "s"), 4) == []
    assert times_less(ROUNDS, "time", Metric("ours", "s"), Metric("nobody", "s"), 4) == []
    assert at_most([], "memory", 1, "MiB") == []
    assert geometric_mean([], "all", 2) == []


def test_a_limit_is_kept_by_the_median() -> None:
    [figure] = at_most([3.0, 1.0, 9.0], "memory", 3.0, "MiB")
    assert (figure.value, figure.low, figure.high, figure.reached, figure.margin) == (3.0, 1.0, 9.0, True, 1.0)
    [figure] = at_most([3.1], "memory", 3.0, "MiB")
    assert not figure.reached
    assert figure.margin < 1
    [figure] = at_least([99.9], "equal", 99.999, "%")
    assert not figure.reached


def test_what_is_not_a_number_never_reaches() -> None:
    assert not Figure("x", None, float("nan"), 0, 0, 1, "s", "less").reached
    assert not Figure("x", None, float("nan"), 0, 0, 1, "x").reached


def test_nothing_used_where_nothing_is_allowed_is_reached() -> None:
    [figure] = at_most([0.0], "packages", 0, "packages")
    assert figure.reached
    assert figure.margin > 1


def test_the_geometric_mean_takes_medians_and_ranges() -> None:
    parts = [Figure("a", "p", 2, 1, 4, 1, "x"), Figure("b", "p", 8, 4, 9, 1, "x")]
    [figure] = geometric_mean(parts, "both", 3)
    assert figure.value == pytest.approx(4)
    assert figure.low == pytest.approx(2)
    assert figure.high == pytest.approx(6)
    assert figure.reached
