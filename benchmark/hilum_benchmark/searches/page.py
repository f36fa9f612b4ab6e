"""The page of the run, made from the result files of its parts: a table, a picture, the rankings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hilum_benchmark.searches import parts
from hilum_benchmark.searches.bench import Bench, Entry, averaged
from hilum_benchmark.searches.served import DEMO
from hilum_search import vnas_run
from hilum_search.architecture import digest
from hilum_search.c2fnas import coarse, fine, supernet_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GIGA = 1e9
SEARCHED, OTHERS = "#2f6db3", "#b3572f"
HEAD = "| network | runs | held-out Dice | {labels} | later case | M parameters | GMAC | ms | search, CPU min |"


@dataclass(frozen=True)
class Line:
    """A kind of network, over the seeds that it was run with.

    Attributes:
        name: of the kind.
        held_out: mean Dice of each run on the slab.
        labels: Dice by label, mean over the runs.
        later: mean Dice of each run on the later case; empty where it was not scored.
        parameters, gmac, ms: mean over the runs; ms None where it was not measured.
        search_minutes: CPU minutes of each run's search; empty where nobody searched.
    """

    name: str
    held_out: tuple[float, ...]
    labels: Mapping[str, float]
    later: tuple[float, ...]
    parameters: float | None
    gmac: float | None
    ms: float | None
    search_minutes: tuple[float, ...]


def lines(bench: Bench) -> list[Line]:
    """A line for every kind, in the order of the page."""
    kinds: dict[str, list[Entry]] = {}
    for row in parts.entries(bench):
        kinds.setdefault(row.name, []).append(row)
    return [_line(bench, name, rows) for name, rows in kinds.items()]


def markdown(bench: Bench) -> str:
    """All that the page shows of the run."""
    blocks = [_table(bench, lines(bench)), _gaps(bench), _ranks(bench), _peak(bench)]
    return "\n\n".join("\n".join(block) for block in map(list, blocks) if block) + "\n"


def write(bench: Bench) -> str:
    """Write table and picture beside the results; the table."""
    text = markdown(bench)
    (bench.out / "search.md").write_text(text)
    if bench.has(parts.LATENCY):
        plot(bench, bench.out / "search.png")
    return text


def plot(bench: Bench, path: Path) -> None:
    """A PNG: Dice on the slab over milliseconds of a window, a point for every run; what was searched in blue."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figures = bench.read(parts.LATENCY)["networks"]
    drawing, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    for row in parts.entries(bench):
        if (known := figures.get(digest(row.architecture))) is not None:
            _point(axes, row, known["ms"])
    axes.set_xlabel("CPU milliseconds of a window, one thread, embedded engine, f32")
    axes.set_ylabel("mean Dice on the held-back slab")
    axes.grid(True, alpha=0.2)
    axes.margins(x=0.18, y=0.1)
    drawing.savefig(path, dpi=120)
    plt.close(drawing)


def _point(axes: Axes, row: Entry, ms: float) -> None:
    searched = row.name in (parts.FOUND, parts.COARSE, parts.RANDOM)
    color = SEARCHED if searched else OTHERS
    axes.plot(ms, row.mean, "o", color=color, markersize=6)
    axes.annotate(row.name, (ms, row.mean), (7, -3), textcoords="offset points", fontsize=8, color=color)


def _line(bench: Bench, name: str, rows: Sequence[Entry]) -> Line:
    figures = bench.read(parts.LATENCY)["networks"] if bench.has(parts.LATENCY) else {}
    scored = bench.read(parts.SERVED)["models"] if bench.has(parts.SERVED) else {}
    costs = [figures[key] for row in rows if (key := digest(row.architecture)) in figures]
    later = tuple(_mean(scored[row.folder]["dice"]) for row in rows if row.folder in scored)
    return Line(
        name,
        tuple(row.mean for row in rows),
        {label: _middle([row.dice[label] for row in rows]) or 0.0 for label in rows[0].dice},
        later,
        _middle([cost["parameters"] / 1e6 for cost in costs]),
        _middle([cost["macs"] / GIGA for cost in costs]),
        _middle([cost["ms"] for cost in costs]),
        tuple(_search_minutes(bench, name, row) for row in rows) if _stages(name) else (),
    )


def _stages(name: str) -> tuple[str, ...]:
    """Stages of the ledger that a kind's search took."""
    stages = {
        parts.FOUND: (vnas_run.SUPERNET,),
        parts.RANDOM: (vnas_run.RANDOM,),
        parts.COARSE: (coarse.STAGE, supernet_run.SUPERNET, fine.RANK),
    }
    return stages.get(name, ())


def _search_minutes(bench: Bench, name: str, row: Entry) -> float:
    spent: dict[str, dict[str, float]] = bench.read(row.folder.split("/")[0])["cost"]
    return 60 * sum(spent[stage]["cpu_hours"] for stage in _stages(name))


def _table(bench: Bench, found: Sequence[Line]) -> Iterator[str]:
    if not found:
        return
    labels = list(found[0].labels)
    head = HEAD.format(labels=" | ".join(labels))
    yield head
    yield "|---" * (head.count("|") - 1) + "|"
    for line in found:
        dice = " | ".join(f"{line.labels[label]:.3f}" for label in labels)
        cells = [line.name, str(len(line.held_out)), _spread(line.held_out), dice, _spread(line.later)]
        costs = [_shown(line.parameters, 2), _shown(line.gmac, 2), _shown(line.ms, 0), _spread(line.search_minutes, 0)]
        yield "| " + " | ".join([*cells, *costs]) + " |"
    if bench.has(parts.SERVED):
        demo = _mean(bench.read(parts.SERVED)["models"][DEMO]["dice"])
        blanks = " | ".join("–" for _ in labels)
        yield f"| shipped demo model (all planes) | 1 | – | {blanks} | {demo:.3f} | – | – | – | – |"


def _gaps(bench: Bench) -> Iterator[str]:
    done = [n for n in bench.amounts.seeds if bench.has(f"vnas-{n}")]
    if not done:
        return
    yield "| V-NAS, seed | Dice of the super-net (Mix) | found and retrained | gap | entropy left, encoder / decoder |"
    yield "|---|---|---|---|---|"
    for seed in done:
        report = bench.read(f"vnas-{seed}")
        final, left = report["retrained"]["found"]["mean"], report["entropy"]
        shares = " / ".join(f"{_share(left[part], left['largest']):.0f} %" for part in ("encoder", "decoder"))
        yield f"| {seed} | {_mean(report['mix']['test']):.3f} | {final:.3f} | {report['gap']:+.3f} | {shares} |"


def _ranks(bench: Bench) -> Iterator[str]:
    if not bench.has(parts.RANKS):
        return
    found = bench.read(parts.RANKS)
    yield f"| way of judging {len(found['walks'])} topologies | steps | CPU time | Kendall's tau with full training |"
    yield "|---|---|---|---|"
    for name, way in found["ways"].items():
        share = f"{100 * way['cost']['steps']:.0f} % | {100 * way['cost']['cpu']:.0f} %"
        tau = "–" if way["tau"] is None else f"{way['tau']:.2f} ({way['low']:.2f} to {way['high']:.2f})"
        yield f"| {name} | {share} | {tau} |"


def _peak(bench: Bench) -> Iterator[str]:
    if not bench.has(parts.LATENCY):
        return
    found = bench.read(parts.LATENCY)
    yield "| at 96x96x96, one thread | ms | GFLOP/s | share of the matrix product |"
    yield "|---|---|---|---|"
    for name, figures in found["at_96"].items():
        share = 100 * figures["gflops"] / found["gemm_gflops"]
        yield f"| {name} | {figures['ms']:,.0f} | {figures['gflops']:.0f} | {share:.0f} % |"


def _spread(values: Sequence[float], digits: int = 3) -> str:
    if not values:
        return "–"
    middle, half = averaged(values)
    return f"{middle:.{digits}f}" + (f" ± {half:.{digits}f}" if len(values) > 1 else "")


def _shown(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _mean(dice: Mapping[str, float]) -> float:
    known = [value for value in dice.values() if not math.isnan(value)]
    return sum(known) / len(known)


def _middle(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _share(values: Sequence[float], largest: float) -> float:
    return 100 * sum(values) / len(values) / largest
