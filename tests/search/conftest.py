"""A phantom and a recipe so small that a training step takes milliseconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hilum_inference.io import write_volume
from hilum_inference.volume import Volume
from hilum_search.cases import Files
from hilum_search.data import Case, load_case
from hilum_search.recipe import Recipe, parse_recipe

RECIPE = """
name = "phantom"

[architecture]
family = "c2fnas"
filters = 6
levels = [0, 1, 0]
operators = ["2d", "p3d", "3d"]
full_resolution_skip = true

[[channels]]
name = "ct"

[[labels]]
name = "ball"
id = 1
from_ids = [7]

[[labels]]
name = "rod"
id = 2
from_ids = [3, 4]

[[cases]]
image = "phantom.nii.gz"
labels = "phantom_labels.nii.gz"

[preprocessing.geometry]
orientation = "RAS"
spacing = [2.0, 2.0, 2.0]

[preprocessing.intensity]
steps = [[{ rule = "window", low = 0.0, high = 200.0 }]]

[preprocessing.windows]
size = [16, 16, 8]
padding = "edge"

[training]
steps = 12
learning_rate = 2e-2
warmup = 2
class_weights = [1.0, 2.0, 2.0]
checkpoint_every = 5
validate_every = 6
ema = 0.5

[augmentation]
rotation = [5.0, 5.0, 10.0]
scale = 1.1
elastic = 0.5
gain = 0.02
shift = 2.0
noise = 5.0
bias = 2.0
short = 0.3
smooth = 0.3
enhance = 0.5
[[augmentation.enhancement]]
ids = [7]
rise = 20.0
"""


@pytest.fixture(scope="session")
def recipe_text() -> str:
    return RECIPE


@pytest.fixture
def recipe() -> Recipe:
    return parse_recipe(RECIPE)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """A bright ball (id 7) and a rod of two parts (ids 3 and 4), stored LAS at 2 mm."""
    i, j, k = np.indices((24, 22, 20))
    ids = np.zeros((24, 22, 20), np.uint8)
    ids[(i - 7) ** 2 + (j - 8) ** 2 + (k - 10) ** 2 < 25] = 7
    ids[(abs(i - 17) < 2) & (abs(j - 14) < 2)] = 3
    ids[(ids == 3) & (k > 9)] = 4
    noise = np.random.default_rng(0).normal(0, 4, ids.shape)
    image = np.choose(ids.astype(int), [20, 0, 0, 180, 180, 0, 0, 110]) + noise
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])
    paths = Files((tmp_path / "phantom.nii.gz",), tmp_path / "phantom_labels.nii.gz", "phantom")
    write_volume(paths.images[0], Volume.from_array(image.astype(np.int16), affine))
    write_volume(paths.labels, Volume.from_array(ids, affine))
    return paths


@pytest.fixture
def case(files: Files, recipe: Recipe) -> Case:
    return load_case(files, recipe.manifest())
