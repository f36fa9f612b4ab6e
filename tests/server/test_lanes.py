"""The turnstile: one window at a time, an interactive job's first."""

from __future__ import annotations

import threading
import time

import numpy as np

from hilum_inference.engines import Batch, Output, Weighted
from hilum_server.lanes import PriorityEngine, Turnstile

BATCH: Batch = np.zeros((1, 1, 1, 1, 1), np.float32)


class SlowEngine:
    """Takes 20 ms for a window, and notes whose it was and how many ran at once."""

    precision = "f32"

    def __init__(self) -> None:
        self.seen: list[float] = []
        self.running = self.most = 0

    def run(self, batch: Batch, output: Output = "logits") -> Batch:
        self.running += 1
        self.most = max(self.most, self.running)
        time.sleep(0.02)
        self.seen.append(float(batch.flat[0]))
        self.running -= 1
        return batch

    def run_weighted(self, batch: Batch, output: Output = "logits", out: Weighted | None = None) -> Weighted:
        return self.run(batch)

    def ready(self) -> bool:
        return True

    def close(self) -> None:
        pass


def run(engine: PriorityEngine, name: float, windows: int, pause: float = 0.0) -> threading.Thread:
    def work() -> None:
        for _ in range(windows):
            engine.run_weighted(BATCH + np.float32(name))
            time.sleep(pause)
        engine.finish()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_an_interactive_job_goes_before_the_next_window_of_a_batch_job() -> None:
    engine, turnstile = SlowEngine(), Turnstile()
    batch = run(PriorityEngine(engine, turnstile, urgent=False), 0, 12)
    time.sleep(0.05)
    click = run(PriorityEngine(engine, turnstile, urgent=True), 1, 4, pause=0.005)  # a gap between its windows
    click.join()
    batch.join()
    first = engine.seen.index(1)
    assert 1 <= first <= 5
    assert engine.seen[first : first + 4] == [1, 1, 1, 1], "a batch window slipped in between"
    assert engine.seen.count(0) == 12
    assert engine.most == 1


def test_an_interactive_job_that_ends_early_lets_the_others_go_on() -> None:
    engine, turnstile = SlowEngine(), Turnstile()
    urgent = PriorityEngine(engine, turnstile, urgent=True)
    urgent.run(BATCH)
    waiting = run(PriorityEngine(engine, turnstile, urgent=False), 0, 1)
    waiting.join(0.1)
    assert waiting.is_alive()
    urgent.finish()
    urgent.finish()  # twice does no harm
    waiting.join(5)
    assert not waiting.is_alive()


class QueueingEngine(SlowEngine):
    """One with a queue of its own."""

    in_flight = 3


def test_an_engine_with_a_queue_takes_several_windows_and_urgent_ones_beside_them() -> None:
    engine, turnstile = QueueingEngine(), Turnstile()
    batch = PriorityEngine(engine, turnstile, urgent=False)
    threads = [run(batch, 0, 3) for _ in range(6)]
    time.sleep(0.03)
    assert engine.most == 3
    urgent = PriorityEngine(engine, turnstile, urgent=True)
    urgent.run(BATCH + np.float32(1))
    assert engine.most == 4, "it waited for none of those that were under way"
    waiting = len(engine.seen)
    time.sleep(0.06)
    assert len(engine.seen) <= waiting + 3, "no window of the others was begun while the urgent job had its claim"
    urgent.finish()
    for thread in threads:
        thread.join()
    assert engine.seen.count(0) == 18
