"""The command ``hilum sign``: sign a version of a model, or check who signed it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

sign_app = typer.Typer(add_completion=False, rich_markup_mode=None)


@sign_app.command(epilog="Example: hilum sign models/abdomen --key hilum-signing.pem")
def sign(
    model: Annotated[Path, typer.Argument(help="Folder of a model in a repository.")],
    version: Annotated[int | None, typer.Option(min=1, help="The served one where left out.")] = None,
    key: Annotated[Path | None, typer.Option(help="Private key to sign with.")] = None,
    check: Annotated[Path | None, typer.Option(help="Public key to check with instead.")] = None,
) -> None:
    """Sign a published version with all that lies in its folder, or check its signature.

    Sign again after hilum build-engine, and the plan is signed, too. Read more in docs/signing.md.
    """
    from hilum_inference import signed
    from hilum_inference.layout import CONFIG
    from hilum_inference.repository import Repository
    from hilum_inference.staging import locked

    if (key is None) == (check is None):
        raise typer.BadParameter("name a private key to sign with (--key) or a public one to check with (--check)")
    if not (model / CONFIG).is_file():
        raise typer.BadParameter(f"there is no model in {model}: it has no {CONFIG}", param_hint="MODEL")
    folder = model.resolve()
    repository = Repository([folder.parent], signed_by=check)
    number = repository.model(folder.name, version).version  # whole, and as it was published
    if check is not None:
        typer.echo(f"{folder.name} {number}: signed with the other half of {check}, unchanged")
    if key is not None:
        with locked(folder.parent):
            path = signed.sign(folder / str(number), key)
        typer.echo(f"{path}: {folder.name} {number} is signed")
