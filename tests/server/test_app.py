"""What is swept, and when not."""

from __future__ import annotations

import logging

import pytest

from hilum_server.app import SweepClock

KEEP = 24 * 3600.0


class Clocks:
    """A wall clock and a steady one."""

    def __init__(self) -> None:
        self.wall = 1e9
        self.steady = 50.0

    def go(self, seconds: float, set_by: float = 0.0) -> None:
        self.steady += seconds
        self.wall += seconds + set_by


def test_a_steady_clock_tells_what_is_too_old() -> None:
    clocks = Clocks()
    clock = SweepClock(KEEP, lambda: clocks.wall, lambda: clocks.steady)
    for drift in (0.0, 1.0, -30.0, 30.0):
        clocks.go(60, drift)
        assert clock.moment() == clocks.wall - KEEP


@pytest.mark.parametrize("jump", [25 * 3600.0, 61.0, 40_000_000.0])
def test_a_clock_set_forward_makes_nothing_old(jump: float, caplog: pytest.LogCaptureFixture) -> None:
    clocks = Clocks()
    clock = SweepClock(KEEP, lambda: clocks.wall, lambda: clocks.steady)
    before = clocks.wall
    clocks.go(60, jump)
    assert clock.moment() == before + 60 - KEEP and f"forward by {jump:.0f} s" in caplog.text
    clocks.go(KEEP - 60)
    assert clock.moment() == before + KEEP - KEEP, "what came just before is kept to the end"
    clocks.go(60)
    assert clock.moment() == clocks.wall - KEEP
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_clock_set_back_makes_nothing_old() -> None:
    clocks = Clocks()
    clock = SweepClock(KEEP, lambda: clocks.wall, lambda: clocks.steady)
    clocks.go(60, -25 * 3600)
    assert clock.moment() == clocks.wall - KEEP


def test_a_machine_that_sleeps_each_night_is_swept_all_the_same() -> None:
    """Where the steady clock stands still meanwhile, each sleep looks like a clock set forward."""
    clocks = Clocks()
    clock = SweepClock(KEEP, lambda: clocks.wall, lambda: clocks.steady)
    for _ in range(30):
        clocks.go(60, 8 * 3600)
        assert clock.moment() >= clocks.wall - 3 * KEEP
        clocks.go(16 * 3600)
        assert clock.moment() >= clocks.wall - 3 * KEEP
