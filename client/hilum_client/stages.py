"""Seconds and peak memory of the stages of a job in another process and its children."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

INTERVAL: Final = 0.03  # seconds between two looks


@dataclass(frozen=True)
class Stage:
    """One stage: wall seconds, and the most resident bytes of the watched processes together."""

    name: str
    seconds: float
    peak: int


@dataclass
class Stages:
    """Stages of the processes below ``pid``; ``with stages("upload"): ...`` measures one."""

    pid: int
    done: list[Stage] = field(default_factory=list)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure one stage."""
        start = time.perf_counter()
        peak, over = [resident(self.pid)], threading.Event()

        def look() -> None:
            while not over.wait(INTERVAL):
                peak[0] = max(peak[0], resident(self.pid))

        thread = threading.Thread(target=look, name="memory", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            seconds = time.perf_counter() - start
            self.done.append(Stage(name, seconds, max(peak[0], resident(self.pid))))


def resident(pid: int) -> int:
    """Bytes resident in a process and all its children together; 0 where it is gone."""
    import psutil

    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return 0
    total = 0
    for member in family:
        try:
            total += int(member.memory_info().rss)
        except psutil.Error:  # it ended meanwhile
            continue
    return total
