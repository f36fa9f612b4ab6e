"""How far a job is, and what it was planned to cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Progress:
    """Windows done, all windows, the seconds left where they are known, and what it was planned to cost.

    Attributes:
        plan: ``{"windows", "bytes", "seconds"}`` as the worker told it before the first window; None: not told yet.
    """

    done: int = 0
    total: int = 0
    seconds_left: float | None = None
    plan: Mapping[str, Any] | None = None


def reported(report: Mapping[str, Any]) -> Progress:
    """Of a job that has ended, from its report."""
    if not report:
        return Progress()
    windows = int(report.get("windows", 0))
    plan = {"windows": windows, "bytes": report.get("planned_bytes", 0), "seconds": report.get("planned_seconds")}
    return Progress(windows, windows, 0.0 if windows else None, plan)
