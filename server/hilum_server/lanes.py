"""Who may use the engine next: an interactive job's windows go before the next window of a batch job."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hilum_inference.engines import Batch, Engine, Output, Weighted


class Turnstile:
    """Lets a few windows through at a time; while an urgent job has claimed it, only that job's windows."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._claims = 0
        self._busy = 0

    def claim(self) -> None:
        """Hold others back from now on, after the window that runs."""
        with self._changed:
            self._claims += 1

    def release(self) -> None:
        """Give up one claim."""
        with self._changed:
            self._claims -= 1
            self._changed.notify_all()

    @contextmanager
    def turn(self, urgent: bool, places: int = 1) -> Iterator[None]:
        """One passage, where fewer than ``places`` are under way; an urgent one of several does not wait for those."""
        with self._changed:
            if places == 1 or not urgent:
                self._changed.wait_for(lambda: self._busy < places and (urgent or not self._claims))
            self._busy += 1
        try:
            yield
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()


class PriorityEngine:
    """An engine for one job, behind the turnstile all jobs share.

    An urgent job claims the turnstile at its first window and must give it back with ``finish``: between two of its
    windows no window of a batch job, which may last seconds, slips in. An engine that has a queue of its own takes
    several windows at a time, and the urgent ones first.
    """

    def __init__(self, engine: Engine, turnstile: Turnstile, urgent: bool) -> None:
        from hilum_inference.engines import in_flight  # the gateway's own process does without numpy

        self.precision = engine.precision
        self.in_flight = in_flight(engine)
        self._engine = engine
        self._turnstile = turnstile
        self._urgent = urgent
        self._claimed = False

    def run(self, batch: Batch, output: Output = "logits") -> Batch:
        """(N, C, D, H, W) windows to (N, K or F, D, H, W) float32, in turn."""
        with self._turn():
            return self._engine.run(batch, output)

    def run_weighted(self, batch: Batch, output: Output = "logits", out: Weighted | None = None) -> Weighted:
        """(N, C, D, H, W) windows to (N, D, H, W, K or F) float32, in turn."""
        with self._turn():
            return self._engine.run_weighted(batch, output, out)

    def _turn(self) -> AbstractContextManager[None]:
        if self._urgent and not self._claimed:
            self._claimed = True
            self._turnstile.claim()
        return self._turnstile.turn(self._urgent, self.in_flight)

    def finish(self) -> None:
        """The job runs no more windows."""
        if self._claimed:
            self._claimed = False
            self._turnstile.release()

    def ready(self) -> bool:
        """Whether the network can run now."""
        return self._engine.ready()

    def close(self) -> None:
        """Nothing: the engine outlives the job."""
