"""The command ``hilum train``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hilum_search.errors import DataError, RecipeError

if TYPE_CHECKING:
    import torch

    from hilum_search.recipe import Recipe
    from hilum_search.train import Progress
    from hilum_search.trained import Trained

RECIPE = "recipe.toml"
train_app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Order:
    """What is to be trained, and where.

    Attributes:
        recipe: with every change from the command line.
        data: folder of the cases.
        out: folder of the run.
        start: a trained model that is fine-tuned.
        device: ``cpu``, ``cuda``, ``cuda:1``...; None: a GPU where there is one.
    """

    recipe: Recipe
    data: Path
    out: Path
    start: Path | None
    device: str | None


@train_app.command(epilog="Example: hilum train --arch c2fnas-panc --data Task07_Pancreas --out runs/pancreas --fold 0")
def train(
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the run; an interrupted run there goes on.")
    ] = None,
    data: Annotated[Path, typer.Option("--data", help="Folder of the cases: MSD, nnU-Net, pairs or DICOM.")] = Path(),
    recipe: Annotated[
        str | None,
        typer.Option(
            help="A recipe (.toml) or the name of one that Hilum brings; else OUT/recipe.toml, made if missing."
        ),
    ] = None,
    arch: Annotated[
        str | None, typer.Option(help="architecture.json or a name (c2fnas-panc...), instead of the recipe's network.")
    ] = None,
    fold: Annotated[int | None, typer.Option(help="Fold that validates, from 0; the others train.")] = None,
    folds: Annotated[int | None, typer.Option(help="Number of folds; without --fold every fold is trained.")] = None,
    held_back: Annotated[
        list[str] | None, typer.Option(help="Planes FIRST:LAST of every case, kept from training to validate on.")
    ] = None,
    start: Annotated[
        Path | None, typer.Option("--from", help="A finished run whose weights are fine-tuned, labels may differ.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of the recipe's.")] = None,
    steps: Annotated[int | None, typer.Option(help="Instead of the recipe's.")] = None,
    threads: Annotated[int | None, typer.Option(help="Instead of the recipe's.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; a GPU where there is one.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the recipe on made-up data, tell memory and cost, train nothing.")
    ] = False,
) -> None:
    """Train a network; stopped at any time, the same command goes on where it was.

    Without --recipe a recipe is planned from the data and written to OUT/recipe.toml, to be looked at and edited.
    Several processes: torchrun --nproc-per-node 2 -m hilum_client train ...
    """
    if out is None and not dry_run:
        raise typer.BadParameter("name the folder of the run with --out.", param_hint="--out")
    folder = out or Path()
    changes = {"seed": seed, "steps": steps, "threads": threads}
    chosen = read_or_plan(recipe, arch, data, folder, dry_run)
    chosen = chosen.with_training(**{name: value for name, value in changes.items() if value is not None})
    split: dict[str, Any] = {"fold": fold, "folds": folds}
    if held_back is not None:
        split["validation_planes"] = [_slab(text) for text in held_back]
    chosen = chosen.with_split(**{name: value for name, value in split.items() if value is not None})
    order = Order(chosen, data, folder, start, device)
    if dry_run:
        _dry_run(order)
    elif folds is not None and fold is None:
        _all_folds(order, folds)
    else:
        _one(order)


def read_or_plan(name: str | None, arch: str | None, data: Path, out: Path, dry_run: bool) -> Recipe:
    """The recipe by name, or the run's own, planned where there is none yet."""
    from hilum_search.named import read_architecture
    from hilum_search.recipe import read_recipe

    kept = out / RECIPE
    if name is None and not kept.is_file():
        if dry_run:
            raise RecipeError("--dry-run needs a recipe: name one with --recipe, or plan one with hilum plan.")
        _plan(arch, data, kept)
    found = read_recipe(name if name is not None else kept)
    return found if arch is None else found.with_architecture(read_architecture(arch))


def _plan(arch: str | None, data: Path, path: Path) -> None:
    from hilum_search.plan_cli import DEFAULT_ARCHITECTURE, write_plan

    with _bar("reading the cases") as show:
        write_plan(data, path, arch or DEFAULT_ARCHITECTURE, show)
    typer.echo(f"{path}: planned from the data; edit it and use a new --out, or let it run.")


def _all_folds(order: Order, folds: int) -> None:
    from hilum_search.team import join
    from hilum_search.trained import write_ensemble

    names = [f"fold{number}" for number in range(folds)]
    with join(device_of(order.device)) as team:  # processes meet once, not once a fold
        for number, name in enumerate(names):
            recipe = order.recipe.with_split(fold=number)
            _one(Order(recipe, order.data, order.out / name, order.start, order.device), order.out)
    if not team.first:
        return
    write_ensemble(order.out, names)
    typer.echo(f"{order.out}: {folds} folds, one ensemble; hilum evaluate and hilum export take it as one model")


def _one(order: Order, surveys: Path | None = None) -> None:
    from hilum_search.gather import gather
    from hilum_search.team import rank
    from hilum_search.train import Own
    from hilum_search.train import train as run

    device, quiet = device_of(order.device), rank() > 0
    with _bar("reading the cases", quiet) as show:
        cases = gather(order.recipe, order.data, order.out, show, surveys)
    with _training(order.recipe, quiet) as report:
        trained = run(order.recipe, cases, order.out, report, Own(start=order.start, device=device))
    if not quiet:
        _tell(order.out, trained)


def device_of(name: str | None) -> torch.device | None:
    """The device of that name, where it is there.

    Raises:
        RecipeError: no such device.
    """
    import torch

    if name is None:
        return None
    if name == "cpu" or (name.startswith("cuda") and torch.cuda.is_available()):
        return torch.device(name)
    raise RecipeError(f"There is no device {name!r} here; --device is cpu, or cuda where there is an NVIDIA GPU.")


def _tell(out: Path, trained: Trained) -> None:
    training = trained.training
    parts = [case["part"] for case in training["cases"]]
    told = ", ".join(f"{parts.count(part)} {part}" for part in ("train", "validation", "test") if part in parts)
    done = training.get("steps", training["step"])  # records of earlier releases hold the one alone
    typer.echo(f"{out}: {done} steps on {told}; {training['cpu_seconds']:,} CPU seconds")
    for label, score in training["dice"].items():
        typer.echo(f"  {label}: Dice {'absent' if score is None else f'{score:.3f}'} on what was held back")
    typer.echo(f"Next: hilum evaluate {out} --data DATA; hilum export {out} --repository DIR. About it: {out}/card.md")


def _dry_run(order: Order) -> None:
    from hilum_search.dry_run import describe, dry_run

    typer.echo(describe(dry_run(order.recipe)))


@contextmanager
def _bar(title: str, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, disable=quiet) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def _training(recipe: Recipe, quiet: bool) -> Iterator[Callable[[Progress], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    texts = TextColumn("loss {task.fields[loss]:.3f}{task.fields[dice]}")
    times = (TimeElapsedColumn(), TextColumn("of which left"), TimeRemainingColumn())
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *times, texts)
    with Bar(*columns, disable=quiet) as bar:
        task = bar.add_task(recipe.name, total=recipe.training.steps, loss=float("nan"), dice="")

        def show(progress: Progress) -> None:
            dice = "" if progress.dice is None else f", best Dice {progress.dice:.3f}"
            bar.update(task, completed=progress.step, loss=progress.loss, dice=dice)

        yield show


def _slab(text: str) -> tuple[int, int]:
    first, colon, last = text.partition(":")
    if not (colon and first.isdigit() and last.isdigit()):
        raise DataError(f"A slab is FIRST:LAST in planes, such as 96:112; got {text!r}.")
    return int(first), int(last)
