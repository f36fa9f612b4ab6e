"""The commands of this room: ``hilum export`` and ``hilum verify``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from hilum_export.checks import Checked
    from hilum_export.export import Exported
    from hilum_export.precision import Precision

export_app = typer.Typer(add_completion=False, rich_markup_mode=None)
verify_app = typer.Typer(add_completion=False, rich_markup_mode=None)


class WireType(StrEnum):
    """What the FP16 network takes and gives."""

    fp32 = "fp32"
    fp16 = "fp16"


@export_app.command(epilog="Example: hilum export runs/abdomen --repository models --data cases --int8")
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run of hilum train.")],
    repository: Annotated[Path, typer.Option("--repository", "-r", help="Model repository to publish in.")],
    data: Annotated[
        Path | None, typer.Option(help="The cases that the run was made from: those it held back decide.")
    ] = None,
    no_dice_gate: Annotated[
        bool, typer.Option("--no-dice-gate", help="Publish without cases; hilum models will show it.")
    ] = False,
    half: Annotated[bool, typer.Option("--fp16/--no-fp16", help="Whether FP16 is published, too.")] = True,
    int8: Annotated[bool, typer.Option("--int8", help="Publish INT8 for CPUs, too; needs --data.")] = False,
    wire: Annotated[
        WireType, typer.Option(help="What the FP16 network takes and gives: fp16 halves what travels to a Triton.")
    ] = WireType.fp32,
    sign: Annotated[Path | None, typer.Option(help="Private key to sign the version with.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="Write a MONAI Bundle into this new folder, too.")] = None,
) -> None:
    """Publish a trained network as the next version in a Triton model repository.

    Each file must pass every check; where FP32 does not, nothing is published. Read more in docs/export.md.
    """
    from hilum_export.export import Wishes
    from hilum_export.export import export as publish

    chosen: list[Precision] = ["fp32"]
    if half:
        chosen.append("fp16")
    if int8:
        chosen.append("int8")
    with _told() as say:
        wishes = Wishes(tuple(chosen), data, not no_dice_gate, bundle, wire.value, _signer(sign), say)
        done = publish(run, repository, None, wishes)
    show_published(done)
    if bundle is not None:
        typer.echo(f"MONAI Bundle: {bundle}", err=True)
    if no_dice_gate:
        typer.echo("No case was segmented with it: hilum models shows that.", err=True)


@verify_app.command(epilog="Example: hilum verify model_repository/abdomen-ct-demo")
def verify(
    model: Annotated[Path, typer.Argument(help="Folder of a model in a repository.")],
    version: Annotated[int | None, typer.Option(min=1, help="The served one where left out.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="The cases that it was made from: FP16 and INT8 are judged on them again.")
    ] = None,
    engine: Annotated[
        bool, typer.Option("--engine", help="Check the TensorRT plan of this machine's GPU, too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report.")] = False,
) -> None:
    """Check a published model again: unchanged, whole, within limits, and the runtimes agree on it.

    Ends with 1 where a check failed, with 3 where a plan is to be checked and there is no GPU.
    """
    from hilum_export.engine_cli import needs_gpu
    from hilum_export.verify import verify as check

    with needs_gpu(), _told() as say:
        done = check(model, version, data, engine=engine, say=say)
    if as_json:
        typer.echo(done.report.decode(), nl=False)
    else:
        _show(done.files)
        end = "every check passed" if done.passed else "not to be used"
        typer.echo(f"{done.model.name} {done.model.version}: {end}")
    if not done.passed:
        raise typer.Exit(1)


def _signer(key: Path | None) -> Callable[[Path], None] | None:
    """What signs a complete version before it is seen; the key is tried first."""
    if key is None:
        return None
    from hilum_inference import signed

    signed.check_private_key(key)

    def sign(folder: Path) -> None:
        signed.sign(folder, key)

    return sign


@contextmanager
def _told() -> Iterator[Callable[[str], None]]:
    """What is being done, as a line that moves on standard error; nothing where nobody watches."""
    from rich.console import Console

    with Console(stderr=True).status("...") as status:
        yield status.update


def _show(files: Sequence[Checked]) -> None:
    """The checks of every file, one a line."""
    for file in files:
        typer.echo(f"{file.name.upper()}  {file.path.name}")
        for gate in file.gates:
            typer.echo(f"  {'ok' if gate.passed else 'FAILED':<7}{gate}")
        for sentence in file.skipped:
            typer.echo(f"  skipped {sentence}")
        if file.why:
            typer.echo(f"  {file.why}")


def show_published(done: Exported) -> None:
    """What was published, what was not and why, and where it lies."""
    for file in done.files:
        typer.echo(_line(file, done.folder))
    for file in done.withheld:
        typer.echo(f"{file.precision.upper()} was not published: {file.failure}", err=True)
    typer.echo(str(done.folder))


def _line(file: Checked, folder: Path) -> str:
    """One published file: its size, how many checks it passed, and the one that it passed by the least."""
    size = (folder / file.path.name).stat().st_size
    bounded = [gate for gate in file.gates if 0 < gate.bound < math.inf]
    nearest = max(bounded, key=lambda gate: gate.value / gate.bound)
    skipped = f", {len(file.skipped)} skipped: {' '.join(file.skipped)}" if file.skipped else ""
    return (
        f"{file.precision.upper():<5}{size / 1e6:7.1f} MB  {len(file.gates)} checks passed{skipped}; "
        f"nearest to its bound: {nearest}"
    )
