"""The command ``hilum search``."""

from __future__ import annotations

import dataclasses
import json
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hilum_search import searches_cli
from hilum_search.searches_cli import Operators

if TYPE_CHECKING:
    from hilum_search.spaces import Space

search_app = typer.Typer(add_completion=False, no_args_is_help=True)


class Family(Enum):
    """Families with a search space."""

    VNAS = "vnas"
    C2FNAS = "c2fnas"


@search_app.callback()
def search() -> None:
    """Search 3D segmentation networks: V-NAS, C2FNAS, their spaces."""


for _verb in (searches_cli.vnas, searches_cli.c2fnas, searches_cli.status, searches_cli.pick):
    search_app.command()(_verb)


@search_app.command("space")
def show_space(
    family: Annotated[Family, typer.Argument(help="The space.")],
    operators: Annotated[
        Operators, typer.Option(help="Operator set of c2fnas: the paper's three, or the talk's six.")
    ] = Operators.PAPER,
    cells: Annotated[int, typer.Option(min=1, max=40, help="Cells of c2fnas.")] = 12,
    hourglasses: Annotated[int, typer.Option(min=1, max=4, help="U's of c2fnas, one after the other.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print a space: its parameters, its operators, and how many networks it holds.

    Example: hilum search space c2fnas --operators talk
    """
    from hilum_search.architecture import BASIC, WIDE
    from hilum_search.space import hourglasses as stacked
    from hilum_search.spaces import C2FNASSpace, VNASSpace

    wide = operators is Operators.TALK
    space: Space = VNASSpace()
    if family is Family.C2FNAS:
        space = C2FNASSpace(cells=cells, operators=WIDE if wide else BASIC, shape=stacked(hourglasses))
    elif wide or cells != 12 or hourglasses != 1:
        raise typer.BadParameter("--operators, --cells and --hourglasses belong to c2fnas; vnas has one layout.")
    if not space.size:
        raise typer.BadParameter(f"{cells} cells are too few: the shape needs {len(stacked(hourglasses))}.")
    facts = describe(space)
    typer.echo(json.dumps(facts, indent=2) if as_json else _text(facts))


def describe(space: Space) -> dict[str, Any]:
    """A space as JSON-able facts: family, parameters, operators, cells, topologies, size."""
    from hilum_search.spaces import VNASSpace

    if isinstance(space, VNASSpace):
        family = "vnas"
        fields = dataclasses.asdict(space.template)
        given = {name: value for name, value in fields.items() if name not in ("encoder", "decoder")}
    else:
        family = "c2fnas"
        given = {"filters": space.filters, "shape": space.shape}
    return {
        "family": family,
        "parameters": given,
        "operators": list(space.operators),
        "cells": space.cells,
        "topologies": space.topologies,
        "size": space.size,
        "formula": f"{space.topologies} x {len(space.operators)}^{space.cells}",
    }


def _text(facts: dict[str, Any]) -> str:
    lines = [f"{facts['family']}: {facts['formula']} = {facts['size']} networks", "", "operators of a cell:"]
    lines += [f"  {number}  {name}" for number, name in enumerate(facts["operators"])]
    lines += ["", "parameters:"]
    for name, value in facts["parameters"].items():
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
        lines.append(f"  {name:<12} {shown}")
    return "\n".join(lines)
