"""Channels resampled before the decision equal: blend everything, resample logits or their softmax, argmax."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hilum_testing import manifest, publish_tiny
from monai.inferers.utils import sliding_window_inference
from skimage.transform import resize

from hilum_inference.engines import EngineSettings, open_engine
from hilum_inference.pipeline import Segmenter
from hilum_inference.preprocess import Source, model_grid
from hilum_inference.volume import Volume


@pytest.mark.parametrize("way_back", ["logits", "probabilities"])
@pytest.mark.parametrize("with_head", [False, True], ids=["logits", "features"])
@pytest.mark.parametrize("shape", [(40, 36, 30), (20, 50, 24), (12, 30, 60)])
def test_channels_way_back_equals_resampled_channels(
    tmp_path: Path, shape: tuple[int, int, int], with_head: bool, way_back: str
) -> None:
    geometry = {"spacing": (1.3, 1.6, 1.45), "align": "edges"}
    described = manifest(geometry=geometry, way_back=way_back)
    model, net = publish_tiny(tmp_path, described, features=2, with_head=with_head)
    volume = Volume.from_array(np.random.default_rng(0).normal(50, 150, shape).astype(np.int16))
    grid = model_grid(volume, described)
    source = Source(volume, grid, described)
    image = np.zeros((1, *source.layout.shape), np.float32)
    for start in source.layout:
        image[(slice(None), *(slice(s, s + 16) for s in start))] = source.window(start)
    inside = tuple(slice(b, b + n) for (b, _), n in zip(source.padding, grid.shape, strict=True))
    with torch.no_grad():
        logits = sliding_window_inference(
            torch.from_numpy(image)[None], (16, 16, 16), 1, net.eval(), 0.5, mode="gaussian"
        )
    if way_back == "probabilities":
        logits = logits.softmax(1)
    back = [
        resize(c, shape, order=1, mode="edge", anti_aliasing=False) for c in logits[0].numpy()[(slice(None), *inside)]
    ]
    best = np.sort(np.stack(back), axis=0)
    expected = np.stack(back).argmax(0)
    got = Segmenter(model, open_engine(model, EngineSettings(threads=1))).segment(volume).labels
    assert len(np.unique(expected)) > 1
    clear = best[-1] - best[-2] > 1e-4 * np.abs(best).max()
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(got[clear], expected[clear])
