"""The model card of a trained model, as Markdown, made from nothing but its manifest and its training.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hilum_inference.manifest import Clip, Manifest, Percentile, Window, ZScore

NAME = "card.md"
SHOWN_CASES = 40
"""Rows of the table of cases; of more only the count is told."""


def card(manifest: Manifest, training: Mapping[str, Any]) -> str:
    """The card: what the model is, what it learnt from, how well it did on what was held back, what it cost."""
    title = manifest.title or manifest.name
    lines = [f"# {title}", ""]
    for text in (manifest.description, f"**{manifest.intended_use}**", training["recipe"].get("limits", "")):
        if text:
            lines += [text, ""]
    lines += _table(("", ""), _facts(manifest, training))
    lines += ["", "## Dice on what was held back", "", *_scores(training)]
    lines += ["", "## What it learnt from", "", *_cases(training)]
    return "\n".join(lines) + "\n"


def write_card(folder: Path, text: str) -> None:
    """``card.md`` in a run's folder."""
    partial = folder / f".{NAME}.partial"
    partial.write_text(text, encoding="utf-8")
    partial.replace(folder / NAME)


def _facts(manifest: Manifest, training: Mapping[str, Any]) -> list[tuple[str, str]]:
    recipe, provenance = training["recipe"], manifest.provenance
    software = ", ".join(f"{name} {version}" for name, version in training["software"].items())
    parts = _count(training["cases"])
    imported = training.get("imported")
    done = training.get("steps", training["step"])
    steps = f"{done:,} of {recipe['training']['batch']} windows, seed {training['seed']}"
    cost = f"{training['cpu_seconds']:,.0f} CPU seconds ({training['processor']})"
    facts = [
        ("name", f"`{manifest.name}`"),
        ("network", _network(recipe["architecture"], training["parameters"])),
        ("input", _input(manifest)),
        ("windows", f"{_by(manifest.windows.size)} voxels, overlap {manifest.windows.overlap:g}"),
        ("output", "background, " + ", ".join(label.name for label in manifest.labels)),
        ("data", provenance.data or "not told"),
        ("ensemble", f"{len(training['folds'])} folds, logits averaged" if training.get("folds") else ""),
        ("cases", ", ".join(f"{count} {part}" for part, count in parts.items())),
        ("fine-tuned from", f"weights with SHA-256 `{training['start'][:12]}`" if training["start"] else ""),
        ("imported from", _origin(imported) if imported else ""),
        ("steps", "" if imported else steps),
        ("cost", "" if imported else cost),
        ("recipe", f"SHA-256 `{training['recipe_digest'][:12]}`" if training["recipe_digest"] else ""),
        ("made with", software),
        ("licence", provenance.licence or "not told"),
    ]
    return [(name, value) for name, value in facts if value]


def _origin(imported: Mapping[str, Any]) -> str:
    """Where a model of another library comes from, and how well its masks agreed there and here."""
    library = f"{imported['from']} {imported['version']}"
    agreed = min(score for score in imported["dice"].values() if score is not None)
    return f"{library}, {imported['network']}; on one case its mask and ours agreed with Dice {agreed:.5f} or more"


def _network(architecture: Mapping[str, Any], parameters: int) -> str:
    return f"family {architecture['family']}, {parameters / 1e6:.2f} M parameters"


def _input(manifest: Manifest) -> str:
    names = ", ".join(f"{c.name} ({c.modality})" if c.modality else c.name for c in manifest.channels)
    geometry = manifest.geometry
    where = f"{geometry.orientation}, {_by(geometry.spacing)} mm" if geometry.spacing else geometry.orientation
    rules = "; ".join(" then ".join(_rule(step) for step in manifest.intensity_steps(n)) for n in _channels(manifest))
    crop = "" if manifest.crop.kind == "none" else f", cropped ({manifest.crop.kind})"
    return f"{names}{crop}; brought to {where}; {rules}"


def _channels(manifest: Manifest) -> range:
    return range(len(manifest.intensity.steps))


def _rule(step: Clip | Window | ZScore | Percentile) -> str:
    fields = step.model_dump(exclude={"rule"}, exclude_none=True)
    told = ", ".join(f"{name} {_plain(value)}" for name, value in fields.items())
    return f"{step.rule} ({told})" if told else step.rule


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _scores(training: Mapping[str, Any]) -> list[str]:
    dice: Mapping[str, float | None] = training["dice"]
    if not dice:
        return ["Nothing was held back, so there is no figure: score the model on cases that it has not seen."]
    rows = [("all together", *map(_dice, dice.values()))]
    per_case = training["dice_per_case"]
    if len(per_case) > 1:
        rows += [(name, *map(_dice, scores.values())) for name, scores in list(per_case.items())[:SHOWN_CASES]]
    folds = len(training.get("folds", ()))
    if folds:
        rows[0] = (f"mean of {folds} folds", *rows[0][1:])
    note = "" if len(per_case) <= SHOWN_CASES else f" {len(per_case) - SHOWN_CASES} more cases are in `training.json`."
    told = "Each case by the fold that had not seen it; " if folds else ""
    how = f"{told}by the pipeline that serves the model, on the model's grid.{note}"
    return [*_table(("held back", *dice), rows), "", how[0].upper() + how[1:]]


def _cases(training: Mapping[str, Any]) -> list[str]:
    cases: Sequence[Mapping[str, Any]] = training["cases"]
    slabs = [case for case in cases if case["planes"] is not None]
    if not cases:
        return ["Not told."]
    lines = []
    if slabs:
        lines += ["Slabs of one volume count as cases here; they share no voxel, but they are the same patient.", ""]
    rows = []
    for case in cases[:SHOWN_CASES]:
        files = "<br>".join(f"{path} `{digest[:12]}`" for path, digest in case["files"].items())
        rows.append((case["name"], _planes(case["planes"]), case["part"], files))
    lines += _table(("case", "planes", "part", "files, SHA-256"), rows)
    if len(cases) > SHOWN_CASES:
        lines += ["", f"{len(cases) - SHOWN_CASES} more cases are in `training.json`."]
    return lines


def _planes(planes: Sequence[int | None] | None) -> str:
    if planes is None:
        return "all"
    first, last = planes
    return f"{first} to {'the last' if last is None else last - 1}"


def _dice(score: float | None) -> str:
    return "absent" if score is None else f"{score:.3f}"


def _by(sides: Iterable[float] | None) -> str:
    return " x ".join(f"{side:g}" for side in sides or ())


def _count(cases: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    names = [case["part"] for case in cases]
    return {part: names.count(part) for part in ("train", "validation", "test") if part in names}


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows)]
