"""The command ``hilum plan``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hilum_search.errors import BadCasesError, DataError

if TYPE_CHECKING:
    from hilum_search.cases import Dataset
    from hilum_search.survey import Survey

plan_app = typer.Typer(add_completion=False)

DEFAULT_ARCHITECTURE = "c2fnas-panc"
SHOWN_PROBLEMS = 20
_AXES = ("right-left", "anterior-posterior", "superior-inferior")


@dataclass(frozen=True)
class Options:
    """What a plan may be asked for.

    Attributes:
        name: of the model; else the data folder's, cleaned.
        memory_gib: that a training step may take.
        steps: of the optimiser.
        force: whether a recipe that is there is replaced.
    """

    name: str | None = None
    memory_gib: float = 8.0
    steps: int = 10_000
    force: bool = False


@dataclass(frozen=True)
class Planned:
    """A recipe that was written, and what it was planned from."""

    path: Path
    dataset: Dataset
    found: Survey


@plan_app.command(epilog="Example: hilum plan Task09_Spleen --out spleen.toml --memory-gib 6")
def plan(
    data: Annotated[Path, typer.Argument(help="Folder of the cases: MSD, nnU-Net, pairs or DICOM.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The recipe that is written.")] = Path("recipe.toml"),
    arch: Annotated[
        str, typer.Option(help="architecture.json, or a name such as c2fnas-panc, nnunet, unet3d.")
    ] = DEFAULT_ARCHITECTURE,
    memory_gib: Annotated[float, typer.Option(min=0.01, help="Memory that a training step may take, GiB.")] = 8.0,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 10_000,
    name: Annotated[str | None, typer.Option(help="Name of the model; else the folder's.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a recipe that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Check labelled cases and plan a recipe for them, to be edited or trained as it is.

    What is wrong with the cases is said before anything trains. What was found is kept beside the recipe.
    """
    with _progress() as show:
        planned = write_plan(data, out, arch, show, Options(name, memory_gib, steps, force))
    facts = describe(planned)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    _show(facts)
    typer.echo(f"Next: hilum train --recipe {out} --data {data} --out runs/{facts['recipe']['name']}")


def write_plan(
    data: Path,
    out: Path,
    arch: str = DEFAULT_ARCHITECTURE,
    report: Callable[[int, int], None] | None = None,
    options: Options = Options(),
) -> Planned:
    """Survey a folder of cases, plan a recipe and write it, and the survey beside it.

    Args:
        data: folder of the cases.
        out: the recipe's file.
        arch: file or name of the network.
        report: told cases read, and of how many.
        options: what else may be asked for.

    Raises:
        DataError: the recipe is there already, or the cases cannot be trained on.
        RecipeError, ArchitectureError: nothing can be planned for this network.
    """
    from hilum_search.named import read_architecture
    from hilum_search.plan import Wishes
    from hilum_search.plan import plan as plan_text
    from hilum_search.sources import find_dataset
    from hilum_search.survey import named_channels, survey, to_json

    if out.exists() and not options.force:
        raise DataError(f"{out.name} is there already; name another with --out, or replace it with --force.")
    architecture = read_architecture(arch)
    dataset = find_dataset(data)
    beside = out.with_name(f"{out.stem}.survey.json")
    try:
        found = survey(
            dataset.cases,
            report,
            _known(beside),
            folder=dataset.folder,
            labels=dataset.labels,
            channels=named_channels(dataset),
        )
    except BadCasesError as error:
        for problem in error.problems[1:SHOWN_PROBLEMS]:
            typer.echo(problem, err=True)
        raise
    wishes = Wishes(options.name or plain_name(data), architecture, options.memory_gib, options.steps)
    text = plan_text(dataset, found, wishes)
    out.parent.mkdir(parents=True, exist_ok=True)
    _write(beside, to_json(found))
    _write(out, text)
    return Planned(out, dataset, found)


def _known(path: Path) -> Survey | None:
    """An earlier survey; one that cannot be read is none."""
    from hilum_search.survey import parse_survey

    try:
        return parse_survey(path.read_bytes())
    except (DataError, OSError):
        return None


def _write(path: Path, text: str) -> None:
    from hilum_inference.io import atomic_file

    with atomic_file(path) as file:
        file.write(text.encode())


def plain_name(data: Path) -> str:
    """A model's name from a folder's.

    >>> plain_name(Path("data/Task09_Spleen (new)"))
    'task09_spleen-new'
    """
    plain = re.sub(r"[^a-z0-9._-]+", "-", data.resolve().name.lower()).strip("._-")
    return plain[:64] or "model"


def describe(planned: Planned) -> dict[str, Any]:
    """What was found and planned, as JSON-able facts."""
    from hilum_search.recipe import read_recipe

    dataset, found, recipe = planned.dataset, planned.found, read_recipe(planned.path)
    patients = len({case.patient or f"case {case.name}" for case in found.cases})
    return {
        "cases": len(found.cases),
        "layout": dataset.layout,
        "patients": patients,
        "axes": _axes(found),
        "labels": _labels(dataset, found),
        "channels": _channels(dataset, found),
        "recipe": {
            "file": str(planned.path),
            "name": recipe.name,
            "spacing": recipe.preprocessing.geometry.spacing,
            "orientation": recipe.preprocessing.geometry.orientation,
            "window": recipe.preprocessing.windows.size,
            "batch": recipe.training.batch,
            "split": recipe.split.model_dump(mode="json", exclude_defaults=True),
        },
    }


def _axes(found: Survey) -> list[dict[str, Any]]:
    """Sizes and spacing of the cases along the patient's axes: smallest, median, largest."""
    import numpy as np

    from hilum_search.plan import upright

    sizes = np.array([upright(case, case.shape) for case in found.cases])  # (cases, 3)
    spacings = np.array([upright(case, case.spacing) for case in found.cases])
    return [
        {
            "axis": axis,
            "voxels": [int(each) for each in _three(sizes[:, n])],
            "mm": [round(float(each), 4) for each in _three(spacings[:, n])],
        }
        for n, axis in enumerate(_AXES)
    ]


def _three(values: Any) -> Any:
    import numpy as np

    return np.percentile(values, (0, 50, 100))


def _labels(dataset: Dataset, found: Survey) -> list[dict[str, Any]]:
    counts = found.voxels
    labelled = sum(count for number, count in counts.items() if number)
    return [
        {
            "id": number,
            "name": dataset.labels.get(number, f"label-{number}"),
            "cases": sum(number in case.voxels for case in found.cases),
            "voxels": counts.get(number, 0),
            "share": round(counts.get(number, 0) / labelled, 5),
        }
        for number in sorted({*dataset.labels, *counts} - {0})
    ]


def _channels(dataset: Dataset, found: Survey) -> list[dict[str, Any]]:
    facts = []
    for number in range(len(found.cases[0].channels)):
        spread = found.labelled(number)
        whole = [case.channels[number].whole for case in found.cases]
        facts.append(
            {
                "name": dataset.channels[number] if number < len(dataset.channels) else f"image-{number}",
                "modality": dataset.modalities[number] if number < len(dataset.modalities) else "",
                "labelled": [spread.at(point) for point in (0.5, 50, 99.5)],
                "mean": spread.mean,
                "sd": spread.sd,
                "whole": [min(each[0] for each in whole), max(each[3] for each in whole)],
            }
        )
    return facts


def _show(facts: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    cases, patients = (f"{facts[each]} {each[: None if facts[each] > 1 else -1]}" for each in ("cases", "patients"))
    console.print(f"{cases} ({facts['layout']}), {patients}\n")
    _table(
        console,
        ("axis", "voxels: least", "median", "most", "mm: least", "median", "most"),
        [(each["axis"], *each["voxels"], *each["mm"]) for each in facts["axes"]],
    )
    _table(
        console,
        ("id", "label", "cases", "voxels", "share"),
        [
            (each["id"], each["name"], each["cases"], each["voxels"], f"{100 * each['share']:.2g} %")
            for each in facts["labels"]
        ],
    )
    _table(
        console,
        ("channel", "labelled: 0.5 %", "median", "99.5 %", "mean", "sd", "all: lowest", "highest"),
        [
            (
                " ".join(dict.fromkeys((each["name"], each["modality"]))).strip(),
                *each["labelled"],
                each["mean"],
                each["sd"],
                *each["whole"],
            )
            for each in facts["channels"]
        ],
    )
    recipe = facts["recipe"]
    window, spacing = "x".join(map(str, recipe["window"])), " x ".join(f"{mm:g}" for mm in recipe["spacing"])
    console.print(f"{recipe['file']}: {recipe['batch']} windows of {window} at {spacing} mm ({recipe['orientation']})")


def _table(console: Any, heads: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if isinstance(rows[0][number], str) and "%" not in head else "right")
    for row in rows:
        table.add_row(*(Text(f"{cell:.5g}" if isinstance(cell, float) else str(cell)) for cell in row))
    console.print(table)
    console.print()


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("reading the cases"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
