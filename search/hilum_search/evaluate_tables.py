"""An evaluation as tables on a terminal: one for each part of a run, so that what was learnt by heart stands apart."""

from __future__ import annotations

import itertools
import math
import statistics
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


def difference(one: Evaluation, other: Evaluation) -> Group:
    """Mean Dice of two models on the cases that both have, and what lies between the means: a table for each part.

    A case that was another part to each model stands with others like it.
    """
    names = (one.subject.name, other.subject.name)
    theirs = {case.name: case for case in other.cases}
    shared = [(case, theirs[case.name]) for case in one.cases if case.name in theirs]
    found: list[RenderableType] = []
    for parts in itertools.product(one.parts, other.parts):
        both = [(mine, its) for mine, its in shared if (mine.part, its.part) == parts]
        if both:
            found += [_heading(names, parts, [mine for mine, _ in both]), *_differences(names, both)]
    return Group(*found)


def _heading(names: tuple[str, str], parts: tuple[str, str], cases: Sequence[CaseScore]) -> Text:
    one, other = (TITLES.get(part, part) for part in parts)
    told = f"{names[0]} and {names[1]}, {_count(cases)}, {one}"
    if one != other:
        told = f"{names[0]} ({one}) and {names[1]} ({other}), {_count(cases)}"
    return Text(f"\n{told}", style="bold red" if "train" in parts else "bold")


def _differences(names: tuple[str, str], both: Sequence[tuple[CaseScore, CaseScore]]) -> Iterator[RenderableType]:
    """Means over what each model has a figure for, as in its own table; below, what counts for one model alone."""
    pairs = _dice_pairs(both)
    table = _table("Dice, %", *names, "difference")
    for label, figures in pairs.items():
        one, other = ([dice for dice in side if not math.isnan(dice)] for side in zip(*figures, strict=True))
        table.add_row(Text(label), _percent(mean(one)), _percent(mean(other)), _change(one, other))
    yield table
    for at, name in enumerate(names):
        counts = {label: sum(_alone(pair, at) for pair in figures) for label, figures in pairs.items()}
        told = ", ".join(f"{label} {count}x" for label, count in counts.items() if count)
        if told:
            meaning = "in its answer, but neither in the reference nor in the other's answer"
            yield Text(f"counted for {name} alone: {told}: {meaning}.", style="yellow")


def _dice_pairs(both: Sequence[tuple[CaseScore, CaseScore]]) -> dict[str, list[tuple[float, float]]]:
    """Dice of both models, case by case, for each label that both have."""
    pairs: dict[str, list[tuple[float, float]]] = {}
    for one, other in both:
        theirs = {score.label: score.dice for score in other.labels}
        for score in one.labels:
            if score.label in theirs:
                pairs.setdefault(score.label, []).append((score.dice, theirs[score.label]))
    return pairs


def _alone(pair: tuple[float, float], at: int) -> bool:
    return math.isnan(pair[1 - at]) and not math.isnan(pair[at])


def _change(one: Sequence[float], other: Sequence[float]) -> str:
    """What lies between two means, which are not rounded before."""
    if not one or not other:
        return "-"
    return f"{100 * (statistics.fmean(other) - statistics.fmean(one)):+z.2f}"


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
