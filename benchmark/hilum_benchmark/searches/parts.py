"""The parts of the run in their order: searches, controls, rankings, what networks cost, and the one later case."""

from __future__ import annotations

import dataclasses
import functools
import json
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

from hilum_benchmark.process import MeasurementError
from hilum_benchmark.searches.bench import Bench, Entry, entry
from hilum_benchmark.searches.latency import equal_latency, measured
from hilum_benchmark.searches.ranks import ranks
from hilum_benchmark.searches.served import served
from hilum_benchmark.serving import hilum_command
from hilum_search.architecture import VNAS, Architecture, Operator
from hilum_search.baseline_architectures import NnUNet
from hilum_search.cost import cost
from hilum_search.driver import REPORT
from hilum_search.limits import shapes_of
from hilum_search.vnas import RECORD
from hilum_search.vnas_run import SUPERNET

Part = Callable[[Bench], dict[str, Any]]

C2FNAS, FIXED, UNETS, RANKS, LATENCY, SERVED = "c2fnas", "fixed", "unets", "ranks", "latency", "served"
OPERATORS: tuple[Operator, ...] = ("2d", "3d", "p3d")
FOUND, RANDOM, COARSE = "V-NAS", "random search", "C2FNAS"
EQUAL_MACS, EQUAL_LATENCY = "U-Net of equal MACs", "U-Net of equal latency"
LARGEST_UNET = 24
"""Filters of the widest U-Net that is looked at."""


def parts(bench: Bench) -> dict[str, Part]:
    """Every part by its name; a later one may read what an earlier one came to."""
    searches = {_vnas(seed): functools.partial(vnas, seed=seed) for seed in bench.amounts.seeds}
    return {**searches, C2FNAS: c2fnas, FIXED: fixed, UNETS: unets, RANKS: ranks, LATENCY: _latency, SERVED: _served}


def vnas(bench: Bench, seed: int) -> dict[str, Any]:
    """``hilum search vnas`` with its random search."""
    a, folder = bench.amounts, _vnas(seed)
    words = ["--steps", a.steps, "--rate", a.rate, "--random-steps", a.random_steps, "--seed", seed]
    report = _search(bench, "vnas", folder, words)
    supernet = json.loads((bench.work / folder / SUPERNET / RECORD).read_text())
    return report | {"entropy": supernet["entropy"]}


def c2fnas(bench: Bench) -> dict[str, Any]:
    """``hilum search c2fnas``."""
    a = bench.amounts
    words = ["--filters", a.filters, "--children", a.children, "--child-steps", a.child_steps]
    return _search(bench, "c2fnas", C2FNAS, [*words, "--supernet-steps", a.supernet_steps])


def fixed(bench: Bench) -> dict[str, Any]:
    """The three networks of the V-NAS layout with one operator everywhere."""
    return bench.train(FIXED, {f"{name.upper()}/{name.upper()}": _all(bench, name) for name in OPERATORS})


def unets(bench: Bench) -> dict[str, Any]:
    """nnU-Net's plain U-Net, as wide as the V-NAS network of the first seed allows by arithmetic and by latency."""
    found = _found(bench, bench.amounts.seeds[0]).architecture
    alike = [NnUNet(filters) for filters in range(2, LARGEST_UNET + 1)]
    wanted = _macs(bench, found)
    networks = {
        EQUAL_MACS: min(alike, key=lambda network: abs(_macs(bench, network) - wanted)),
        EQUAL_LATENCY: equal_latency(bench, found, alike),
    }
    return bench.train(UNETS, networks)


def entries(bench: Bench) -> list[Entry]:
    """Every network of the parts that are done, in the order of the page."""
    done = [seed for seed in bench.amounts.seeds if bench.has(_vnas(seed))]
    rows = [_found(bench, seed) for seed in done]
    if bench.has(C2FNAS):
        rows.append(entry(COARSE, C2FNAS, bench.read(C2FNAS)["retrained"]["found"]))
    rows += [entry(RANDOM, _vnas(seed), bench.read(_vnas(seed))["retrained"]["random"]) for seed in done]
    for part in (FIXED, UNETS):
        if bench.has(part):
            rows += [entry(name, part, found) for name, found in bench.read(part).items()]
    return rows


def _latency(bench: Bench) -> dict[str, Any]:
    return measured(bench, entries(bench), [FOUND, COARSE])


def _served(bench: Bench) -> dict[str, Any]:
    return served(bench, entries(bench))


def _search(bench: Bench, method: str, folder: str, words: Sequence[object]) -> dict[str, Any]:
    """The report of a search by the command line; a finished one is read back."""
    own = ["search", method, "--recipe", bench.recipe, "--data", bench.data, "--out", bench.work / folder]
    command = [*own, *words, "--device", "cpu", "--workers", bench.workers]
    if subprocess.run(hilum_command(*map(str, command)), check=False).returncode:  # noqa: S603 - our own command
        raise MeasurementError(f"hilum {' '.join(map(str, command))} failed")
    report: dict[str, Any] = json.loads((bench.work / folder / REPORT).read_text())
    return report


def _vnas(seed: int) -> str:
    return f"vnas-{seed}"


def _found(bench: Bench, seed: int) -> Entry:
    return entry(FOUND, _vnas(seed), bench.read(_vnas(seed))["retrained"]["found"])


def _all(bench: Bench, operator: Operator) -> VNAS:
    template = bench.rules.architecture
    if not isinstance(template, VNAS):
        raise MeasurementError(f"the recipe's network is of family {template.family}; it must be vnas")
    encoder, decoder = (operator,) * len(template.encoder), (operator,) * len(template.decoder)
    return dataclasses.replace(template, encoder=encoder, decoder=decoder)


def _macs(bench: Bench, architecture: Architecture) -> int:
    here = shapes_of(bench.rules)
    return cost(architecture, here.in_channels, here.classes, here.window).macs
