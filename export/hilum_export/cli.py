"""The commands of this room: ``hilum export`` and ``hilum verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

export_app = typer.Typer(add_completion=False)
verify_app = typer.Typer(add_completion=False)


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
        typer.echo(str(gate))
    typer.echo(f"{done.folder}: {done.manifest.name}, {done.bytes / 1e6:.1f} MB")


@verify_app.command()
def verify(
    model: Annotated[Path, typer.Argument(help="Folder of a model in a repository.")],
    version: Annotated[int | None, typer.Option(min=1, help="The served one where left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report.")] = False,
) -> None:
    """Check a published model again: unchanged, whole, within limits, and the runtimes agree on it.

    Ends with 1 where a check failed.

    Example: hilum verify model_repository/abdomen-ct-demo
    """
    from hilum_export.verify import verify as check

    done = check(model, version)
    if as_json:
        typer.echo(done.report.decode(), nl=False)
    else:
        for gate in done.gates:
            typer.echo(f"{'ok' if gate.passed else 'FAILED':<7}{gate}")
        if done.why:
            typer.echo(done.why)
        typer.echo(
            f"{done.model.name} {done.model.version}: {'every check passed' if done.passed else 'not to be used'}"
        )
    if not done.passed:
        raise typer.Exit(1)
