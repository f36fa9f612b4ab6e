from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import httpx
import pytest

from hilum_client.answers import ModelInfo
from hilum_client.cli import main
from hilum_client.client import Client
from hilum_client.errors import InputError
from hilum_client.models import cells, home, show

MANIFEST = {"geometry": {"spacing": [3.0, 3.0, 2.5]}, "windows": {"size": [96, 96, 16]}}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        one = {"name": "demo", "version": "2", "labels": [{"name": "liver", "id": 1}], "digest": "0123456789abcdef"}
        one |= {"variant": "python-int8", "variants": ["onnxruntime-fp32", "python-int8"], "dice_gate": "skipped"}
        if request.url.path == "/api/models":
            return httpx.Response(200, json={"models": [one], "broken": {"old": "model.onnx was changed."}})
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
    shown, said = capsys.readouterr()
    assert said == "old cannot be used: model.onnx was changed.\n"
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


def test_what_cannot_be_used_is_named_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hilum_inference.repository import shipped_repository

    repository = Path(shutil.copytree(shipped_repository(), tmp_path / "models"))
    (version,) = (path for path in (repository / "abdomen-ct-demo").iterdir() if path.name.isdigit())
    (version / "model_fp16.onnx").unlink()
    (version / "model_int8.onnx").write_bytes((version / "model_int8.onnx").read_bytes()[:-9])
    words = ["models", "--repository", str(repository)]
    assert main(words) == 0
    shown, said = capsys.readouterr()
    assert "its variants are onnxruntime-fp32, python-fp32.\n" in shown
    assert f"abdomen-ct-demo as python-int8 cannot be used: model_int8.onnx of version {version.name} was" in said
    assert f"as tensorrt-fp16 cannot be used: Version {version.name} has no file model_fp16.onnx." in said
    (version / "model.onnx").write_bytes(b"torn")
    for more in ([], ["--json"]):
        assert main([*words, *more]) == 0
        shown, said = capsys.readouterr()
        assert shown == ("[]\n" if more else "")
        assert said.startswith("abdomen-ct-demo cannot be used: model.onnx of version")


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_no_figure_is_cut_on_a_narrow_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = ["left kidney", "right kidney", "adrenal gland", "spleen", "liver"]
    data: dict[str, object] = {
        "name": "abdomen-organs-demo",
        "version": "12",
        "digest": "0123456789abcdef",
    }
    data |= {"labels": [{"name": name, "id": n} for n, name in enumerate(labels, 1)], "manifest": MANIFEST}
    data |= {"dice_gate": "on-training-cases"}
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FORCE_COLOR", "1")
    show([ModelInfo.from_json(data)])
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    for text in ("abdomen-organs-demo", "3 x 3 x 2.5", "96 x 96 x 16", "on-training-cases", "01234567", "spacing, mm"):
        assert text in shown
    assert all(word in shown for name in labels for word in name.split())


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
