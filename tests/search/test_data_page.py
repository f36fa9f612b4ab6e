"""docs/data.md: every field that can be edited stands in a table, every sentence it shows is one that is said."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import BaseModel

from hilum_inference.io import write_volume
from hilum_inference.manifest import Crop, Geometry, Intensity, Windows
from hilum_inference.volume import Volume
from hilum_search.cases import Files
from hilum_search.recipe import Augmentation, Enhancement, Limbs, Preprocessing, Splitting, Training
from hilum_search.survey import problems

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "data.md").read_text()


def _section(title: str) -> str:
    return PAGE.split(f"### `[{title}]`")[1].split("### ")[0]


def _rows(title: str) -> dict[str, str]:
    """Field to default, as the section's table has them."""
    rows = re.findall(r"^\| ((?:`[a-z_.]+`(?:, )?)+) \| ([^|]*) \|", _section(title), re.MULTILINE)
    return {name: default for names, default in rows for name in re.findall(r"`([a-z_.]+)`", names)}


@pytest.mark.parametrize(
    ("title", "model"), [("training", Training), ("split", Splitting), ("augmentation", Augmentation)]
)
def test_every_field_has_a_row_and_every_row_is_a_field(title: str, model: type[BaseModel]) -> None:
    assert set(_rows(title)) == set(model.model_fields)


@pytest.mark.parametrize(
    ("title", "model"), [("training", Training), ("split", Splitting), ("augmentation", Augmentation)]
)
def test_defaults_are_those_of_the_code(title: str, model: type[BaseModel]) -> None:
    for name, told in _rows(title).items():
        field = model.model_fields[name]
        value = re.sub(r'[`"]', "", told)
        if field.is_required():
            assert value == "needed"
        elif field.default in (None, ()):
            assert value == "none"
        elif isinstance(field.default, bool | str):
            assert value == str(field.default).lower()
        elif isinstance(field.default, tuple):
            assert [float(number) for number in value.strip("[]").split(",")] == list(field.default)
        else:
            assert float(value) == field.default


def test_preprocessing_is_told_part_by_part() -> None:
    parts: dict[str, type[BaseModel]] = {"geometry": Geometry, "crop": Crop, "intensity": Intensity, "windows": Windows}
    expected = {f"{part}.{name}" for part, model in parts.items() for name in model.model_fields}
    expected |= set(Preprocessing.model_fields) - set(parts)
    assert set(_rows("preprocessing")) == expected


def test_parts_of_augmentation_are_told() -> None:
    words = set(re.findall(r"`([a-z_]+)`", _section("augmentation")))
    assert {*Enhancement.model_fields, *Limbs.model_fields} <= words


def _write(path: Path, array: NDArray[Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    write_volume(path, Volume.from_array(array, np.diag([-1.0, 2.0, 3.0, 1.0])))
    return path


def _case(folder: Path, name: str = "a", voxels: float = 1.0, mark: float = 1.0) -> Files:
    image, ids = np.full((8, 7, 6), voxels, np.float32), np.zeros((8, 7, 6), np.float32)
    ids[3, 3, 3] = mark
    return Files(
        (_write(folder / f"images/{name}.nii.gz", image),), _write(folder / f"labels/{name}.nii.gz", ids), name
    )


def _said(folder: Path) -> Iterator[str]:
    """What the survey says of one bad case after the other."""
    sound = _case(folder, "sound")
    labels = {1: "liver", 2: "spleen"}

    def of(*files: Files) -> str:
        [sentence] = problems([sound, *files], folder=folder, labels=labels)
        return sentence

    gone = _case(folder, "b")
    gone.labels.unlink()
    yield of(gone)
    first = _case(folder)
    short = _write(first.labels, np.ones((8, 7, 5), np.uint8))
    yield of(dataclasses.replace(first, labels=short))
    other = _write(folder / "images/a_0001.nii.gz", np.ones((8, 7, 9)))
    first = _case(folder)
    yield of(dataclasses.replace(first, images=(*first.images, other)))
    _write(first.images[0], np.ones((2, 8, 7, 6)))
    yield of(first, _case(folder, "c"))
    for voxels, mark in ((np.nan, 1), (1, 1.5), (1, -2), (1, 3)):
        yield of(_case(folder, "a", voxels, mark))
    yield of(sound).replace("sound", "a")
    yield problems([_case(folder, "a", 1, 0)], folder=folder)[0]


def test_the_sentences_shown_are_those_that_are_said(tmp_path: Path) -> None:
    told = re.findall(r"^\|[^|]*\| (.+) \|$", PAGE.split("## What is checked")[1].split("##")[0], re.MULTILINE)
    shown = [re.escape(sentence).replace(re.escape("..."), ".*") for sentence in told]
    said = list(_said(tmp_path))
    assert len(said) == 10
    for sentence in said:
        assert any(re.fullmatch(pattern, sentence) for pattern in shown), sentence
