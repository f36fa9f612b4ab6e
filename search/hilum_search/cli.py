"""The commands of this room: ``hilum train`` and ``hilum evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hilum_search.errors import DataError, RecipeError

if TYPE_CHECKING:
    from hilum_search.recipe import Recipe

train_app = typer.Typer(add_completion=False)
evaluate_app = typer.Typer(add_completion=False)

RecipeName = Annotated[str, typer.Option("--recipe", help="A recipe (.toml), or the name of one that Hilum brings.")]
Images = Annotated[list[Path], typer.Option("--image", help="An image; once for each case.")]
Labels = Annotated[
    list[Path], typer.Option("--labels", help="Its reference segmentation on the same grid; in the order of --image.")
]


@train_app.command()
def train(
    recipe: RecipeName,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run; an interrupted run there goes on.")],
    data: Annotated[Path, typer.Option("--data", help="Folder of the recipe's cases.")] = Path(),
    held_back: Annotated[
        list[str] | None, typer.Option(help="Planes FIRST:LAST kept from training, instead of the recipe's.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of the recipe's.")] = None,
    steps: Annotated[int | None, typer.Option(help="Instead of the recipe's.")] = None,
) -> None:
    """Train a network by a recipe; stopped at any time, the same command goes on where it was.

    Example: hilum train --recipe demo --data samples --out runs/demo
    """
    from hilum_search.recipe import read_recipe

    changes: dict[str, object] = {"seed": seed, "steps": steps}
    if held_back is not None:
        changes["held_back"] = [_slab(text) for text in held_back]
    given = {name: value for name, value in changes.items() if value is not None}
    _train(read_recipe(recipe).with_training(**given), data, out)


@evaluate_app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="Folder of a finished run, or of a model in a repository.")],
    image: Images,
    labels: Labels,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe whose labels name the reference's ids; else a run's own, or the model's.")
    ] = None,
) -> None:
    """Score a model against reference segmentations by the code that serves it, on each case's own grid.

    Example: hilum evaluate runs/demo --image ct.nii.gz --labels reference.nii.gz
    """
    from hilum_search.data import Files
    from hilum_search.evaluate import open_trained, score
    from hilum_search.recipe import read_recipe

    segmenter, known = open_trained(model)
    if recipe is not None:
        known = read_recipe(recipe).labels
    for image_path, labels_path in _pairs(image, labels):
        typer.echo(image_path.name)
        for name, value in score(segmenter, known, Files(image_path, labels_path)).items():
            typer.echo(f"  {name:<20} Dice {value:.3f}")


def _train(recipe: Recipe, data: Path, out: Path) -> None:
    from rich.progress import Progress as Bar
    from rich.progress import TextColumn, TimeRemainingColumn

    from hilum_search.data import find_cases, load_case, split
    from hilum_search.record import Cases
    from hilum_search.train import Progress
    from hilum_search.train import train as run

    slabs, held, record = [], [], []
    for files, digests in find_cases(recipe, data):
        free, kept = split(load_case(files, recipe.manifest()), recipe)
        slabs += free
        held += kept
        record.append(digests)
    with Bar(*Bar.get_default_columns()[:3], TimeRemainingColumn(), TextColumn("loss {task.fields[loss]:.3f}")) as bar:
        task = bar.add_task(recipe.name, total=recipe.training.steps, loss=0.0)

        def show(progress: Progress) -> None:
            bar.update(task, completed=progress.step, loss=progress.loss)

        trained = run(recipe, Cases(slabs, held, record), out, show)
    for label, score in trained.training["dice"].items():
        typer.echo(f"{label}: Dice {score:.3f} on the held-back slabs")
    typer.echo(f"{out}: {trained.training['cpu_seconds']} CPU seconds")


def _pairs(images: list[Path], labels: list[Path]) -> list[tuple[Path, Path]]:
    if len(images) != len(labels):
        raise DataError(f"There are {len(images)} images and {len(labels)} reference segmentations; give one for each.")
    return list(zip(images, labels, strict=True))


def _slab(text: str) -> tuple[int, int]:
    first, colon, last = text.partition(":")
    if not (colon and first.isdigit() and last.isdigit()):
        raise RecipeError(f"A slab is FIRST:LAST in planes, such as 96:112; got {text!r}.")
    return int(first), int(last)
