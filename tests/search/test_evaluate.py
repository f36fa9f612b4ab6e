from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hilum_inference.errors import EngineError
from hilum_inference.windows import weight_map
from hilum_search import evaluate
from hilum_search.architecture import C2FNAS
from hilum_search.data import Case, Files
from hilum_search.evaluate import dice, enhanced, open_trained, score, validate
from hilum_search.network import Network, build
from hilum_search.recipe import Recipe
from hilum_search.record import Cases
from hilum_search.torch_engine import TorchEngine
from hilum_search.train import train


class Thresholds(nn.Module):
    """Features: outside, ball between 0.4 and 0.7 of the window, rod above."""

    def forward(self, image: Tensor) -> Tensor:
        ball, rod = (image > 0.4) & (image <= 0.7), image > 0.7
        return torch.cat([~(ball | rod), ball, rod], 1).float()


def thresholds() -> Network:
    head = nn.Conv3d(3, 3, 1, bias=False)
    nn.init.eye_(head.weight.data[:, :, 0, 0, 0])
    return Network(Thresholds(), head)


def test_dice_counts_voxels_and_is_nan_where_there_are_none() -> None:
    answer, truth = np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2])
    scores = dice(answer, truth, [1, 2, 3])
    assert (scores[1], scores[2]) == (2 / 3, 2 / 3)
    assert np.isnan(scores[3])


def test_thresholds_find_the_phantom(case: Case, recipe: Recipe) -> None:
    assert min(validate(thresholds(), recipe, [case]).values()) > 0.95


def test_slabs_are_scored_together(case: Case, recipe: Recipe) -> None:
    empty, full = case.planes(0, 4), case.planes(8, 12)  # the ball begins at plane 6
    together = validate(thresholds(), recipe, [empty, full])
    assert together == pytest.approx(validate(thresholds(), recipe, [full]), abs=0.1)


def test_an_enhanced_slab_is_brighter_where_the_recipe_says(case: Case, recipe: Recipe) -> None:
    rise = enhanced(case, recipe, 1.0).image - case.image
    assert float(np.median(rise[0][case.ids == 7])) > 15
    assert abs(float(np.median(rise[0][case.ids == 3]))) < 3


def test_the_torch_engine_answers_as_the_network_does(recipe: Recipe) -> None:
    torch.manual_seed(0)
    network = build(C2FNAS(2, (0, 1, 0), ("2d", "p3d", "3d")), 1, 3).eval()
    engine = TorchEngine(recipe.manifest(), network)
    batch = np.random.default_rng(0).normal(0, 1, (2, 1, 16, 16, 8)).astype(np.float32)
    with torch.inference_mode():
        logits = network(torch.from_numpy(batch)).numpy()
        features = network.body(torch.from_numpy(batch)).numpy()
    np.testing.assert_array_equal(engine.run(batch), logits)
    np.testing.assert_array_equal(engine.run(batch, "features"), features)
    weighted = engine.run_weighted(batch)
    assert weighted.shape == (2, 16, 16, 8, 3)
    weights = weight_map((16, 16, 8), recipe.manifest().windows.weights)[..., None]
    np.testing.assert_allclose(weighted / weights, np.moveaxis(logits, 1, -1), rtol=1e-4)
    assert engine.ready()
    engine.close()


def test_an_answer_that_is_not_finite_is_an_error(recipe: Recipe) -> None:
    network = build(C2FNAS(2, (0,), ("2d",)), 1, 3)
    assert network.head.bias is not None
    with torch.no_grad():
        network.head.bias[0] = torch.nan
    with pytest.raises(EngineError, match="not finite"):
        TorchEngine(recipe.manifest(), network).run(np.zeros((1, 1, 16, 16, 8), np.float32))


def test_a_run_is_scored_on_the_images_own_grid(files: Files, case: Case, recipe: Recipe, tmp_path: Path) -> None:
    train(recipe.with_training(steps=60), Cases([case]), tmp_path / "run")
    segmenter, labels = open_trained(tmp_path / "run")
    scores = score(segmenter, labels, files)
    assert set(scores) == {"ball", "rod"}
    assert max(scores.values()) > 0.5


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(evaluate).failed == 0
