"""The command ``hilum import``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import_app = typer.Typer(add_completion=False)


@import_app.command("import")
def import_(
    model: Annotated[Path, typer.Argument(help="Folder of a MONAI Bundle, or results folder of nnU-Net v2.")],
    repository: Annotated[Path, typer.Option("--repository", "-r", help="Model repository to publish in.")],
    image: Annotated[
        list[Path],
        typer.Option(
            help="A case that shows what the model segments: both libraries segment it, and the masks must agree. "
            "Repeat it for each channel, in the model's order."
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="Of the model; that of the bundle or data set where left out.")
    ] = None,
    fold: Annotated[
        list[str] | None, typer.Option(help="nnU-Net: a fold to take, repeated; every one where left out.")
    ] = None,
    flips: Annotated[
        bool, typer.Option("--flips", help="nnU-Net: also see windows mirrored; up to eight times the cost.")
    ] = False,
) -> None:
    """Take over a model of MONAI or nnU-Net: the next version in a repository, or nothing.

    Example: hilum import nnUNetTrainer__nnUNetPlans__3d_fullres --repository models --image case_0000.nii.gz
    """
    from hilum_export.cli import show_published
    from hilum_export.imported import ImportRefusedError, publish_import, require_place
    from hilum_export.monai_import import is_bundle, read_bundle
    from hilum_export.nnunet_import import is_results, read_results

    require_place(model, repository)
    if is_results(model):
        foreign = read_results(model, name, fold or (), flips=flips)
    elif is_bundle(model):
        if fold or flips:
            raise ImportRefusedError("--fold and --flips are for nnU-Net; a MONAI Bundle has neither.")
        foreign = read_bundle(model, name)
    else:
        raise ImportRefusedError(
            f"{model} is neither a MONAI Bundle (no configs folder) nor a results folder of nnU-Net v2 (no plans.json)."
        )
    done, agreement = publish_import(foreign, image, repository)
    for label, score in agreement.dice.items():
        told = "in neither mask" if score is None else f"Dice {score:.5f}"
        typer.echo(f"{label}: {told} between {agreement.judge} and Hilum")
    show_published(done)
