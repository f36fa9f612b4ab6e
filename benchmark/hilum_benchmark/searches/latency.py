"""What the run's networks cost on the embedded engine: CPU milliseconds of a window, share of the matrix product."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from hilum_benchmark.process import MeasurementError
from hilum_benchmark.rows.networks import gemm_gflops
from hilum_benchmark.searches.bench import Bench, Entry
from hilum_search.architecture import Architecture, digest
from hilum_search.cost import cost
from hilum_search.latency import measure_whole
from hilum_search.limits import shapes_of
from hilum_search.on_engine import Shapes

TRIES = 3
"""Processes that measure a network; the least counts, as in a table of pieces."""
LARGE = (96, 96, 96)


def measured(bench: Bench, rows: Sequence[Entry], chosen: Sequence[str]) -> dict[str, Any]:
    """Figures of every network by its digest; of the first of each chosen kind also at 96x96x96."""
    here = shapes_of(bench.rules)
    large = dataclasses.replace(here, window=LARGE)
    networks = {digest(row.architecture): row.architecture for row in rows}
    firsts = {row.name: row.architecture for row in reversed(rows) if row.name in chosen}
    return {
        "window": here.window,
        "networks": {key: _figures(network, here) for key, network in networks.items()},
        "at_96": {name: _figures(firsts[name], large) for name in chosen if name in firsts},
        "gemm_gflops": gemm_gflops(),
    }


def equal_latency(bench: Bench, wanted: Architecture, alike: Sequence[Architecture]) -> Architecture:
    """Of networks from small to large the one whose window takes most nearly as long; looked for by halving.

    Raises:
        MeasurementError: the largest is still faster.
    """
    here = shapes_of(bench.rules)
    aim, known = _milliseconds(wanted, here), dict[int, float]()
    first, last = 0, len(alike) - 1
    while first < last:
        middle = (first + last) // 2
        known[middle] = _milliseconds(alike[middle], here)
        first, last = (middle + 1, last) if known[middle] < aim else (first, middle)
    if first == len(alike) - 1 and _milliseconds(alike[first], here) < aim:
        raise MeasurementError("Every network to compare with is faster; offer larger ones.")
    nearest = {n: known.get(n) or _milliseconds(alike[n], here) for n in {max(first - 1, 0), first}}
    return alike[min(nearest, key=lambda n: abs(nearest[n] - aim))]


def _milliseconds(network: Architecture, here: Shapes) -> float:
    return measure_whole(network, here, TRIES).ms


def _figures(network: Architecture, here: Shapes) -> dict[str, Any]:
    used, counted = measure_whole(network, here, TRIES), cost(network, here.in_channels, here.classes, here.window)
    gflops = 2 * counted.macs / used.ms / 1e6
    return {"ms": used.ms, "window_mib": used.window_mib, "gflops": gflops} | {
        "macs": counted.macs,
        "parameters": counted.parameters,
    }
