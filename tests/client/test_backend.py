from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hilum_client.answers import ModelInfo
from hilum_client.backend import Where, choose, chosen, open_backend, repositories
from hilum_client.client import Client
from hilum_client.errors import InputError


@dataclass
class LocalResult:
    model: str = "demo"
    version: int = 4
    statistics: list[dict[str, Any]] = field(
        default_factory=lambda: [{"name": "liver", "id": 1, "voxels": 2, "ml": 1.0}]
    )
    timings: dict[str, float] = field(default_factory=lambda: {"total": 1.0})
    mask_path: Path | None = None
    report: dict[str, Any] = field(default_factory=dict)


class LocalClient:
    """The heart's, as its signature promises."""

    made: LocalClient | None = None

    def __init__(
        self, repositories: list[Path] | None = None, threads: int | None = None, variant: str | None = None
    ) -> None:
        self.arguments = (repositories, threads, variant)
        self.closed = False
        LocalClient.made = self

    def models(self) -> list[dict[str, Any]]:
        return [
            {
                "name": "demo",
                "version": 4,
                "channels": [{"name": "CT", "modality": "CT"}],
                "labels": [{"name": "liver", "id": 1, "color": (1, 2, 3)}],
                "spacing": (3.0, 3.0, 3.0),
                "window": (96, 96, 16),
                "digest": "d",
            }
        ]

    def refused(self) -> dict[str, str]:
        return {"other": "It has no variant 'python-int8'."}

    def segment(
        self,
        image: Path,
        *,
        model: str | None = None,
        version: int | None = None,
        out: Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> LocalResult:
        assert (model, version) == ("demo", 4) and progress is not None
        progress(1, 2)
        return LocalResult(mask_path=out)

    def close(self) -> None:
        self.closed = True


def test_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("hilum_inference.local")
    module.LocalClient = LocalClient  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "hilum_inference.local", module)
    seen: list[tuple[int, int]] = []
    with open_backend(Where(repositories=(tmp_path,), threads=2, variant="python-int8"), "test") as backend:
        (model,) = backend.models()
        assert chosen(backend, None) == chosen(backend, "demo") == model
        with pytest.raises(InputError, match="It has no variant"):
            chosen(backend, "other")
        result = backend.segment(
            tmp_path, model=model, out=tmp_path / "m.nii", progress=lambda done, total: seen.append((done, total))
        )
    assert (model.version, model.channels, model.window, model.spacing) == ("4", ("CT",), (96, 96, 16), (3.0, 3.0, 3.0))
    assert (result.version, result.mask_path, result.statistics[0]["ml"]) == ("4", tmp_path / "m.nii", 1.0)
    assert seen == [(1, 2)]
    assert LocalClient.made is not None and LocalClient.made.closed
    assert LocalClient.made.arguments == ([tmp_path], 2, "python-int8")


def test_on_a_server() -> None:
    with open_backend(Where(server="http://127.0.0.1:9"), "test") as backend:
        assert isinstance(backend, Client)
    asked = Where(server="http://127.0.0.1:9", variant="python-int8")
    with pytest.raises(InputError, match="chosen where it starts"), open_backend(asked, "test"):
        pass


def test_sigterm_is_as_ctrl_c() -> None:
    def ends_the_process(*_: object) -> None:
        raise AssertionError

    before = signal.signal(signal.SIGTERM, ends_the_process)
    try:
        with pytest.raises(KeyboardInterrupt), open_backend(Where(server="http://127.0.0.1:9"), "test"):
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is ends_the_process
    finally:
        signal.signal(signal.SIGTERM, before)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(open_and_close).result()


def open_and_close() -> None:
    with open_backend(Where(server="http://127.0.0.1:9"), "test"):
        pass


def test_folders_of_models(tmp_path: Path) -> None:
    assert repositories(Where(repositories=(tmp_path,))) == [tmp_path]
    with pytest.raises(InputError, match="There is no folder"):
        repositories(Where(repositories=(tmp_path / "none",)))
    shipped, own = repositories(Where())
    assert shipped.name == "model_repository" and own.name == "models"


def test_choosing_a_model() -> None:
    one, click = ModelInfo("a", "1"), ModelInfo("b", "1", task="interactive")
    assert choose([one, click], None) is one
    assert choose([one, click], "b") is click
    with pytest.raises(InputError, match="There is no model 'c'; known: a, b"):
        choose([one, click], "c")
    with pytest.raises(InputError, match="Name one model"):
        choose([one, ModelInfo("c", "1")], None)
    with pytest.raises(InputError, match="there are: none"):
        choose([], None)
