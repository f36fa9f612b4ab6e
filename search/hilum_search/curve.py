"""The learning curve of a run: a CSV, one row at a time, its picture, and TensorBoard's files where it is installed.

A resumed run drops the rows that it will write again.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME, PICTURE = "curve.csv", "curve.png"
BOARD = "tensorboard"


class Curve:
    """Rows of ``step`` and the given columns; a column without a value in a row stays empty."""

    def __init__(self, folder: Path, columns: Sequence[str]) -> None:
        self._folder = folder
        self._path = folder / NAME
        self._columns = ["step", *columns]
        self._board: Any = None

    def begin(self, step: int) -> None:
        """Start the file, or keep its rows up to ``step``."""
        kept = [row for row in read(self._folder) if int(row["step"]) <= step] if step else []
        with self._path.open("w", newline="") as file:
            writer = self._writer(file)
            writer.writeheader()
            writer.writerows(kept)
        self._board = _board(self._folder / BOARD, step)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """One more row, on disk at once."""
        with self._path.open("a", newline="") as file:
            self._writer(file).writerow({"step": step, **{name: f"{value:.5g}" for name, value in values.items()}})
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def end(self) -> None:
        """Draw the picture, and close what is open."""
        if self._board is not None:
            self._board.close()
        plot(self._folder)

    def _writer(self, file: object) -> csv.DictWriter[str]:
        return csv.DictWriter(file, self._columns, extrasaction="ignore")  # type: ignore[arg-type]


def read(folder: Path) -> list[dict[str, str]]:
    """The rows of a run's curve; none where there is no curve yet."""
    path = folder / NAME
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def plot(folder: Path) -> None:
    """``curve.png``: the loss on the left axis, the Dice of what is held back on the right one."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows = read(folder)
    drawing, losses = plt.subplots(figsize=(9, 4.5), layout="constrained")
    steps = [int(row["step"]) for row in rows if row["loss"]]
    losses.plot(
        steps, [float(row["loss"]) for row in rows if row["loss"]], color="#444c5c", linewidth=1.5, label="loss"
    )
    losses.set(xlabel="step", ylabel="loss (running mean)", title=folder.name)
    losses.set_ylim(bottom=0)
    labels = [name for name in (rows[0] if rows else {}) if name not in ("step", "loss", "rate", "cpu_seconds")]
    if any(row[name] for row in rows for name in labels):
        _scores(losses.twinx(), rows, labels)
    drawing.legend(loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    drawing.savefig(folder / PICTURE, dpi=120)
    plt.close(drawing)


def _scores(axes: Axes, rows: Sequence[Mapping[str, str]], labels: Sequence[str]) -> None:
    for label in labels:
        points = [(int(row["step"]), float(row[label])) for row in rows if row[label]]
        if points:
            style = "--" if label.endswith(" enhanced") else "-"
            axes.plot(*zip(*points, strict=True), style, marker="o", markersize=4, label=label)
    axes.set(ylabel="Dice of what is held back")
    axes.set_ylim(0, 1)


def _board(folder: Path, step: int) -> Any:
    """TensorBoard's writer, where it is installed."""
    from importlib.util import find_spec

    if find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
