"""The pages name what there is."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import typer.main

from hilum_client import batch, demo, doctor, errors, models, segment
from hilum_client.client import AsyncClient, Client

DOCS = Path(__file__).parents[2] / "docs"


def public(kind: type) -> set[str]:
    return {name for name, _ in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}


def test_both_clients_have_the_same_documented_verbs() -> None:
    text = (DOCS / "client.md").read_text()
    assert public(Client) == public(AsyncClient)
    assert {name for name in public(Client) - {"close"} if f"client.{name}(" not in text} == set()
    for name in public(Client):
        ours, theirs = inspect.signature(getattr(Client, name)), inspect.signature(getattr(AsyncClient, name))
        assert list(ours.parameters.values()) == list(theirs.parameters.values()), name


def test_errors_that_a_caller_of_the_sdk_meets_are_documented() -> None:
    text = (DOCS / "client.md").read_text()
    own = {"ClientError", "SampleError", "MissingExtra"}  # the base, and those of commands
    names = {name for name, kind in vars(errors).items() if inspect.isclass(kind)} - own
    assert {name for name in names if f"`{name}`" not in text} == set()


@pytest.mark.parametrize(
    ("app", "page"),
    [
        (segment.app, "client.md"),
        (batch.app, "client.md"),
        (models.app, "client.md"),
        (doctor.app, "client.md"),
        (demo.app, "demo.md"),
    ],
)
def test_every_option_is_documented(app: typer.Typer, page: str) -> None:
    text = (DOCS / page).read_text()
    options = [option for parameter in typer.main.get_command(app).params for option in parameter.opts]
    long = {option for option in options if option.startswith("--")} - {"--help", "--out"}  # -o is what people type
    assert len(long) >= 3
    assert {option for option in long if option not in text} == set()
