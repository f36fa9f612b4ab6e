"""The pages name what there is."""

from __future__ import annotations

import functools
import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer.main

from hilum_client import batch, demo, doctor, errors, models, segment
from hilum_client.client import AsyncClient, Client
from hilum_server.receive import UPLOADS_OF_ONE
from hilum_server.settings import ServerSettings

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


async def test_the_example_of_an_event_loop_never_has_too_many_on_their_way(
    gateway: Any, volume_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (DOCS / "client.md").read_text()
    (example,) = re.findall(r"```python\n(import asyncio\n.*?)```", text, re.DOTALL)
    client = functools.partial(AsyncClient, transport=gateway.transport())
    monkeypatch.setattr("hilum_client.AsyncClient", client, raising=False)
    most, take = 0, gateway._volume

    def counted(request: httpx.Request) -> httpx.Response:
        nonlocal most
        most = max(most, len(gateway.volumes) + 1)
        answer: httpx.Response = take(request)
        return answer

    monkeypatch.setattr(gateway, "_volume", counted)
    names: dict[str, Any] = {}
    exec(f"async def run(paths):\n{textwrap.indent(example, '    ')}\n    return results", names)
    assert len(await names["run"]([volume_file] * 70)) == 70
    assert 1 < most <= UPLOADS_OF_ONE == 8 < ServerSettings().queue_per_user == 64
    assert "takes 8 uploads and 64 unfinished jobs" in " ".join(text.split())


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
