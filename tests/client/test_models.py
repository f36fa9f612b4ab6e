from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from hilum_client.answers import ModelInfo
from hilum_client.cli import main
from hilum_client.client import Client
from hilum_client.errors import InputError
from hilum_client.models import cells, home

MANIFEST = {"geometry": {"spacing": [3.0, 3.0, 2.5]}, "windows": {"size": [96, 96, 16]}}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        one = {"name": "demo", "version": "2", "labels": [{"name": "liver", "id": 1}], "digest": "0123456789abcdef"}
        one |= {"variant": "python-int8", "variants": ["onnxruntime-fp32", "python-int8"], "dice_gate": "skipped"}
        if request.url.path == "/api/models":
            return httpx.Response(200, json={"models": [one]})
        return httpx.Response(200, json=one | {"manifest": MANIFEST})

    monkeypatch.setattr("hilum_client.client.Client.__init__", _with(httpx.MockTransport(answer)))


def _with(transport: httpx.MockTransport) -> object:
    original = Client.__init__

    def init(self: Client, server: str, key: str | None = None, **_: object) -> None:
        original(self, server, key, transport=transport)

    return init


@pytest.mark.usefixtures("server")
def test_the_table_of_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--server", "http://x"]) == 0
    shown = capsys.readouterr().out
    for text in (
        "demo",
        "liver",
        "3 x 3 x 2.5",
        "96 x 96 x 16",
        "01234567",
        "spacing, mm",
        "used as python-int8",
        "skipped",
    ):
        assert text in shown
    assert main(["models", "--server", "http://x", "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)
    assert model["digest"] == "0123456789abcdef" and model["window"] == [96, 96, 16]
    assert model["variants"] == ["onnxruntime-fp32", "python-int8"] and model["dice_gate"] == "skipped"
    assert model["variant"] == "python-int8" and "manifest" not in model


def test_rollback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "b"
    (folder / "demo").mkdir(parents=True)
    (folder / "demo" / "config.pbtxt").write_text("")
    seen: list[tuple[Path, str]] = []

    def rollback(repository: Path, name: str) -> int:
        seen.append((repository, name))
        return 3

    monkeypatch.setattr("hilum_inference.repository.rollback", rollback)
    (tmp_path / "a").mkdir()
    words = ["models", "rollback", "demo", "--repository", str(tmp_path / "a"), "--repository", str(folder)]
    assert main(words) == 0
    assert seen == [(folder, "demo")]
    assert capsys.readouterr().out == "demo is served as version 3 now.\n"
    with pytest.raises(InputError, match="There is no model 'other'"):
        home("other", [folder])


def test_cells_of_a_model_on_the_images_grid() -> None:
    assert cells(ModelInfo("a", "1"))[3:] == ("the image's", "", "", "")
    many = ModelInfo("a", "1", labels={f"l{n}": n for n in range(1, 12)})
    assert cells(many)[2] == "l1, l2, l3, l4, l5, l6, l7, l8 and 3 more"
