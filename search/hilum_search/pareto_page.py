"""The Pareto set as one HTML page that needs nothing else: a plot, limits to play with, a table that sorts."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Final

from hilum_inference.files import write_atomically
from hilum_search.pareto import (
    Box,
    Candidate,
    Objective,
    axis_title,
    best_first,
    cost_axis,
    figures,
    front,
    left_out,
    overlap,
    shown,
)

NAME: Final = "pareto.html"
WIDTH, HEIGHT = 1000, 440
LEFT, RIGHT, TOP, BOTTOM = 62, 28, 26, 54
LETTER: Final = 6.6  # pixels; of a name, on the safe side
LINE: Final = 15
REACH: Final = 8.0  # pixels around a point that names keep off
PLACES: Final = ((-9, -9, "end"), (9, 17, "start"), (9, -9, "start"), (-9, 17, "end"), (0, -22, "middle"))
"""Where a name may stand: its base line's offset from the point, and which of its ends lies there."""

NAMED: Final = 3
"""So many networks outside the plot are named."""

COLUMNS: Final = (
    ("name", "network"),
    ("dice", "Dice, %"),
    ("ms", "ms"),
    ("gmac", "GMAC"),
    ("params", "parameters"),
    ("peak", "memory, MiB"),
    ("front", "Pareto"),
)


def write_page(path: Path, candidates: Sequence[Candidate], title: str) -> None:
    """Write the page, all of it or nothing."""
    write_atomically(path, page(candidates, title).encode())


def page(candidates: Sequence[Candidate], title: str) -> str:
    """The page as text.

    Args:
        candidates: all networks, those without a Dice too: they stand in the table only.
        title: of the page, plain text.
    """
    template = files("hilum_search").joinpath(NAME).read_text(encoding="utf-8")
    axis = cost_axis(candidates)
    ordered = [*best_first(candidates), *(c for c in candidates if math.isnan(c.dice))]
    chosen = front(candidates, (axis,))
    return Template(template).substitute(
        title=escape(title),
        script_hash=_script_hash(template),
        lead=_lead(candidates, chosen, axis),
        plot=_plot(ordered, chosen, axis),
        limits="\n".join(_limits(candidates)),
        head="".join(_heading(key, text) for key, text in COLUMNS),
        rows="\n".join(_row(n, c, c in chosen) for n, c in enumerate(ordered)),
    )


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers from ``low`` to ``high``, evenly spaced.

    >>> ticks(0.3, 10)
    [2.0, 4.0, 6.0, 8.0, 10.0]
    """
    rough = max(high - low, 1e-9) / about
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(n * step, 10) for n in range(first, last + 1)]


def _lead(candidates: Sequence[Candidate], chosen: Sequence[Candidate], axis: Objective) -> str:
    against = "latency on the embedded engine" if axis == "ms" else "multiply-accumulates"
    text = (
        f"{len(candidates)} networks, {len(chosen)} of them with the best Dice for their {against}. "
        "Move a limit: the best network within it is named below, with the options that pick it."
    )
    absent = [f"{name}, {reason}" for name, reason in left_out(candidates, (axis,)).items()]
    if absent:
        more = f"; and {len(absent) - NAMED} more" if len(absent) > NAMED else ""
        text += f" Not in the plot: {'; '.join(absent[:NAMED])}{more}."
    return escape(text)


class _Frame:
    """From cost and Dice to pixels."""

    def __init__(self, points: Sequence[tuple[float, float]]) -> None:
        costs, scores = [p[0] for p in points] or [0.0, 1.0], [p[1] for p in points] or [0.0, 100.0]
        self.costs = _widened(min(costs), max(costs))
        self.scores = _widened(min(scores), max(scores))

    def x(self, cost: float) -> float:
        low, high = self.costs
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (cost - low) / (high - low), 1)

    def y(self, score: float) -> float:
        low, high = self.scores
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (score - low) / (high - low), 1)


def _widened(low: float, high: float) -> tuple[float, float]:
    margin = 0.08 * (high - low) or max(0.1 * abs(high), 0.1)
    return max(low - margin, 0.0), high + margin


def _plot(ordered: Sequence[Candidate], chosen: Sequence[Candidate], axis: Objective) -> str:
    drawn = [(n, c) for n, c in enumerate(ordered) if c.name not in left_out([c], (axis,))]
    at = {n: (shown(c, axis), 100 * c.dice) for n, c in drawn}
    frame = _Frame(list(at.values()))
    places = {n: (frame.x(cost), frame.y(score)) for n, (cost, score) in at.items()}
    best = [n for n, c in drawn if c in chosen]
    circles = [_circle(n, c, places[n], c in chosen) for n, c in drawn]
    return "\n".join(
        [
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Dice against {escape(axis_title(axis))}">',
            *_axes(frame, axis),
            _steps([places[n] for n in best]),
            *_names({n: c.name for n, c in drawn if c in chosen}, places),
            f"<g>{''.join(reversed(circles))}</g>",
            "</svg>",
        ]
    )


def _axes(frame: _Frame, axis: Objective) -> list[str]:
    right, floor = WIDTH - RIGHT, HEIGHT - BOTTOM
    lines = []
    for value in ticks(*frame.scores):
        y = frame.y(value)
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y}" y2="{y}"/>')
        lines.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{value:g}</text>')
    for value in ticks(*frame.costs, about=8):
        x = frame.x(value)
        lines.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{TOP}" y2="{floor}"/>')
        lines.append(f'<text x="{x}" y="{floor + 18}" text-anchor="middle">{value:g}</text>')
    middle = (LEFT + right) / 2
    lines.append(f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">{escape(axis_title(axis))}</text>')
    lines.append(f'<text x="{LEFT - 8}" y="{TOP - 10}" text-anchor="end">Dice, %</text>')
    return lines


def _steps(places: Sequence[tuple[float, float]]) -> str:
    """The best Dice that a budget buys, from the cheapest of the front to the right edge."""
    if not places:
        return ""
    across = sorted(set(places))
    path = f"M{across[0][0]} {across[0][1]}" + "".join(f"H{x}V{y}" for x, y in across[1:]) + f"H{WIDTH - RIGHT}"
    return f'<path class="step" d="{path}"/>'


def _circle(n: int, candidate: Candidate, place: tuple[float, float], best: bool) -> str:
    x, y = place
    kind, radius = ("point front", 6.5) if best else ("point", 5)
    title = f"{candidate.name}: Dice {100 * candidate.dice:.1f} %, {figures(candidate)}"
    return f'<circle class="{kind}" data-n="{n}" cx="{x}" cy="{y}" r="{radius}"><title>{escape(title)}</title></circle>'


def _names(names: dict[int, str], places: dict[int, tuple[float, float]]) -> list[str]:
    """Names where they cover neither a point nor another name."""
    taken: list[Box] = [(x - REACH, y - REACH, x + REACH, y + REACH) for x, y in places.values()]
    written = []
    for n, name in names.items():
        for right, down, anchor in PLACES:
            x, y = places[n][0] + right, places[n][1] + down
            left = x - LETTER * len(name) * {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor]
            box = (left, y - LINE + 3, left + LETTER * len(name), y + 3)
            inside = box[0] >= LEFT + 6 and box[2] <= WIDTH - RIGHT and box[1] >= 0 and box[3] <= HEIGHT - BOTTOM
            if inside and not any(overlap(box, other) for other in taken):
                taken.append(box)
                written.append(f'<text class="name" x="{x}" y="{y}" text-anchor="{anchor}">{escape(name)}</text>')
                break
    return written


def _limits(candidates: Sequence[Candidate]) -> list[str]:
    """A slider and a box for each limit that some network has a figure for."""
    known = [c.ms for c in candidates if c.ms is not None]
    return [
        *_limit("ms", "latency, ms", "--max-latency-ms", known),
        *_limit("gmac", "GMAC", "--max-gmac", [c.gmac for c in candidates]),
        *_limit("params", "parameters", "--max-params", [float(c.params) for c in candidates]),
    ]


def _limit(name: str, text: str, option: str, values: Sequence[float]) -> list[str]:
    if not values:
        return []
    step = _step(max(values))
    low, high = math.floor(min(values) / step) * step, math.ceil(max(values) / step) * step
    bounds = f'min="{low:.10g}" max="{max(high, low + step):.10g}" step="{step:.10g}"'
    return [
        f'<label class="limit" data-name="{name}" data-option="{option}"><span>{text}</span>'
        f'<input type="range" aria-label="{text}, slider" {bounds} value="{high:.10g}">'
        f'<input type="number" aria-label="{text}" min="0" step="any" placeholder="no limit"></label>'
    ]


def _step(high: float) -> float:
    """A round number of which the highest value holds some hundreds."""
    return float(10.0 ** math.floor(math.log10(max(high, 1e-9) / 200)))


def _heading(key: str, text: str) -> str:
    sort = ' aria-sort="descending"' if key == "dice" else ""
    return f'<th scope="col"{sort}><button type="button" data-key="{key}">{text}</button></th>'


def _row(rank: int, candidate: Candidate, best: bool) -> str:
    known = not math.isnan(candidate.dice)
    values = {
        "n": rank,
        "rank": rank,
        "name": candidate.name,
        "dice": f"{100 * candidate.dice:.6g}" if known else "",
        "ms": "" if candidate.ms is None else f"{candidate.ms:.6g}",
        "gmac": f"{candidate.gmac:.6g}",
        "params": candidate.params,
        "peak": "" if candidate.peak_mib is None else f"{candidate.peak_mib:.6g}",
        "front": int(best),
        "figures": (f"Dice {100 * candidate.dice:.1f} %, " if known else "") + figures(candidate),
        "architecture": json.dumps(candidate.architecture, indent=1),
    }
    cells = (
        escape(candidate.name),
        f"{100 * candidate.dice:.2f}" if known else "–",
        "–" if candidate.ms is None else f"{candidate.ms:.1f}",
        f"{candidate.gmac:.2f}",
        f"{candidate.params:,}",
        "–" if candidate.peak_mib is None else f"{candidate.peak_mib:.0f}",
        '<span class="mark">●</span>' if best else "",
    )
    data = " ".join(f'data-{key}="{escape(str(value))}"' for key, value in values.items())
    return f"<tr {data}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _script_hash(template: str) -> str:
    """For the page's content security policy: this script and no other."""
    script = template.partition("<script>")[2].partition("</script>")[0]
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
