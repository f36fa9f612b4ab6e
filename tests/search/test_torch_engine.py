from __future__ import annotations

import numpy as np
import pytest
import torch

from hilum_inference.errors import EngineError
from hilum_inference.windows import weight_map
from hilum_search.architecture import C2FNAS
from hilum_search.network import build
from hilum_search.recipe import Recipe
from hilum_search.torch_engine import TorchEngine


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
