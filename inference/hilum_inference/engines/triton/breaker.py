"""When to try again, and when to stop asking for a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 0.5


class Breaker:
    """After several windows in a row were given up, nobody waits any more: for a while all fail at once.

    Then one asks whether the server is ready; where it is, all is as before.

    Args:
        failures: windows in a row.
        rest: seconds.
    """

    def __init__(self, failures: int = 3, rest: float = 0.5) -> None:
        self._failures = failures
        self._rest = rest
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._count = 0
        self._until = 0.0

    def closed(self, ready: Callable[[], bool]) -> bool:
        """Whether to try; ``ready`` is asked once after each rest, and all wait for that answer."""
        if self._count < self._failures:
            return True
        with self._asking:
            if self._count < self._failures:
                return True
            if time.monotonic() < self._until:
                return False
            if ready():
                self.succeeded()
                return True
            self._until = time.monotonic() + self._rest
            return False

    def succeeded(self) -> None:
        """A window was answered."""
        with self._lock:
            self._count = 0

    def gave_up(self) -> None:
        """A window was given up."""
        with self._lock:
            self._count += 1
            self._until = time.monotonic() + self._rest


@dataclass
class Patience:
    """How long one window is tried again; the time runs from its first failure."""

    seconds: float
    since: float | None = None
    pause: float = field(default=FIRST_PAUSE)

    def lasts(self) -> bool:
        """Whether to try again after a failure."""
        now = time.monotonic()
        if self.since is None:
            self.since = now
            return self.seconds > 0
        return now - self.since < self.seconds

    def rest(self) -> None:
        """A short pause, longer each time."""
        time.sleep(self.pause)
        self.pause = min(2 * self.pause, LONGEST_PAUSE)
