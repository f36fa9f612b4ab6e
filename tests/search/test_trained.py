from __future__ import annotations

from pathlib import Path

import pytest

from hilum_search.architecture import C2FNAS, to_json
from hilum_search.errors import DataError
from hilum_search.network import build
from hilum_search.recipe import Recipe
from hilum_search.trained import Trained, read_trained, write_trained


def written(folder: Path, recipe: Recipe) -> Path:
    network = build(recipe.architecture, 1, recipe.classes)
    write_trained(folder, Trained(recipe.architecture, network, recipe.manifest(), {}))
    return folder


@pytest.mark.parametrize("name", ["architecture.json", "weights.safetensors", "manifest.json", "training.json"])
def test_a_missing_file_is_named(recipe: Recipe, tmp_path: Path, name: str) -> None:
    (written(tmp_path / "run", recipe) / name).unlink()
    with pytest.raises(DataError, match=name):
        read_trained(tmp_path / "run")


def test_weights_of_another_architecture_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    folder = written(tmp_path / "run", recipe)
    (folder / "architecture.json").write_text(to_json(C2FNAS(3, (0,), ("2d",))))
    with pytest.raises(DataError, match="do not fit"):
        read_trained(folder)


def test_damaged_weights_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    folder = written(tmp_path / "run", recipe)
    (folder / "weights.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(DataError, match=r"weights\.safetensors in run is damaged"):
        read_trained(folder)
