"""``hilum models``: what can be asked for; ``hilum models rollback NAME``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from hilum_client.backend import InProcess, Where, open_backend, repositories
from hilum_client.errors import InputError
from hilum_client.extras import load
from hilum_client.options import AsJson, Key, Repository, Server, application

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hilum_client.answers import ModelInfo

SHOWN_LABELS: Final = 8
LABELS: Final = "labels"
TITLES: Final = ("name", "version", LABELS, "spacing, mm", "window", "Dice gate", "digest")
GAP: Final = 2
WIDE: Final = 200
"""Characters of a line where nobody looks at a terminal."""

app = application("List models, or roll one back to its earlier version.", invoke_without_command=True)


@app.callback(epilog="Example: hilum models --server http://127.0.0.1:8000")
def list_models(
    context: typer.Context,
    server: Server = None,
    key: Key = None,
    repository: Repository = None,
    as_json: AsJson = False,
) -> None:
    """List the models of this machine or of a server."""
    if context.invoked_subcommand is not None:
        return
    listed = found(Where(server, key, tuple(repository or ())))
    for name, why in listed.refused.items():
        typer.echo(f"{name} cannot be used: {why}", err=True)
    if as_json:
        typer.echo(json.dumps([without_manifest(model) for model in listed.models], indent=2))
        return
    if listed.models:
        show(listed.models)
    for model in listed.models:
        if model.variants:
            typer.echo(sentence(model))


def show(models: list[ModelInfo]) -> None:
    """Print the table; on a narrow terminal labels are folded, and nothing is cut."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = [TITLES, *map(cells, models)]
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
    for title in TITLES:
        table.add_column(title, no_wrap=title != LABELS, overflow="fold")
    for row in rows[1:]:
        table.add_row(*map(Text, row))
    columns = list(zip(*rows, strict=True))
    least = sum(needed(column) + GAP for column in columns)
    console = Console()
    console.width = max(console.width if console.is_terminal else WIDE, least)
    console.print(table)


def needed(column: Sequence[str]) -> int:
    """Characters that a column needs at least: its longest cell, or of labels the longest word."""
    parts = [word for cell in column for word in cell.split()] if column[0] == LABELS else column
    return max(map(len, parts), default=0)


@app.command("rollback", epilog="Example: hilum models rollback abdomen --repository ./model_repository")
def rollback(
    name: Annotated[str, typer.Argument(help="Which model.")],
    repository: Repository = None,
) -> None:
    """Withdraw the version that is served; the one before it is served again. A running gateway notices."""
    folder = home(name, repositories(Where(repositories=tuple(repository or ()))))
    version = load("hilum_inference.repository:rollback", "inference", "hilum models rollback")(folder, name)
    typer.echo(f"{name} is served as version {version} now.")


@dataclasses.dataclass(frozen=True)
class Listed:
    """What a back-end has: models with their spacing and window, and why others, or variants, cannot be used."""

    models: list[ModelInfo]
    refused: dict[str, str]


def found(where: Where) -> Listed:
    """All models of a back-end, those that it refuses, too."""
    with open_backend(where, "hilum models") as backend:
        models = backend.models()
        if isinstance(backend, InProcess):
            refused, broken = backend.refused(), backend.refused_variants()
            whole = [
                dataclasses.replace(model, variants=tuple(v for v in model.variants if v not in broken[model.name]))
                for model in models
            ]
            each = {f"{name} as {v}": why for name, variants in broken.items() for v, why in variants.items()}
            return Listed(whole, refused | each)
        from hilum_client.client import Client

        if not isinstance(backend, Client):
            return Listed(models, {})
        return Listed([backend.model(model.name) for model in models], backend.refused())


def home(name: str, folders: list[Path]) -> Path:
    """The first folder of models that has one of this name.

    Raises:
        InputError: none has.
    """
    for folder in folders:
        if (folder / name / "config.pbtxt").is_file():
            return folder
    looked = ", ".join(str(folder) for folder in folders)
    raise InputError(f"There is no model {name!r} in {looked}.", code="unknown_model")


def without_manifest(model: ModelInfo) -> dict[str, object]:
    """A model as JSON-able data, without what a table has no room for."""
    values = dataclasses.asdict(model)
    del values["manifest"]
    return values


def cells(model: ModelInfo) -> tuple[str, ...]:
    """A row of the table."""
    spacing = "the image's" if model.spacing is None else " x ".join(f"{value:g}" for value in model.spacing)
    window = "" if model.window is None else " x ".join(map(str, model.window))
    names, more = list(model.labels)[:SHOWN_LABELS], len(model.labels) - SHOWN_LABELS
    labels = ", ".join(names) + (f" and {more} more" if more > 0 else "")
    return model.name, model.version, labels, spacing, window, model.dice_gate or "", model.digest[:8]


def sentence(model: ModelInfo) -> str:
    """Which variant of a model is used, and which there are."""
    used = f"is used as {model.variant}" if model.variant else "is used as its config.pbtxt says"
    return f"{model.name} {used}; its variants are {', '.join(model.variants)}."
