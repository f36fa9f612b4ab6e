"""What a network of a search costs, what it may cost at most, and which topologies have one that keeps it."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

from hilum_search.architecture import Architecture, to_json
from hilum_search.cost import Cost, cost
from hilum_search.errors import ArchitectureError
from hilum_search.latency import Setting, Table, covering, measured_table
from hilum_search.on_engine import Shapes
from hilum_search.pareto import Candidate
from hilum_search.pieces import pieces
from hilum_search.progress import Report
from hilum_search.recipe import Recipe
from hilum_search.spaces import C2FNASSpace, Genotype, Space, VNASSpace

GIGA = 10**9
LATENCY = "latency.json"


@dataclass(frozen=True)
class Limits:
    """For one window; None: no limit.

    Attributes:
        gmac: multiply-accumulates, 10^9.
        params: parameters.
        latency_ms: CPU milliseconds on one thread of the embedded engine, by a table of measured pieces.
    """

    gmac: float | None = None
    params: int | None = None
    latency_ms: float | None = None


class Allowed:
    """Whether a network keeps the limits.

    Args:
        recipe: window, channels and classes of the network.
        limits: that it must keep.
        table: of latencies; needed where they are limited.
    """

    def __init__(self, recipe: Recipe, limits: Limits, table: Table | None = None) -> None:
        self.shapes, self.limits, self.table = shapes_of(recipe), limits, table

    @property
    def everything(self) -> bool:
        """Whether there are no limits."""
        return self.limits == Limits()

    def __call__(self, architecture: Architecture) -> bool:
        """Whether this one does."""
        most, ms = self.limits, self.ms(architecture)
        if most.latency_ms is not None and (ms is None or ms > most.latency_ms):
            return False
        if most.gmac is None and most.params is None:
            return True
        found = self.cost(architecture)
        heavy = most.gmac is not None and found.macs > most.gmac * GIGA
        large = most.params is not None and found.parameters > most.params
        return not (heavy or large)

    def ms(self, architecture: Architecture) -> float | None:
        """By the table; None where there is none."""
        return None if self.table is None else self.table.ms(architecture)

    def cost(self, architecture: Architecture) -> Cost:
        """Of one window."""
        return _cost(architecture, self.shapes)

    def candidate(self, name: str, architecture: Architecture, dice: float) -> Candidate:
        """The network for a Pareto set: counted, and by the table where there is one."""
        found, told = self.cost(architecture), None if self.table is None else self.table.predict(architecture)
        ms, peak = (None, None) if told is None else (told.ms, told.peak_mib)
        fields = json.loads(to_json(architecture))
        return Candidate(name, fields, dice, ms, peak, found.parameters, found.macs)


@functools.lru_cache(maxsize=4096)
def _cost(architecture: Architecture, shapes: Shapes) -> Cost:
    return cost(architecture, shapes.in_channels, shapes.classes, shapes.window)


def shapes_of(recipe: Recipe) -> Shapes:
    """What a network of the recipe takes and gives."""
    return Shapes(len(recipe.file.channels), recipe.classes, recipe.preprocessing.windows.size)


def operator_ms(table: Table, space: VNASSpace) -> tuple[tuple[float, ...], ...]:
    """(21, operators) milliseconds of each cell's operators, encoder first; noise may have measured less than none."""
    uniform = [pieces(space.build(Genotype(0, (n,) * space.cells))) for n in range(len(space.operators))]
    keys = [[piece.key for piece in row] for row in zip(*uniform, strict=True)]
    return tuple(tuple(max(0.0, table.pieces_ms[key]) for key in row) for row in keys if len(set(row)) > 1)


def table_in(folder: Path, recipe: Recipe, space: Space, report: Report | None) -> Table:
    """Milliseconds of all pieces of a space; what the folder of the search has already is not measured again."""
    return measured_table(folder / LATENCY, Setting(shapes_of(recipe)), covering(space), report)


def affordable(space: C2FNASSpace, allowed: Allowed) -> tuple[int, ...]:
    """The topologies with a network of one operator in every cell that keeps the limits.

    Raises:
        ArchitectureError: there is none.
    """
    if allowed.everything:
        return tuple(range(space.topologies))
    uniform = {
        n: [space.build(Genotype(n, (operator,) * space.cells)) for operator in range(len(space.operators))]
        for n in range(space.topologies)
    }
    found = tuple(n for n, networks in uniform.items() if any(map(allowed, networks)))
    if not found:
        raise _nothing(allowed, [each for networks in uniform.values() for each in networks])
    return found


def _nothing(allowed: Allowed, networks: list[Architecture]) -> ArchitectureError:
    costs = [allowed.cost(each) for each in networks]
    least = [f"the smallest has {min(each.parameters for each in costs):,} parameters"]
    least.append(f"the lightest takes {min(each.macs for each in costs) / GIGA:.3g} GMAC")
    times = [ms for each in networks if (ms := allowed.ms(each)) is not None]
    if times:
        least.append(f"the fastest {min(times):.3g} ms")
    return ArchitectureError(
        f"No network of the space keeps the limits: {', '.join(least)} a window; allow more, or search fewer --filters."
    )
