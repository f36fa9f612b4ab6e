"""A trained model of a few hundred weights, as hilum train leaves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hilum_search.network import build
from hilum_search.recipe import parse_recipe
from hilum_search.trained import Trained, write_trained

RECIPE = """
name = "tiny"

[architecture]
family = "c2fnas"
filters = 3
levels = [0, 1, 0]
operators = ["2d", "p3d", "3d"]
full_resolution_skip = true

[[channels]]
name = "t1"
modality = "MR"
[[channels]]
name = "t2"
modality = "MR"

[[labels]]
name = "lesion"
id = 1
from_ids = [1]

[preprocessing.geometry]
spacing = [1.0, 1.0, 1.0]

[preprocessing.intensity]
steps = [[{ rule = "z-score", scope = "volume" }]]

[preprocessing.windows]
size = [16, 16, 8]

[training]
steps = 1
class_weights = [1.0, 1.0]
"""


RECORD: dict[str, Any] = {
    "recipe": {"architecture": {"family": "c2fnas"}, "training": {"batch": 2}},
    "recipe_digest": "0" * 64,
    "parameters": 1000,
    "cases": [],
    "dice": {},
    "dice_per_case": {},
    "step": 1,
    "seed": 0,
    "start": "",
    "cpu_seconds": 1.0,
    "processor": "x86_64",
    "software": {},
}


def tiny() -> Trained:
    torch.manual_seed(0)
    recipe = parse_recipe(RECIPE)
    network = build(recipe.architecture, 2, recipe.classes).eval()
    return Trained(recipe.architecture, network, recipe.manifest(), RECORD)


@pytest.fixture
def trained() -> Trained:
    return tiny()


@pytest.fixture(scope="module")
def shared() -> Trained:
    """The same for a whole module, which must not change it."""
    return tiny()


@pytest.fixture
def run(trained: Trained, tmp_path: Path) -> Path:
    write_trained(tmp_path / "run", trained)
    return tmp_path / "run"
