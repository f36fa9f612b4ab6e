from __future__ import annotations

import pytest

from hilum_search.gpus import RATES, expected_hours
from hilum_search.recipe import Training


def training(precision: str) -> Training:
    return Training.model_validate(
        {"steps": 1000, "batch": 4, "precision": precision, "class_weights": (1.0, 1.0)}, strict=False
    )


def test_hours_are_counted_arithmetic_by_the_assumed_rate() -> None:
    [v100, *_] = expected_hours(training("f32"), 10**10)
    assert v100.rate.gpu == "V100 16 GB"
    assert v100.hours == pytest.approx(1000 * 4 * 3 * 2 * 1e10 / (15.7e12 * 0.25) / 3600)


@pytest.mark.parametrize(
    ("precision", "gpus"),
    [
        ("f32", ["V100 16 GB", "A100", "H100"]),
        ("fp16", ["V100 16 GB", "A100", "H100"]),
        ("bf16", ["A100", "H100"]),
    ],
)
def test_a_gpu_is_told_where_it_has_the_precision(precision: str, gpus: list[str]) -> None:
    assert [each.rate.gpu for each in expected_hours(training(precision), 1)] == gpus


def test_a_rate_is_a_share_of_a_peak() -> None:
    assert all(0 < rate.share < 1 and rate.sustained < rate.peak * 1e12 for rate in RATES)
