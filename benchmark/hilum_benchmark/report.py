"""The results file: one JSON that holds machine, versions, raw rounds and figures, written after every row."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hilum_benchmark.figures import Figure, Rounds
from hilum_benchmark.row import Row

FORMAT = "hilum.benchmark/1"


@dataclass
class Report:
    """Results of one kind of benchmark, of one machine.

    Attributes:
        kind: ``volume``...
        quick: tiny sizes: a check that the rows run, never figures.
        machine: as ``machine.facts``.
        rows: name -> JSON-able result.
    """

    kind: str
    quick: bool
    machine: dict[str, Any]
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def stem(self) -> str:
        """Name of its files, without suffix: quick results never take the place of figures."""
        return f"{self.kind}-quick" if self.quick else self.kind

    def keep(self, row: Row, rounds: Rounds, about: dict[str, Any]) -> None:
        """Add one measured row: ``about`` holds versions, source, load, failures."""
        self.rows[row.name] = {
            "title": row.title,
            "note": row.note,
            **about,
            "rounds": {name: [dict(measured) for measured in rounds[name]] for name in rounds},
            "medians": {name: _medians(rounds[name]) for name in rounds if rounds[name]},
            "figures": [as_json(figure) for figure in row.figures(rounds)],
        }

    def figures(self) -> list[tuple[str, Figure]]:
        """(row, figure) of all rows, in their order."""
        return [(name, parse_figure(found)) for name, row in self.rows.items() for found in row["figures"]]

    def write(self, folder: Path) -> Path:
        """Write ``<stem>.json`` whole or not at all; its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.stem}.json"
        content = {"format": FORMAT, **dataclasses.asdict(self)}
        part = path.with_suffix(".part")
        part.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(part, path)  # noqa: PTH105 - both names are in one folder
        return path


def read(folder: Path, kind: str, quick: bool) -> dict[str, dict[str, Any]]:
    """Rows measured before on any machine; empty where there are none."""
    path = folder / f"{Report(kind, quick, {}).stem}.json"
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    rows: dict[str, dict[str, Any]] = content["rows"] if content.get("format") == FORMAT else {}
    return rows


def as_json(figure: Figure) -> dict[str, Any]:
    """A figure with whether it reached."""
    return dataclasses.asdict(figure) | {"reached": figure.reached}


def parse_figure(found: dict[str, Any]) -> Figure:
    """A figure from its JSON."""
    return Figure(**{f.name: found[f.name] for f in dataclasses.fields(Figure)})


def _medians(rounds: Any) -> dict[str, float]:
    return {name: statistics.median(measured[name] for measured in rounds) for name in rounds[0]}
