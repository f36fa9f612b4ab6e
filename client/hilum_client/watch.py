"""A batch as it is seen: a bar for the cases, one for the windows of the case at hand, a line for each failure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hilum_client.report import CSV_NAME, JSON_NAME

if TYPE_CHECKING:
    from hilum_client.layouts import Case
    from hilum_client.report import Entry, Report


class Live:
    """Shows a batch on standard error; without a terminal one line a case."""

    def __init__(self, total: int) -> None:
        self._console = Console(stderr=True, soft_wrap=True, highlight=False)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self._bars = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._cases = self._bars.add_task("cases", total=total)
        self._windows = self._bars.add_task("", total=None)
        self._done = self._skipped = 0
        self._total = total

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def begins(self, case: Case) -> None:
        """Name the case at hand."""
        self._bars.reset(self._windows, description=case.name, total=None)

    def windows(self, done: int, total: int) -> None:
        """Windows of the case at hand."""
        self._bars.update(self._windows, completed=done, total=total)

    def ended(self, entry: Entry, skipped: bool) -> None:
        """Count a case; say why it failed."""
        self._done += 1
        self._skipped += skipped
        self._bars.update(self._cases, completed=self._done)
        if entry.status == "failed":
            self._console.print(f"{entry.case}: {entry.message} [{entry.code}]", markup=False)
        elif not self._console.is_terminal and not skipped:
            self._console.print(f"{self._done}/{self._total} {entry.case}: {entry.seconds:.1f} s", markup=False)

    def say(self, report: Report, failed: int) -> None:
        """The sum of it, on standard output."""
        made = self._done - failed - self._skipped
        earlier = f", {self._skipped} finished before" if self._skipped else ""
        console = Console(highlight=False, soft_wrap=True)
        console.print(f"{made} segmented{earlier}, {failed} failed.", markup=False)
        console.print(f"{report.folder / CSV_NAME}\n{report.folder / JSON_NAME}", markup=False)
