"""Where a search stands, told as it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """A stage of a search under way.

    Attributes:
        name: of the stage, as the ledger has it.
        done, total: of its steps or children.
        best: the best mean Dice so far; None before there is one.
        seconds_left: of this stage; None where nobody knows yet.
    """

    name: str
    done: int
    total: int
    best: float | None = None
    seconds_left: float | None = None


Report = Callable[[Stage], None]
