"""What a run has cost: CPU seconds always, a GPU's while one is held, and earlier processes counted along."""

from __future__ import annotations

import time

import pytest
import torch

from hilum_search.spent import Clock, Spent


def wait(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def test_a_cpu_run_holds_no_gpu() -> None:
    clock = Clock(torch.device("cpu"), Spent(100.0, 7.0))
    wait(0.05)
    found = clock.read()
    assert 100.0 < found.cpu_seconds < 160.0
    assert found.gpu_seconds == 7.0


def test_a_gpu_is_held_while_its_run_waits_for_it() -> None:
    clock = Clock(torch.device("cuda", 1), Spent(0.0, 7.0))
    time.sleep(0.05)
    found = clock.read()
    assert found.gpu_seconds >= 7.05
    assert found.cpu_seconds < 7.0


def test_what_was_written_is_read_back_and_what_is_missing_was_not_spent() -> None:
    spent = Spent(1.25, 2.0)
    assert Spent.of({"step": 3} | spent.fields()) == spent
    assert Spent.of({"cpu_seconds": 5}) == Spent(5.0)


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_reading_twice_never_goes_back(device: str) -> None:
    clock = Clock(torch.device(device))
    one, two = clock.read(), clock.read()
    assert 0 <= one.cpu_seconds <= two.cpu_seconds and 0 <= one.gpu_seconds <= two.gpu_seconds
