"""The command ``hilum build-engine``, and what ``hilum verify --engine`` shares with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

build_engine_app = typer.Typer(add_completion=False, rich_markup_mode=None)

NO_GPU_EXIT: Final = 3
"""Nothing is wrong but the place: a script may go on without a plan."""
GIB: Final = 2**30


class Compatibility(StrEnum):
    """Which other GPUs may run a plan."""

    none = "none"
    ampere = "ampere+"
    same = "same-cc"


@contextmanager
def needs_gpu() -> Iterator[None]:
    """End with NO_GPU_EXIT and one sentence where GPU or TensorRT are missing."""
    from hilum_export.errors import NoGpuError

    try:
        yield
    except NoGpuError as error:
        typer.echo(f"hilum: {error.message}", err=True)
        raise typer.Exit(NO_GPU_EXIT) from error


@build_engine_app.command(epilog="Example: hilum build-engine models/abdomen --opt-batch 2 --workspace 8")
def build_engine(
    model: Annotated[Path, typer.Argument(help="Folder of a model in a repository.")],
    version: Annotated[int | None, typer.Option(min=1, help="The served one where left out.")] = None,
    opt_batch: Annotated[int | None, typer.Option(min=1, help="Windows at once that it is tuned for.")] = None,
    max_batch: Annotated[int | None, typer.Option(min=1, help="Windows at once at most.")] = None,
    workspace: Annotated[
        float | None, typer.Option(min=0.01, help="GiB of scratch memory; all where left out.")
    ] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(help="File of measurements; beside the plan if left out.")
    ] = None,
    hardware_compatibility: Annotated[
        Compatibility, typer.Option(help="Other GPUs that may run it, for some speed.")
    ] = Compatibility.none,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Later TensorRT versions may run it.")
    ] = False,
) -> None:
    """Build the TensorRT plan of a published network, for the GPU of this machine.

    A plan that answers otherwise than its network is removed at once. Ends with 3 where there is no GPU or no TensorRT.
    """
    from hilum_export.engine_manifest import manifest_file
    from hilum_export.noise import noise
    from hilum_export.tensorrt import build_engine as build
    from hilum_export.tensorrt import find_model, host
    from hilum_export.tensorrt_build import Options
    from hilum_export.tensorrt_engine import engine_gates
    from hilum_inference.signed import SIGNATURE

    found = find_model(model, version)
    scratch = None if workspace is None else int(workspace * GIB)
    options = Options(scratch, hardware_compatibility.value, version_compatible)
    with needs_gpu():
        machine = host()
        done = build(machine, found, opt_batch, max_batch, options, timing_cache)
        windows = noise(len(found.manifest.channels), found.manifest.windows.size)
        failed = [gate for gate in engine_gates(model, found.version, windows, machine) if not gate.passed]
    if failed:
        for path in (done.plan, manifest_file(done.plan)):
            path.unlink()
        typer.echo(f"hilum: The plan was removed, it answers otherwise than its network: {failed[0]}.", err=True)
        raise typer.Exit(1)
    made = done.manifest
    batches = f"{made.profile.least} to {made.profile.most} windows, tuned for {made.profile.usual}"
    typer.echo(f"{done.plan}: {done.plan.stat().st_size / 1e6:.1f} MB, {batches}")
    typer.echo(
        f"for {made.gpu.name} ({made.gpu.capability}), TensorRT {made.tensorrt}: hilum verify --engine checks it"
    )
    if done.plan.with_name(SIGNATURE).exists():
        typer.echo("The version was signed before: hilum sign covers the plan, too.")
