"""Figures for people: a Markdown table, and bars of what was achieved against what should be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hilum_benchmark.figures import Figure
from hilum_benchmark.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

QUICK = "Quick run with tiny sizes: this checks that the rows run, it says nothing about speed."
BAR_INCHES = 0.34
REACHED, MISSED = "#2a7f62", "#c2542d"


def markdown(report: Report) -> str:
    """The table of all rows, with what the machine was."""
    lines = [f"**{QUICK}**", ""] if report.quick else []
    lines += [
        "| row | what | peer | measured | least to most | reach | reached |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, figure in report.figures():
        cells = [name, figure.what, figure.peer or "", _value(figure.value, figure.unit)]
        cells += [f"{_number(figure.low)} to {_number(figure.high)}", _reach(figure), _verdict(figure)]
        lines.append("| " + " | ".join(cells) + " |")
    notes = [f"- {name}: {row['note']}" for name, row in report.rows.items() if row["note"]]
    notes += [
        f"- {name}: {contender} gave no result ({_short(why)})"
        for name, row in report.rows.items()
        for contender, why in row.get("failed", {}).items()
    ]
    machine = report.machine
    about = f"{_processors(report)}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}"
    threads = "two threads" if report.kind == "training" else "one thread each"
    return "\n".join([*lines, "", f"Measured on {about}; {threads}, CPU time.", "", *notes, ""])


def _processors(report: Report) -> str:
    """The processor, or each with the rows that were measured on it."""
    rows: dict[str, list[str]] = {}
    for name, row in report.rows.items():
        rows.setdefault(row["cpu"], []).append(name)
    if len(rows) < 2:
        return str(report.machine["cpu"])
    return "; ".join(f"{cpu} ({', '.join(names)})" for cpu, names in rows.items())


def plot(report: Report, path: Path) -> None:
    """A PNG of bars: how many times better than it should be, on a logarithmic scale; 1 is just reached."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figures = report.figures()
    height = 1.6 + BAR_INCHES * max(len(figures), 1)
    drawing, axes = plt.subplots(figsize=(10, height), layout="constrained")
    _bars(axes, figures)
    title = "Measured against what should be reached (bar right of the line: reached)"
    axes.set_title(QUICK if report.quick else title, fontsize=11)
    drawing.savefig(path, dpi=130)
    plt.close(drawing)


def _bars(axes: Axes, figures: list[tuple[str, Figure]]) -> None:
    margins = [min(max(figure.margin, 1e-2), 1e3) for _, figure in figures]
    labels = [f"{name}: {figure.what}" + (f", {figure.peer}" if figure.peer else "") for name, figure in figures]
    places = range(len(figures))
    axes.barh(
        places,
        [margin - 1 for margin in margins],
        left=1.0,
        color=[REACHED if figure.reached else MISSED for _, figure in figures],
        height=0.62,
    )
    axes.set_xscale("log")
    axes.axvline(1.0, color="black", linewidth=1)
    low, high = min([*margins, 1.0]), max([*margins, 1.0])
    axes.set_xlim(low / 1.6, high * 4)
    for place, (margin, (_, figure)) in enumerate(zip(margins, figures, strict=True)):
        text = f" {_value(figure.value, figure.unit)} (reach {_reach(figure)})"
        axes.text(max(margin, 1.0), place, text, va="center", fontsize=8)
    axes.set_yticks(places, labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("times better than the reach")


def _value(value: float, unit: str) -> str:
    return f"{_number(value)}{'×' if unit == 'x' else f' {unit}'}"


def _reach(figure: Figure) -> str:
    return f"{'≥' if figure.better == 'more' else '≤'} {_value(figure.reach, figure.unit)}"


def _verdict(figure: Figure) -> str:
    if figure.reached:
        return "yes"
    return f"no, {_number(figure.margin * 100)} % of it"


def _number(value: float) -> str:
    if 99.9 < value < 100:
        return f"{value:.5f}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _short(text: str) -> str:
    return text.strip().splitlines()[-1][:120] if text.strip() else "no message"
