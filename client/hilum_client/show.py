"""What the command line shows: progress bars on standard error, tables on standard output."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from hilum_client.answers import Result


@contextmanager
def bars(unit: str = "windows") -> Iterator[Progress]:
    """Progress bars with count and time left; silent where standard error is no terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        yield progress


def counter(progress: Progress, title: str) -> Callable[[int, int], None]:
    """A new bar as a callback (done, total)."""
    task = progress.add_task(title, total=None)
    return lambda done, total: progress.update(task, completed=done, total=total)


def result_table(title: str, result: Result) -> Table:
    """Volumes of the labels."""
    seconds = result.timings.get("total", sum(result.timings.values()))
    variant = f" ({result.report['variant']})" if result.report.get("variant") else ""
    head = Text(f"{title}   {result.model} {result.version}{variant}, {seconds:.1f} s")
    table = Table(box=box.SIMPLE_HEAD, title=head, title_justify="left")
    table.add_column("label")
    table.add_column("volume, ml", justify="right")
    table.add_column("voxels", justify="right")
    for label in result.statistics:
        table.add_row(str(label["name"]), f"{label['ml']:.1f}", f"{label['voxels']:,}")
    return table
