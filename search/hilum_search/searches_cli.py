"""The commands ``hilum search vnas``, ``c2fnas``, ``status`` and ``pick``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hilum_search.train_cli import device_of, read_or_plan

if TYPE_CHECKING:
    from hilum_search.children import Work
    from hilum_search.driver import Place, Standing
    from hilum_search.progress import Stage
    from hilum_search.recipe import Recipe

MINUTE, HOUR = 60, 3600


class Operators(Enum):
    """Operator sets of C2FNAS."""

    PAPER = "paper"
    TALK = "talk"


Out = Annotated[Path, typer.Option("--out", "-o", help="Folder of the search; an interrupted one there goes on.")]
Data = Annotated[Path, typer.Option("--data", help="Folder of the cases: MSD, nnU-Net, pairs or DICOM.")]
RecipeName = Annotated[
    str | None,
    typer.Option("--recipe", help="A recipe (.toml) or the name of one; else OUT/recipe.toml, planned if missing."),
]
Fold = Annotated[int | None, typer.Option(min=0, help="Fold that validates, instead of the recipe's.")]
TestShare = Annotated[
    float | None, typer.Option(min=0, max=0.9, help="Share of the patients kept for the end, instead of the recipe's.")
]
Retrain = Annotated[
    int | None, typer.Option(min=1, help="Steps of the networks that are chosen; the recipe's where left out.")
]
Seed = Annotated[int | None, typer.Option(help="Of every draw; the recipe's where left out.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Of each network that is trained; instead of the recipe's.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes of this machine that train children.")]
Cluster = Annotated[
    str | None, typer.Option(help="Train children on a Ray cluster: auto, or ray://HOST:PORT. Needs hilum\\[cluster].")
]
Latency = Annotated[
    bool, typer.Option("--latency", help="Measure pieces of networks first, so that networks have milliseconds.")
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; a GPU where there is one.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Tell what it would cost; read no case, train nothing.")]


def vnas(
    out: Out,
    data: Data = Path(),
    recipe: RecipeName = None,
    steps: Annotated[int, typer.Option(min=1, help="Of the super-net's weights.")] = 4000,
    warmup: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the steps that train weights only, before alpha and beta.")
    ] = 0.3,
    rate: Annotated[float, typer.Option(help="Learning rate of alpha and beta (Adam).")] = 3e-3,
    random_steps: Annotated[
        int | None,
        typer.Option(min=0, help="Of each network of the random search at equal cost; 0: none. Else half of --steps."),
    ] = None,
    latency: Latency = False,
    latency_weight: Annotated[
        float, typer.Option(min=0, help="Of the expected latency beside the loss of alpha and beta; measures pieces.")
    ] = 0.0,
    fold: Fold = None,
    test_share: TestShare = None,
    retrain: Retrain = None,
    seed: Seed = None,
    threads: Threads = None,
    workers: Workers = 1,
    cluster: Cluster = None,
    device: Device = None,
    dry_run: DryRun = False,
) -> None:
    """Search an operator for every cell of V-NAS, by gradient; retrain the network found.

    The recipe must hold back validation cases (they train alpha and beta) and test cases (scored at the end). Random
    search gets the same arithmetic, and its best network the same retraining. All networks that were ranked stand in a
    Pareto set. Stopped at any time, the same command goes on.

    Example: hilum search vnas --recipe nih.toml --data NIH --out runs/vnas --steps 8000
    """
    from hilum_search import vnas_run
    from hilum_search.driver import Place
    from hilum_search.vnas import Settings

    work = _work(
        out, data, recipe, {"fold": fold, "test_share": test_share}, {"seed": seed, "threads": threads}, device
    )
    settings = Settings(steps, warmup, architecture_rate=rate, seed=work.recipe.training.seed)
    drawn = max(1, steps // 2) if random_steps is None else random_steps
    if latency and not drawn:
        raise typer.BadParameter("--latency is for networks to choose from; leave out --random-steps 0.")
    plan = vnas_run.Plan(settings, retrain or work.recipe.training.steps, drawn, latency, latency_weight)
    if dry_run:
        return _tell_cost(vnas_run.expected(work.recipe, plan), work)
    _run(work, plan, Place(workers, cluster), vnas_run.run, vnas_run.told)
    return None


def c2fnas(
    out: Out,
    data: Data = Path(),
    recipe: RecipeName = None,
    filters: Annotated[
        int | None, typer.Option(min=1, help="Of a network's stem; the recipe's where left out.")
    ] = None,
    cells: Annotated[int | None, typer.Option(min=1, help="Cells of a network; the recipe's where left out.")] = None,
    operators: Annotated[
        Operators, typer.Option(help="What a cell chooses from: the paper's three, or the talk's six.")
    ] = Operators.PAPER,
    children: Annotated[int, typer.Option(min=1, help="Topologies that are trained in the coarse stage.")] = 50,
    child_steps: Annotated[
        int | None, typer.Option(min=1, help="Of each of them; a quarter of the recipe's where left out.")
    ] = None,
    clusters: Annotated[int, typer.Option(min=1, help="Clusters of like topologies.")] = 8,
    at_once: Annotated[
        int, typer.Option("--round", min=1, help="Topologies drawn before any is told; more workers stand idle.")
    ] = 4,
    halving: Annotated[
        bool, typer.Option("--halving", help="Train all children a little, and only the better ones further.")
    ] = False,
    inherit: Annotated[
        int, typer.Option(min=0, help="Steps of a child that starts from the nearest one's weights; 0: afresh.")
    ] = 0,
    prefilter: Annotated[
        int, typer.Option(min=0, help="Topologies that a score without training leaves to draw from; 0: all.")
    ] = 0,
    supernet_steps: Annotated[
        int | None, typer.Option(min=1, help="Of the one-shot super-net; twice the recipe's where left out.")
    ] = None,
    candidates: Annotated[int, typer.Option(min=1, help="Paths drawn by chance and ranked.")] = 20,
    generations: Annotated[int, typer.Option(min=0, help="Of the evolution of paths after that; 0: none.")] = 3,
    max_gmac: Annotated[float | None, typer.Option(help="Multiply-accumulates of one window at most, 10^9.")] = None,
    max_params: Annotated[int | None, typer.Option(help="Parameters at most.")] = None,
    max_latency_ms: Annotated[
        float | None, typer.Option(help="CPU milliseconds of one window on the embedded engine at most.")
    ] = None,
    latency: Latency = False,
    scale_filters: Annotated[
        list[int] | None, typer.Option(help="Scale the best path to so many filters, too; may be repeated.")
    ] = None,
    scale_cells: Annotated[list[int] | None, typer.Option(help="The same for its number of cells.")] = None,
    scale_window: Annotated[list[str] | None, typer.Option(help="The same for its window, as 96x96x96.")] = None,
    fold: Fold = None,
    test_share: TestShare = None,
    retrain: Retrain = None,
    seed: Seed = None,
    threads: Threads = None,
    workers: Workers = 1,
    cluster: Cluster = None,
    device: Device = None,
    dry_run: DryRun = False,
) -> None:
    """Search topology, then operators of C2FNAS, by evolution and a one-shot super-net; retrain the network found.

    The recipe must hold back validation cases (they rank networks) and test cases (scored at the end). Stopped at any
    time, the same command goes on.

    Example: hilum search c2fnas --recipe pancreas.toml --data Task07_Pancreas --out runs/c2fnas --halving
    """
    from hilum_search.architecture import BASIC, WIDE
    from hilum_search.c2fnas import coarse, run
    from hilum_search.c2fnas.fine import FineSettings
    from hilum_search.c2fnas.scale import Axes
    from hilum_search.driver import Place
    from hilum_search.halving import ladder
    from hilum_search.limits import Limits

    work = _work(
        out, data, recipe, {"fold": fold, "test_share": test_share}, {"seed": seed, "threads": threads}, device
    )
    whole = work.recipe.training.steps
    steps = child_steps or max(1, whole // 4)
    first = coarse.Settings(
        steps,
        work.recipe.training.seed,
        children,
        at_once,
        clusters=min(clusters, children),
        halving=ladder(children, steps) if halving else (),
        inherit=inherit,
    )
    population = min(5, candidates)
    fine = FineSettings(supernet_steps or 2 * whole, candidates, population, generations)
    choices = WIDE if operators is Operators.TALK else BASIC
    space = run.space_of(work.recipe, filters, cells, choices)
    axes = None
    if scale_filters or scale_cells or scale_window:
        windows = [_window(text) for text in scale_window or ()] or [work.recipe.preprocessing.windows.size]
        axes = Axes(tuple(windows), tuple(scale_cells or [space.cells]), tuple(scale_filters or [space.filters]))
    limits = Limits(max_gmac, max_params, max_latency_ms)
    plan = run.Plan(space, first, fine, retrain or whole, limits, prefilter, axes, latency)
    if dry_run:
        return _tell_cost(run.expected(work.recipe, plan), work)
    _run(work, plan, Place(workers, cluster), run.run, run.told)
    return None


def status(out: Annotated[Path, typer.Argument(help="Folder of a search, running or dead.")]) -> None:
    """Where a search stands: stage, children done, best Dice, time left, cost so far.

    Example: hilum search status runs/c2fnas
    """
    from hilum_search.driver import standing

    typer.echo("\n".join(_standing_lines(out, standing(out))))


def pick(
    out: Annotated[Path, typer.Argument(help="Folder of a finished search.")],
    to: Annotated[Path, typer.Option("--to", help="File for the network's architecture.")] = Path("architecture.json"),
    max_latency_ms: Annotated[float | None, typer.Option(help="Milliseconds of one window at most.")] = None,
    max_gmac: Annotated[float | None, typer.Option(help="Multiply-accumulates of one window at most, 10^9.")] = None,
    max_params: Annotated[int | None, typer.Option(help="Parameters at most.")] = None,
) -> None:
    """Pick the best network of a search within limits, to be trained: hilum train --arch FILE.

    Example: hilum search pick runs/c2fnas --max-gmac 40 --to small.json
    """
    from hilum_search import pareto
    from hilum_search.architecture import parse_architecture, to_json

    chosen = pareto.pick(pareto.read(out / "pareto.json"), max_latency_ms, max_gmac, max_params)
    to.write_text(to_json(parse_architecture(json.dumps(chosen.architecture))))
    typer.echo(f"{to}: {chosen.name}, {pareto.figures(chosen)}")


def _work(
    out: Path, data: Path, recipe: str | None, split: dict[str, Any], training: dict[str, Any], device: str | None
) -> Work:
    """The recipe with what the command line changes; None: nothing."""
    from hilum_search.children import Work

    found = read_or_plan(recipe, None, data, out, dry_run=False)
    found = found.with_split(**_given(split)).with_training(**_given(training))
    out.mkdir(parents=True, exist_ok=True)
    return Work(found, data, out, device)


def _given(changes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in changes.items() if value is not None}


def _window(text: str) -> tuple[int, int, int]:
    sides = text.split("x")
    if len(sides) != 3 or not all(side.isdigit() for side in sides):
        raise typer.BadParameter(f"a window is three sides in voxels, such as 96x96x96; got {text!r}.")
    one, two, three = map(int, sides)
    return one, two, three


def _run(work: Work, plan: Any, place: Place, run: Callable[..., Any], told: Callable[..., list[str]]) -> None:
    from hilum_search.driver import driving

    if place.cluster is None:
        device_of(work.device)
    else:  # its workers may have a device that is lacking here, and stand in folders of their own
        work = replace(work, data=work.data.resolve(), out=work.out.resolve())
    with _stages() as show, driving(work, plan, place, show) as driver:
        report = run(driver, plan)
    for line in told(work.out, report):
        typer.echo(line)


@contextmanager
def _stages() -> Iterator[Callable[[Stage], None]]:
    """A bar for every stage."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    texts = TextColumn("{task.fields[best]}{task.fields[left]}")
    with Progress(
        TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), texts
    ) as bar:
        tasks: dict[str, Any] = {}

        def show(stage: Stage) -> None:
            if stage.name not in tasks:
                tasks[stage.name] = bar.add_task(stage.name, total=stage.total, best="", left="")
            best = "" if stage.best is None else f"best Dice {stage.best:.3f}"
            left = (
                "" if stage.seconds_left is None or stage.done == stage.total else f" {_left(stage.seconds_left)} left"
            )
            bar.update(tasks[stage.name], completed=stage.done, total=stage.total, best=best, left=left)

        yield show


def _left(seconds: float) -> str:
    if seconds < MINUTE:
        return f"{seconds:.0f} s"
    return f"{seconds / MINUTE:.0f} min" if seconds < 2 * HOUR else f"{seconds / HOUR:.1f} h"


def _standing_lines(out: Path, found: Standing) -> Iterator[str]:
    from hilum_search.driver import hours_told

    state = "finished" if found.finished else "running" if found.running else "stopped; the same command goes on"
    yield f"{out}: {state}"
    if found.stage is not None and not found.finished:
        s = found.stage
        left = f", {_left(s.seconds_left)} left of this stage" if found.running and s.seconds_left is not None else ""
        yield f"  now: {s.name}, {s.done} of {s.total}{left}"
    for stage, count in found.entries.items():
        best = f", best Dice {found.best[stage]:.3f}" if stage in found.best else ""
        yield f"  {stage:<10} {count:>4} in the ledger, {hours_told([found.spent[stage]])}{best}"


def _tell_cost(stages: list[Any], work: Work) -> None:
    from hilum_search.gpus import RATES

    recipe: Recipe = work.recipe
    typer.echo(f"{'stage':<10} {'networks':>8} {'steps':>8} {'10^15 FLOP':>11}")
    for each in stages:
        typer.echo(f"{each.name:<10} {each.networks:>8} {each.steps:>8} {each.operations / 1e15:>11.3g}")
    total = sum(each.operations for each in stages)
    for rate in RATES:
        if recipe.training.precision in rate.precisions:
            typer.echo(f"about {total / rate.sustained / 3600:.3g} hours of one {rate.gpu} ({rate.unit}), an estimate")
    typer.echo("Nothing was trained.")
