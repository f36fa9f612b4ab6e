"""The learning curve of a run as CSV, one row at a time; a resumed run drops the rows it will write again."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

NAME = "curve.csv"


class Curve:
    """Rows of ``step`` and the given columns; a column without a value in a row stays empty."""

    def __init__(self, folder: Path, columns: Sequence[str]) -> None:
        self._path = folder / NAME
        self._columns = ["step", *columns]

    def begin(self, step: int) -> None:
        """Start the file, or keep its rows up to ``step``."""
        kept = []
        if step and self._path.is_file():
            with self._path.open(newline="") as file:
                kept = [row for row in csv.DictReader(file) if int(row["step"]) <= step]
        with self._path.open("w", newline="") as file:
            writer = self._writer(file)
            writer.writeheader()
            writer.writerows(kept)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """One more row, on disk at once."""
        with self._path.open("a", newline="") as file:
            self._writer(file).writerow({"step": step, **{name: f"{value:.5g}" for name, value in values.items()}})

    def _writer(self, file: object) -> csv.DictWriter[str]:
        return csv.DictWriter(file, self._columns, extrasaction="ignore")  # type: ignore[arg-type]
