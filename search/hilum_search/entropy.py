"""How decided a V-NAS search is: the entropy of every cell's operator probabilities over its steps, CSV and picture.

A resumed search drops the rows that it will write again.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME, PICTURE = "entropy.csv", "entropy.png"


def entropies(probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    """Entropy of each row in nats: 0 where one operator has it all, ln(operators) where all are alike.

    Args:
        probabilities: (cells, operators), every row of sum 1.

    >>> entropies(np.array([[0.0, 1.0, 0.0], [0.25, 0.5, 0.25]])).round(4).tolist()
    [0.0, 1.0397]
    """
    shares = np.asarray(probabilities, np.float64)
    found: NDArray[np.float64] = 0.0 - (shares * np.log(np.where(shares > 0, shares, 1.0))).sum(1)
    return found


class Trace:
    """``entropy.csv``: a row of nats for a step: the mean of the encoder, of the decoder, then every cell.

    Args:
        folder: of the search.
        encoder, decoder: their number of cells.
    """

    def __init__(self, folder: Path, encoder: int, decoder: int) -> None:
        self._path = folder / NAME
        self._encoder = encoder
        self._columns = ["step", "encoder", "decoder", *_names("encoder", encoder), *_names("decoder", decoder)]

    def begin(self, step: int) -> None:
        """Start the file, or keep its rows up to ``step``."""
        kept = [row for row in read(self._path.parent) if int(row["step"]) <= step] if step else []
        partial = self._path.with_name(f".{NAME}.partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(kept)
        partial.replace(self._path)

    def add(self, step: int, probabilities: NDArray[np.floating]) -> None:
        """One more row, on disk at once; ``probabilities`` (cells, operators), encoder first."""
        found = entropies(probabilities)
        means = found[: self._encoder].mean(), found[self._encoder :].mean()
        with self._path.open("a", newline="") as file:
            csv.writer(file).writerow([step, *(f"{value:.9g}" for value in (*means, *found))])


def read(folder: Path) -> list[dict[str, str]]:
    """The rows of a search; none where there are none yet. A row cut off by a sudden end is left out."""
    path = folder / NAME
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if all(row.values())]


def plot(folder: Path, warmup: int, operators: int = 3) -> None:
    """``entropy.png``: encoder on the left, decoder on the right, a thin line for each cell, a bold one for the mean.

    Args:
        folder: of the search.
        warmup: the step from which alpha and beta are trained.
        operators: that a cell chooses from.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows, most = read(folder), math.log(operators)
    drawing, panels = plt.subplots(1, 2, figsize=(11, 4.8), sharey=True, layout="constrained")
    for axes, part in zip(panels, ("encoder", "decoder"), strict=True):
        _lines(axes, rows, part)
        axes.axhline(most, color="black", linewidth=0.8, linestyle=":", label=f"all operators alike: ln {operators}")
        axes.axvline(warmup, color="#b03a2e", linewidth=1.2, linestyle="--", label="alpha and beta trained from here")
        axes.set(xlabel="step", title=part)
    panels[0].set(ylabel="entropy of a cell's operators (nats)")
    panels[0].set_ylim(0, 1.06 * most)
    share = panels[1].secondary_yaxis("right", functions=(lambda nats: nats / most, lambda part: part * most))
    share.set_ylabel(f"share of ln {operators}")
    handles, labels = panels[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    drawing.savefig(folder / PICTURE, dpi=120)
    plt.close(drawing)


def _lines(axes: Axes, rows: Sequence[dict[str, str]], part: str) -> None:
    """Every cell of a part, pale to dark from the input on, and their mean."""
    import matplotlib as mpl

    steps = [int(row["step"]) for row in rows]
    cells = [name for name in (rows[0] if rows else {}) if name.startswith(f"{part}_")]
    colours = mpl.colormaps["viridis_r"](np.linspace(0.15, 0.95, max(len(cells), 1)))
    for name, colour in zip(cells, colours, strict=False):
        label = {cells[0]: "first cell (pale)", cells[-1]: "last cell (dark)"}.get(name)
        axes.plot(steps, [float(row[name]) for row in rows], color=colour, linewidth=0.8, label=label)
    axes.plot(steps, [float(row[part]) for row in rows], color="black", linewidth=2.5, label="mean")


def _names(part: str, cells: int) -> list[str]:
    return [f"{part}_{number}" for number in range(1, cells + 1)]
