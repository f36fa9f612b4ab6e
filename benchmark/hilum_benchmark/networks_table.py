"""The networks side by side: one line each, as Markdown, as CSV, and as points of a plot."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hilum_benchmark.report import Report
from hilum_benchmark.table import QUICK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SLIDES: Final[dict[str, tuple[float, float]]] = {
    "unet3d": (16.32, 802.9),
    "vnet": (45.61, 322.5),
    "ahnet": (27.11, 29.5),
    "nnunet": (10.36, 202.25),
}
"""Millions of parameters and "FLOPS (G)" in the table of the WACV 2020 talk, for the same window."""
SEARCHED, COMPARED = "#c2542d", "#2a5f8f"
HEAD: Final = (
    "| network | parameters, M | GMAC | 2×MAC, G | activations, MiB: peak, sum | engine, s | torch, s | torch / engine "
    "| engine, % of GEMM peak | talk: parameters, M | talk: “FLOPS”, G |"
)


@dataclass(frozen=True)
class Line:
    """One network: counts, and CPU seconds of one window on one thread, None where they were not measured.

    ``hilum_s`` and ``torch_s`` are medians; ``gemm_gflops`` is the matrix product beside them.
    """

    network: str
    parameters: int | None
    gmac: float | None
    activations_peak_mib: float | None
    activations_sum_mib: float | None
    hilum_s: float | None
    hilum_least_s: float | None
    hilum_most_s: float | None
    torch_s: float | None
    torch_least_s: float | None
    torch_most_s: float | None
    gemm_gflops: float | None
    equal_percent: float | None
    rounds: int
    talk_parameters_m: float | None
    talk_flops_g: float | None

    def share(self, seconds: float | None) -> float | None:
        """Per cent of the matrix product's speed that a window in so many seconds amounts to."""
        if seconds is None or self.gmac is None or self.gemm_gflops is None or not seconds * self.gemm_gflops:
            return None
        return 100 * 2 * self.gmac / seconds / self.gemm_gflops


def lines(report: Report, names: Sequence[str]) -> list[Line]:
    """A line for every network that was measured, in the order of ``names``."""
    return [_line(report, name) for name in names if f"{name}/size" in report.rows or f"{name}/latency" in report.rows]


def _line(report: Report, name: str) -> Line:
    counted = report.rows.get(f"{name}/size", {}).get("medians", {}).get("size", {})
    seconds = report.rows.get(f"{name}/latency", {})
    median = seconds.get("medians", {}).get("latency", {})
    rounds = seconds.get("rounds", {}).get("latency", [])
    extremes = {
        f"{engine}_{word}_s": pick([measured[f"{engine}_s"] for measured in rounds]) if rounds else None
        for engine in ("hilum", "torch")
        for word, pick in (("least", min), ("most", max))
    }
    talk = SLIDES.get(name, (None, None))
    return Line(
        network=name,
        parameters=int(counted["parameters"]) if counted else None,
        gmac=counted.get("gmac"),
        activations_peak_mib=counted.get("peak_mib"),
        activations_sum_mib=counted.get("sum_mib"),
        hilum_s=median.get("hilum_s"),
        torch_s=median.get("torch_s"),
        gemm_gflops=median.get("gemm_gflops"),
        equal_percent=median.get("equal_percent"),
        rounds=len(rounds),
        talk_parameters_m=talk[0],
        talk_flops_g=talk[1],
        **extremes,
    )


def markdown(report: Report, found: Sequence[Line]) -> str:
    """The table, and where its seconds come from."""
    text = [f"**{QUICK}**", ""] if report.quick else []
    text += [HEAD, "|---" * HEAD.count(" | ") + "|---|", *(_row(line) for line in found), ""]
    timed = [line for line in found if line.hilum_s is not None]
    if timed:
        peaks = [line.gemm_gflops for line in timed if line.gemm_gflops is not None]
        least, most = (pick([line.rounds for line in timed]) for pick in (min, max))
        taken = "one round" if most == 1 else f"median of {most if least == most else f'{least} to {most}'} rounds"
        processors = sorted({row["cpu"] for name, row in report.rows.items() if name.endswith("/latency")})
        text += [
            f"Seconds: CPU time of one thread, {taken}, on {', '.join(processors)}; the f32 matrix "
            f"product beside them ran at {min(peaks):.0f} to {max(peaks):.0f} GFLOP/s.",
            "",
        ]
    for name, row in report.rows.items():
        for contender, why in row.get("failed", {}).items():
            text += [f"- {name}: no {contender} ({why.strip().splitlines()[-1][:200]})", ""]
    return "\n".join(text)


def _row(line: Line) -> str:
    ratio = None if line.torch_s is None or not line.hilum_s else line.torch_s / line.hilum_s
    cells = [
        line.network,
        _shown(None if line.parameters is None else line.parameters / 1e6, "{:.3f}"),
        _shown(line.gmac, "{:.2f}"),
        _shown(None if line.gmac is None else 2 * line.gmac, "{:.2f}"),
        f"{_shown(line.activations_peak_mib, '{:,.0f}')}, {_shown(line.activations_sum_mib, '{:,.0f}')}",
        _shown(line.hilum_s, "{:.2f}"),
        _shown(line.torch_s, "{:.2f}"),
        _shown(ratio, "{:.1f}×"),
        _shown(line.share(line.hilum_s), "{:.0f}"),
        _shown(line.talk_parameters_m, "{:.2f}"),
        _shown(line.talk_flops_g, "{:g}"),
    ]
    return "| " + " | ".join(cells) + " |"


def _shown(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def write_csv(found: Sequence[Line], path: Path) -> None:
    """Every field of every line, and the share of the matrix product's speed of both engines."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        fields = [field.name for field in dataclasses.fields(Line)]
        writer.writerow([*fields, "hilum_gemm_percent", "torch_gemm_percent"])
        for line in found:
            shares = [line.share(line.hilum_s), line.share(line.torch_s)]
            writer.writerow([*(getattr(line, name) for name in fields), *shares])


def plot(report: Report, found: Sequence[Line], path: Path) -> None:
    """A PNG of seconds over multiply-adds and over parameters, a named point for each network that was timed."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    drawing, (left, right) = plt.subplots(1, 2, figsize=(13, 6), layout="constrained", sharey=True)
    timed = [line for line in found if line.hilum_s is not None]
    _points(left, timed, lambda line: line.gmac or 0.0, "thousand millions of multiply-adds (GMAC)")
    _points(right, timed, lambda line: (line.parameters or 0) / 1e6, "millions of parameters")
    left.set_ylabel("CPU seconds of one window, one thread, embedded engine, f32")
    handles = [
        plt.Line2D([], [], marker="o", linestyle="", color=color, label=label)
        for color, label in ((SEARCHED, "searched spaces"), (COMPARED, "networks to compare with"))
    ]
    left.legend(handles=handles, loc="upper left", fontsize=9, frameon=False)
    drawing.suptitle(QUICK if report.quick else "4 x 96 x 96 x 96 to 4 classes", fontsize=12)
    drawing.savefig(path, dpi=120)
    plt.close(drawing)


def _points(axes: Axes, timed: Sequence[Line], value: Callable[[Line], float], label: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(True, which="both", alpha=0.2)
    for rank, line in enumerate(sorted(timed, key=lambda line: line.hilum_s or 0.0)):
        color = SEARCHED if line.network.startswith(("c2fnas", "vnas")) else COMPARED
        place = (value(line), line.hilum_s or 0.0)
        axes.plot(*place, "o", color=color, markersize=6)
        # Names left and right in turn: neighbours in seconds lie close together.
        side, where = ("left", (8, -4)) if rank % 2 else ("right", (-8, -4))
        axes.annotate(line.network, place, where, textcoords="offset points", fontsize=9, color=color, ha=side)
    axes.set_xlabel(label)
    axes.margins(x=0.3, y=0.12)
