"""The command ``hilum triton``: a Triton on this machine, for development."""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path
from typing import Annotated

import typer

triton_app = typer.Typer(add_completion=False, rich_markup_mode=None)

FOLDER = Path("~/.local/share/hilum/triton")
PORT = 8001
IMAGE = "nvcr.io/nvidia/tritonserver, 26.03 or later"


@triton_app.command(epilog="Example: hilum triton --dev model_repository")
def triton(
    repository: Annotated[Path | None, typer.Argument(help="Model repository (default: the shipped models).")] = None,
    dev: Annotated[bool, typer.Option("--dev", help="Start the server for development.")] = False,
    variant: Annotated[str, typer.Option(help="Which configuration of each model; a python one.")] = "python-fp32",
    environment: Annotated[
        Path | None, typer.Option(help=f"Folder of the server's own Python environment (default {FOLDER}).")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="gRPC port; 0 takes a free one.")] = PORT,
) -> None:
    """Start a Triton on this machine, for development only: no GPU, loopback only, and older than its security fixes.

    The first time it installs the server, some 600 MB, into an environment of its own.
    """
    from hilum_inference.repository import shipped_repository

    if not dev:
        typer.echo(
            f"hilum: For work with patients run NVIDIA's image ({IMAGE}) on the model repository, and hilum serve "
            "--triton HOST:PORT in front of it; hilum triton --dev starts a small one to try things out.",
            err=True,
        )
        raise typer.Exit(2)
    _serve((repository or shipped_repository()).resolve(), variant, (environment or FOLDER).expanduser(), port)


def _serve(repository: Path, variant: str, folder: Path, port: int) -> None:
    from hilum_inference.triton_dev import Environment, Launch, check_free, check_variant, free_ports, running

    check_variant(repository, variant)
    check_free(port)
    environment = Environment(folder)
    if not environment.installed():
        typer.echo(f"Installing the server into {folder}; this takes a few minutes.")
        environment.install()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # who ends it by kill leaves no server behind either
    http, grpc, metrics = free_ports()
    with tempfile.TemporaryDirectory(prefix="hilum-triton-") as scratch:
        launch = Launch(environment, repository, Path(scratch), variant, (http, port or grpc, metrics))
        with running(launch) as process:
            typer.echo(f"Triton serves {repository} ({variant}) at {launch.address}; its log: {launch.log}")
            typer.echo(f"Next, in another terminal: hilum serve --triton {launch.address}")
            typer.echo("For development only; Ctrl-C ends it.")
            try:
                process.wait()
            except KeyboardInterrupt:
                return
            launch.explain()
