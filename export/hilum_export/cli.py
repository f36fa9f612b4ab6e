"""The command of this room: ``hilum export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

export_app = typer.Typer(add_completion=False)


@export_app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run of hilum train.")],
    repository: Annotated[Path, typer.Option("--repository", "-r", help="Model repository to publish in.")],
) -> None:
    """Publish a trained network as the next version in a Triton model repository.

    Example: hilum export runs/demo --repository model_repository
    """
    from hilum_export.export import export as publish

    done = publish(run, repository)
    for gate in done.gates:
        typer.echo(f"{gate.name}: {gate.difference:.1e} of the largest logit (allowed {gate.bound:.0e})")
    typer.echo(f"{done.folder}: {done.manifest.name}, {done.bytes / 1e6:.1f} MB")
