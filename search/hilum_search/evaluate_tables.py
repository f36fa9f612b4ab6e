"""An evaluation as tables on a terminal: one for each part of a run, so that what was learnt by heart stands apart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hilum_search.evaluation import CaseScore, Evaluation, LabelScore, Spread, Summary, mean

SEVERAL = 6
"""Labels beyond which a table of cases names the worst one instead of all."""
TITLES = {
    "test": "test: kept for the end",
    "new": "new: not in the run's record",
    "validation": "validation: not learnt from",
    "train": "TRAINED ON: these cases say nothing about others",
    "": "training cases unknown",
}


def tables(evaluation: Evaluation) -> Group:
    """Every part: Dice and surfaces by label, then case by case."""
    parts: list[RenderableType] = []
    for part in evaluation.parts:
        cases, rows = evaluation.of(part), evaluation.summary(part)
        loud = "bold red" if part == "train" else "bold"
        title = f"\n{evaluation.subject.name}, {_count(cases)}, {TITLES.get(part, part)}"
        parts += [Text(title, style=loud), _dice(rows, evaluation.mean_dice(part))]
        parts += [_surfaces(rows, cases, evaluation.subject.tolerance_mm), *_notes(rows), _cases(cases)]
    return Group(*parts)


def difference(one: Evaluation, other: Evaluation) -> Table:
    """Mean Dice of two models on the cases that both have, label by label, and what lies between them."""
    table = _table("Dice, %", one.subject.name, other.subject.name, "difference")
    theirs = {case.name: {score.label: score.dice for score in case.labels} for case in other.cases}
    pairs: dict[str, list[tuple[float, float]]] = {}
    for case in one.cases:
        for score in case.labels:
            value = theirs.get(case.name, {}).get(score.label, math.nan)
            if not math.isnan(value) and not math.isnan(score.dice):
                pairs.setdefault(score.label, []).append((score.dice, value))
    for label, both in pairs.items():
        a, b = mean(pair[0] for pair in both), mean(pair[1] for pair in both)
        table.add_row(Text(label), _percent(a), _percent(b), f"{100 * (b - a):+.2f}")
    return table


def _dice(rows: Sequence[Summary], overall: float) -> Table:
    table = _table("Dice, %", "mean ± sd", "max", "min", "median", "cases")
    for row in rows:
        d = row.dice
        figures = (_spread(d, 100), *(_percent(value) for value in (d.max, d.min, d.median)))
        table.add_row(Text(row.label), *figures, str(d.n))
    if len(rows) > 1:
        table.add_section()
        table.add_row("mean over labels", _percent(overall), "", "", "", "")
    return table


def _surfaces(rows: Sequence[Summary], cases: Sequence[CaseScore], tolerance_mm: float) -> Table:
    table = _table("surfaces", "ASSD, mm", "HD95, mm", f"NSD {tolerance_mm:g} mm, %", "true, ml", "found, ml")
    for row in rows:
        scores = [score for case in cases for score in case.labels if score.label == row.label]
        volumes = (mean(score.reference_ml for score in scores), mean(score.answer_ml for score in scores))
        distances = (_spread(row.assd_mm), _spread(row.hd95_mm, digits=1), _spread(row.nsd, 100, 1))
        table.add_row(Text(row.label), *distances, *(f"{volume:.1f}" for volume in volumes))
    return table


def _notes(rows: Sequence[Summary]) -> Iterator[Text]:
    meanings = (
        ("missed", "in the reference, not in the answer: Dice 0, no distance"),
        ("extra", "in the answer, not in the reference: Dice 0, no distance"),
        ("neither", "in neither: not counted"),
    )
    for verdict, meaning in meanings:
        counts = [(row.label, getattr(row, verdict)) for row in rows]
        named = ", ".join(f"{label} {count}x" for label, count in counts if count)
        if named:
            yield Text(f"{named}: {meaning}.", style="yellow" if verdict != "neither" else "dim")


def _cases(cases: Sequence[CaseScore]) -> Table:
    names = [score.label for score in cases[0].labels]
    few = len(names) <= SEVERAL
    table = _table("case", *(names if few else ("mean", "worst label")), "mean HD95, mm", "seconds")
    for case in cases:
        shown = [_case_dice(score) for score in case.labels] if few else [_percent(case.mean_dice), _worst(case)]
        name = Text(case.name)
        if case.planes is not None:
            name.append("  slab", style="dim")
        if case.part == "train":
            name.append("  trained on", style="bold red")
        table.add_row(name, *shown, _figure(mean(score.hd95_mm for score in case.labels)), f"{case.seconds:.1f}")
    return table


def _worst(case: CaseScore) -> Text:
    known = [score for score in case.labels if not math.isnan(score.dice)]
    worst = min(known, key=lambda score: score.dice, default=None)
    return Text("-" if worst is None else f"{worst.label} {_case_dice(worst)}")


def _case_dice(score: LabelScore) -> str:
    return {"both": _percent(score.dice), "missed": "missed", "extra": "extra", "neither": "-"}[score.verdict]


def _count(cases: Sequence[CaseScore]) -> str:
    slabs = sum(case.planes is not None for case in cases)
    noun = "slab" if slabs == len(cases) else "case"
    some = f", {slabs} of them slabs" if 0 < slabs < len(cases) else ""
    return f"{len(cases)} {noun}{'s' if len(cases) != 1 else ''}{some}"


def _table(first: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(Text(first))
    for column in columns:
        table.add_column(Text(column), justify="right")
    return table


def _spread(spread: Spread, times: float = 1, digits: int = 2) -> str:
    """``85.15 ± 4.55``; the mean alone where there is one case."""
    if not spread.n:
        return "-"
    sd = "" if math.isnan(spread.sd) else f" ± {times * spread.sd:.{digits}f}"
    return f"{times * spread.mean:.{digits}f}{sd}"


def _percent(value: float) -> str:
    return _figure(100 * value)


def _figure(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"
