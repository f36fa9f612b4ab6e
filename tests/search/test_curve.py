from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from hilum_search import curve as module
from hilum_search.curve import Curve, read


def drawn(folder: Path) -> Curve:
    curve = Curve(folder, ["loss", "rate", "liver", "liver enhanced"])
    curve.begin(0)
    curve.add(10, {"loss": 1.0, "rate": 0.1})
    curve.add(20, {"loss": 0.5, "rate": 0.1, "liver": 0.7, "liver enhanced": 0.6})
    return curve


def test_rows_a_picture_and_tensorboards_files(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    drawn(tmp_path).end()
    assert [row["liver"] for row in read(tmp_path)] == ["", "0.7"]
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.width > 800
    assert list((tmp_path / "tensorboard").glob("events.out.*"))


def test_a_resumed_curve_drops_what_it_will_write_again(tmp_path: Path) -> None:
    drawn(tmp_path).end()
    again = Curve(tmp_path, ["loss", "rate", "liver", "liver enhanced"])
    again.begin(15)
    again.add(20, {"loss": 0.4})
    again.end()
    assert [(row["step"], row["loss"]) for row in read(tmp_path)] == [("10", "1"), ("20", "0.4")]


def test_tensorboard_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_board", lambda *_: None)
    drawn(tmp_path).end()
    assert (tmp_path / "curve.png").is_file()
    assert not (tmp_path / "tensorboard").exists()


def test_no_curve_no_rows(tmp_path: Path) -> None:
    assert read(tmp_path) == []
