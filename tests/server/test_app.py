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


@pytest.mark.parametrize("jump", [25 * 3600.0, -25 * 3600.0, 61.0, 40_000_000.0])
def test_after_the_clock_was_set_nothing_is_too_old_for_as_long_as_things_are_kept(
    jump: float, caplog: pytest.LogCaptureFixture
) -> None:
    clocks = Clocks()
    clock = SweepClock(KEEP, lambda: clocks.wall, lambda: clocks.steady)
    clocks.go(60, jump)
    assert clock.moment() is None and f"set by {jump:.0f} s" in caplog.text
    for _ in range(24 * 60 - 1):
        clocks.go(60)
        assert clock.moment() is None
    clocks.go(60)
    assert clock.moment() == clocks.wall - KEEP
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_clock_set_right_again_counts_anew() -> None:
    clocks = Clocks()
    clock = SweepClock(KEEP, lambda: clocks.wall, lambda: clocks.steady)
    clocks.go(60, 25 * 3600)
    clock.moment()
    clocks.go(12 * 3600, -25 * 3600)
    assert clock.moment() is None
    clocks.go(12 * 3600)
    assert clock.moment() is None
    clocks.go(12 * 3600)
    assert clock.moment() is not None
