"""The networks of which none is better in everything: the Pareto set, the choice within a budget, files and a plot."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from hilum_inference.files import write_atomically
from hilum_search.errors import ArchitectureError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation

FORMAT: Final = "hilum.pareto/1"
JSON_NAME, CSV_NAME, PICTURE = "pareto.json", "pareto.csv", "pareto.png"
GIGA: Final = 1e9

Objective = Literal["ms", "peak_mib", "params", "macs"]
"""What may be kept small; Dice is always kept large."""

FRONT_COLOR, OTHER_COLOR, GRID_COLOR = "#c2542d", "#a9b4c2", "#e3e6ea"


@dataclass(frozen=True)
class Candidate:
    """A network and its figures.

    Attributes:
        name: for people.
        architecture: its fields with the family among them, as ``architecture.json`` has them.
        dice: mean Dice on held-back cases, 0 to 1; NaN where it is not known.
        ms: of one window on the embedded engine; None where nobody measured it.
        peak_mib: memory of one window; None where nobody measured it.
        params: trainable values.
        macs: multiply-accumulates of one window.
    """

    name: str
    architecture: dict[str, Any]
    dice: float
    ms: float | None
    peak_mib: float | None
    params: int
    macs: int

    @property
    def gmac(self) -> float:
        """Multiply-accumulates in units of 10^9."""
        return self.macs / GIGA


def left_out(candidates: Sequence[Candidate], objectives: Sequence[Objective]) -> dict[str, str]:
    """Why a candidate cannot be compared, by its name: no Dice, or an objective that was not measured."""
    reasons = {c.name: _obstacle(c, objectives) for c in candidates}
    return {name: reason for name, reason in reasons.items() if reason}


def front(candidates: Sequence[Candidate], objectives: Sequence[Objective]) -> list[Candidate]:
    """The candidates that none dominates, cheapest first by the first objective; equal ones all stay.

    One dominates another where it is nowhere worse (Dice, objectives) and somewhere better. Those of ``left_out`` are
    in no set.
    """
    usable = [c for c in candidates if not _obstacle(c, objectives)]
    rows = [(-c.dice, *(_cost(c, name) for name in objectives)) for c in usable]
    kept = [n for n, row in enumerate(rows) if not any(_dominates(other, row) for other in rows)]
    return [usable[n] for n in sorted(kept, key=lambda n: (*rows[n][1:], rows[n][0], usable[n].name))]


def cost_axis(candidates: Sequence[Candidate]) -> Objective:
    """What Dice is drawn against: milliseconds where all are known, else multiply-accumulates."""
    return "ms" if candidates and all(c.ms is not None for c in candidates) else "macs"


def best_first(candidates: Sequence[Candidate]) -> list[Candidate]:
    """By Dice, then the faster, the smaller in work, the smaller in weights; those without a Dice are left out."""
    scored = [c for c in candidates if not math.isnan(c.dice)]
    return sorted(scored, key=lambda c: (-c.dice, math.inf if c.ms is None else c.ms, c.macs, c.params, c.name))


def pick(
    candidates: Sequence[Candidate],
    max_latency_ms: float | None = None,
    max_gmac: float | None = None,
    max_params: int | None = None,
) -> Candidate:
    """The network of best Dice within the limits; None: no limit. One without milliseconds keeps no limit on them.

    Raises:
        ArchitectureError: none does; the message names the one that comes nearest.
    """
    scored = best_first(candidates)
    if not scored:
        raise ArchitectureError("There is no network with a Dice to pick from; train some first.")
    limits = (max_latency_ms, max_gmac, max_params)
    within = [c for c in scored if _excess(c, limits) <= 0]
    if within:
        return within[0]
    nearest = min(scored, key=lambda c: _excess(c, limits))
    raise ArchitectureError(
        f"No network keeps within {_limits_text(limits)}; the nearest is {nearest.name} with {figures(nearest)}."
    )


def hypervolume(candidates: Sequence[Candidate], objective: Objective, most: float) -> float:
    """The area that a set dominates, between Dice 0 and 1 and costs 0 and ``most``, as a share of it: 0 to 1.

    It grows whenever the set gets better anywhere within ``most``.

    Raises:
        ArchitectureError: ``most`` is not above 0.
    """
    if not most > 0:
        raise ArchitectureError(f"most is {most}; it must be above 0.")
    area, best = 0.0, 0.0
    for candidate in front(candidates, (objective,)):
        cost = _cost(candidate, objective)
        if cost < most and candidate.dice > best:
            area += (candidate.dice - best) * (most - cost)
            best = candidate.dice
    return area / most


def write(folder: Path, candidates: Sequence[Candidate], objectives: Sequence[Objective]) -> None:
    """``pareto.json``, ``pareto.csv`` and ``pareto.png`` of all candidates, those of the front marked."""
    chosen = front(candidates, objectives)
    rows = [asdict(c) | {"dice": None if math.isnan(c.dice) else c.dice, "front": c in chosen} for c in candidates]
    content = {
        "format": FORMAT,
        "objectives": list(objectives),
        "left_out": left_out(candidates, objectives),
        "candidates": rows,
    }
    write_atomically(folder / JSON_NAME, json.dumps(content, indent=1).encode())
    columns = ["name", "family", "dice", "ms", "peak_mib", "params", "macs", "front"]
    with (folder / CSV_NAME).open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(row | {"family": row["architecture"].get("family", "")} for row in rows)
    draw(folder / PICTURE, candidates)


def read(path: Path) -> list[Candidate]:
    """The candidates of a ``pareto.json``.

    Raises:
        ArchitectureError: no such file, or one that holds none.
    """
    try:
        content = json.loads(path.read_text())
        rows = content["candidates"] if content["format"] == FORMAT else None
        known = Candidate.__dataclass_fields__
        taken = [{name: value for name, value in row.items() if name in known} for row in rows or ()]
        return [Candidate(**row | {"dice": math.nan if row["dice"] is None else row["dice"]}) for row in taken]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArchitectureError(f"{path} holds no networks to pick from; let a search write it.") from error


def figures(candidate: Candidate) -> str:
    """Latency, work and weights in words."""
    ms = "unknown latency" if candidate.ms is None else f"{candidate.ms:.3g} ms"
    return f"{ms}, {candidate.gmac:.3g} GMAC and {candidate.params:,} parameters"


def draw(path: Path, candidates: Sequence[Candidate]) -> None:
    """Dice against cost: the front as steps with names, the others pale."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    axis = cost_axis(candidates)
    chosen = front(candidates, (axis,))
    others = [c for c in candidates if c not in chosen and not _obstacle(c, (axis,))]
    drawing, axes = plt.subplots(figsize=(8.5, 5), layout="constrained")
    axes.scatter(*_points(others, axis), s=26, color=OTHER_COLOR, alpha=0.6, linewidths=0, label="dominated")
    axes.scatter(*_points(chosen, axis), s=44, color=FRONT_COLOR, zorder=3, label="Pareto set")
    axes.set(xlabel=axis_title(axis), ylabel="mean Dice, %")
    axes.grid(color=GRID_COLOR, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(0.08, 0.12)
    _steps(axes, *_points(chosen, axis))
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    _name(axes, chosen, axis, _points(others, axis))
    drawing.savefig(path, dpi=130)
    plt.close(drawing)


def axis_title(axis: Objective) -> str:
    """The title of the cost axis."""
    titles: dict[Objective, str] = {
        "ms": "one window on the embedded engine, one thread, ms",
        "macs": "multiply-accumulates of one window, GMAC",
        "params": "parameters, millions",
        "peak_mib": "memory of one window, MiB",
    }
    return titles[axis]


def shown(candidate: Candidate, axis: Objective) -> float:
    """A cost in the unit of its axis."""
    units: dict[Objective, float] = {"ms": 1.0, "macs": GIGA, "params": 1e6, "peak_mib": 1.0}
    return _cost(candidate, axis) / units[axis]


def _points(candidates: Sequence[Candidate], axis: Objective) -> tuple[list[float], list[float]]:
    return [shown(c, axis) for c in candidates], [100 * c.dice for c in candidates]


def _steps(axes: Axes, costs: Sequence[float], scores: Sequence[float]) -> None:
    """The best Dice that a budget buys, to the right edge."""
    if not costs:
        return
    low, high = axes.get_xlim()
    axes.step([*costs, high], [*scores, scores[-1]], where="post", color=FRONT_COLOR, linewidth=1.4, alpha=0.6)
    axes.set_xlim(low, high)


def _name(
    axes: Axes, chosen: Sequence[Candidate], axis: Objective, others: tuple[Sequence[float], Sequence[float]]
) -> None:
    """Names beside the points of the front, where they cover neither a point nor another name."""
    figure = axes.get_figure(root=True)
    if figure is None:
        return
    figure.draw_without_rendering()
    xs, ys = _points(chosen, axis)
    taken = [_around(*axes.transData.transform(p)) for p in zip([*xs, *others[0]], [*ys, *others[1]], strict=True)]
    frame = axes.get_window_extent()
    for candidate, x, y in zip(chosen, xs, ys, strict=True):
        for at, side, height in PLACES:
            note: Annotation = axes.annotate(
                candidate.name, (x, y), at, textcoords="offset points", ha=side, va=height, fontsize=8.5
            )
            box = note.get_window_extent()
            found = (box.x0, box.y0, box.x1, box.y1)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(overlap(found, other) for other in taken):
                taken.append(found)
                break
            note.remove()


Box = tuple[float, float, float, float]
PLACES: Final = (
    ((-7, 5), "right", "bottom"),
    ((7, -5), "left", "top"),
    ((7, 5), "left", "bottom"),
    ((-7, -5), "right", "top"),
    ((0, 18), "center", "bottom"),
    ((0, -18), "center", "top"),
)
"""Where a name may stand: its offset from the point, and which of its sides lies there."""


def overlap(one: Box, other: Box) -> bool:
    """Whether two boxes (left, low, right, high) share any area."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _around(x: float, y: float, reach: float = 7.0) -> Box:
    return x - reach, y - reach, x + reach, y + reach


def _cost(candidate: Candidate, objective: Objective) -> float:
    value: float | None = getattr(candidate, objective)
    return math.nan if value is None else float(value)


def _obstacle(candidate: Candidate, objectives: Sequence[Objective]) -> str:
    if math.isnan(candidate.dice):
        return "its Dice is not a number"
    unknown = [name for name in objectives if math.isnan(_cost(candidate, name))]
    return f"its {unknown[0]} is not known" if unknown else ""


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


_Limits = tuple[float | None, float | None, float | None]


def _excess(candidate: Candidate, limits: _Limits) -> float:
    """By how much a network misses the limit that it misses most, as a share of it; 0 or less within all."""
    values = (candidate.ms, candidate.gmac, candidate.params)
    shares = [
        math.inf if value is None else (value - limit) / max(limit, 1e-12)
        for value, limit in zip(values, limits, strict=True)
        if limit is not None
    ]
    return max(shares, default=0.0)


def _limits_text(limits: _Limits) -> str:
    ms, gmac, params = limits
    given = [f"{ms:g} ms"] if ms is not None else []
    given += [f"{gmac:g} GMAC"] if gmac is not None else []
    given += [f"{params:,g} parameters"] if params is not None else []
    return " and ".join(given)
