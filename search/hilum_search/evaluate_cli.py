"""``hilum evaluate``: how well a model does on cases whose segmentation is known."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hilum_search.errors import DataError
from hilum_search.metrics import TOLERANCE_MM

if TYPE_CHECKING:
    from hilum_search.cases import Dataset
    from hilum_search.evaluation import CaseScore, Evaluation
    from hilum_search.recipe import Recipe
    from hilum_search.recorded import Asked, Choice
    from hilum_search.trial import Contender

evaluate_app = typer.Typer(add_completion=False)

EVALUATION = "evaluation"


@dataclass(frozen=True)
class _Done:
    """A model with what it was asked and how it did."""

    contender: Contender
    asked: Sequence[Asked]
    evaluation: Evaluation
    path: Path | None


@evaluate_app.command(
    epilog="Example: hilum evaluate runs/demo --data samples; "
    "hilum evaluate model_repository/liver --image ct.nii.gz --labels reference.nii.gz"
)
def evaluate(
    model: Annotated[Path, typer.Argument(help="Folder of a finished run, or of a model in a repository.")],
    data: Annotated[Path | None, typer.Option(help="Folder of labelled cases.")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="Instead: an image; once for each case.")] = None,
    labels: Annotated[
        list[Path] | None, typer.Option(help="Its reference segmentation, on the same grid; in the order of --image.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe whose labels name the reference's ids; else a run's own, or the model's.")
    ] = None,
    part: Annotated[
        str | None, typer.Option(help="test, validation, train or all; default: test, else validation, else all.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of evaluation.json and .csv; default: RUN/evaluation.")
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(help="A second run or model: scored on the same cases, and drawn beside the first.")
    ] = None,
    cases: Annotated[
        str | None, typer.Option(help="Cases to draw, by commas; default: worst, median and best of the first model.")
    ] = None,
    tolerance: Annotated[float, typer.Option(min=0.0, help="Of the normalised surface Dice, in mm.")] = TOLERANCE_MM,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the CPU (default: all).")] = None,
) -> None:
    """Score a model by the code that serves it: Dice and surface distances, for each case and label.

    Stopped at any time, the same command goes on where it was.
    """
    from hilum_search.trial import contender, recorded_recipe

    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    chosen = _choice(part)
    rules = _recipe(recipe)
    dataset = _dataset(model, data, image or [], labels or [], rules)
    beside = None if compare is None else recorded_recipe(compare)
    first = contender(model, dataset, rules, beside, threads)
    folder = out or (model / EVALUATION if first.whole.training is not None else None)
    if compare is not None and folder is None:
        raise DataError("Name a folder for the pictures of --compare: --out FOLDER.")
    asked = _asked(first, dataset, chosen, each=data is None)
    done = [_run(first, asked, folder, EVALUATION, tolerance)]
    if compare is not None:
        other = contender(compare, dataset, rules, recorded_recipe(model), threads)
        stem = f"compare-{compare.resolve().name}"
        done.append(_run(other, other.to_be_asked(asked), folder, stem, tolerance))
    _show(done, as_json)
    if compare is not None and folder is not None:
        _draw(done, [name.strip() for name in cases.split(",")] if cases else None, folder, as_json)
    for each in done:
        if each.path is not None and not as_json:
            typer.echo(f"{each.path}\n{each.path.with_suffix('.csv')}")


def _choice(part: str | None) -> Choice | None:
    from typing import cast

    from hilum_search.recorded import CHOICES

    if part is not None and part not in CHOICES:
        raise DataError(f"--part is one of {', '.join(CHOICES)}; got {part!r}.")
    return cast("Choice | None", part)


def _recipe(name: str | None) -> Recipe | None:
    from hilum_search.recipe import read_recipe

    return None if name is None else read_recipe(name)


def _dataset(model: Path, data: Path | None, images: list[Path], labels: list[Path], recipe: Recipe | None) -> Dataset:
    from hilum_search.trial import data_of, pairs_of

    if (data is None) == (not images and not labels):
        raise DataError("Name the cases either by --data FOLDER or by --image and --labels.")
    return pairs_of(images, labels) if data is None else data_of(data, recipe, model)


def _asked(contender: Contender, dataset: Dataset, choice: Choice | None, *, each: bool) -> list[Asked]:
    from rich.console import Console

    title = contender.whole.title
    if choice is not None and choice != "all" and contender.record is None:
        raise DataError(f"{title} has no record of its cases, so no part of them is known; leave out --part.")
    with Console(stderr=True).status(f"Looking at {len(dataset.cases)} cases..."):  # at all of their bytes
        return contender.asked(dataset, choice, each=each)


def _run(contender: Contender, asked: Sequence[Asked], folder: Path | None, stem: str, tolerance: float) -> _Done:
    """Score the cases with a bar on standard error; without a terminal a line a case."""
    from hilum_client.show import bars
    from hilum_search.evaluation import Book

    by_folds = contender.by_folds(asked)  # other figures than the ensemble's: a file of their own
    subject = contender.whole.subject(tolerance)
    if by_folds:
        subject = dataclasses.replace(subject, name=f"{subject.name} (each case by the fold that left it out)")
    book = Book.open(folder, f"{stem}{'-folds' * by_folds}", subject)
    with bars("cases") as progress:
        task = progress.add_task(contender.whole.title, total=len(asked))
        count = itertools.count(1)

        def report(case: CaseScore) -> None:
            progress.advance(task)
            if progress.disable:
                figures = f"mean Dice {100 * case.mean_dice:.1f} %, {case.seconds:.1f} s"
                typer.echo(f"{next(count)}/{len(asked)} {case.name}: {figures}", err=True)

        return _Done(contender, asked, contender.evaluate(asked, book, report), book.path)


def _show(done: Sequence[_Done], as_json: bool) -> None:
    """The tables, or one JSON: the first model's, with the other's under ``compared``."""
    if as_json:
        data: dict[str, Any] = done[0].evaluation.to_json()
        if len(done) > 1:
            data["compared"] = done[1].evaluation.to_json()
        typer.echo(json.dumps(data, indent=1, allow_nan=False))
        return
    from rich.console import Console

    from hilum_search.evaluate_tables import difference, tables

    console = Console(highlight=False)
    for each in done:
        console.print(tables(each.evaluation))
    if len(done) > 1:
        console.print(difference(done[0].evaluation, done[1].evaluation))


def _draw(done: Sequence[_Done], names: list[str] | None, folder: Path, quiet: bool) -> None:
    """A picture of each chosen case, the models side by side."""
    from hilum_search.compare import choose_cases, compare, file_name, write

    first = done[0]
    evaluations = [each.evaluation for each in done]
    for case in choose_cases(first.evaluation, names):
        at = next(n for n, asked in enumerate(first.asked) if asked.what.name == case.name)
        models = [each.contender.answering(each.asked[at]) for each in done]
        path = folder / file_name(case.name)
        write(path, compare(first.asked[at], models, evaluations))
        if not quiet:
            typer.echo(str(path))
