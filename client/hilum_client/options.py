"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Model = Annotated[str | None, typer.Option("--model", "-m", help="Which model (default: the only one).")]
Server = Annotated[str | None, typer.Option(envvar="HILUM_SERVER", help="Address of a gateway; else in this process.")]
Key = Annotated[str | None, typer.Option(envvar="HILUM_KEY", help="Key for the server.", show_default=False)]
Repository = Annotated[list[Path] | None, typer.Option(help="Folder of models; repeat for several.")]
Variant = Annotated[str | None, typer.Option(help="Variant of the model, such as python-int8 (see hilum models).")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite masks that are there.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of the CPU (default: all).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def application(help_text: str | None = None, **options: Any) -> typer.Typer:
    """A verb's typer application, in plain style."""
    return typer.Typer(add_completion=False, rich_markup_mode=None, help=help_text, **options)
