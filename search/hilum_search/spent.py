"""What a run has cost so far: CPU seconds of its process, and seconds for which it held a GPU."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Spent:
    """Seconds; the GPU's are those of the clock on the wall, since whoever waits for it holds it too."""

    cpu_seconds: float = 0.0
    gpu_seconds: float = 0.0

    @classmethod
    def of(cls, notes: Mapping[str, Any]) -> Spent:
        """From what was written by ``fields``; what is missing there was not spent."""
        return cls(float(notes.get("cpu_seconds", 0.0)), float(notes.get("gpu_seconds", 0.0)))

    def fields(self) -> dict[str, float]:
        """As JSON has it."""
        return asdict(self)


class Clock:
    """Counts from now on, on top of what earlier processes of the same run spent.

    Args:
        device: that the run computes on.
        before: spent by earlier processes.
    """

    def __init__(self, device: torch.device, before: Spent | None = None) -> None:
        earlier = before or Spent()
        self._cpu = time.process_time() - earlier.cpu_seconds
        self._gpu = time.monotonic() - earlier.gpu_seconds if device.type == "cuda" else None
        self._held = earlier.gpu_seconds

    def read(self) -> Spent:
        """All so far, to the millisecond."""
        held = self._held if self._gpu is None else time.monotonic() - self._gpu
        return Spent(round(time.process_time() - self._cpu, 3), round(held, 3))
