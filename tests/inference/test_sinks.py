"""Channels resampled before the decision equal: blend everything, resample logits or their softmax, argmax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hilum_testing import manifest, publish_tiny
from monai.inferers.utils import sliding_window_inference
from numpy.typing import NDArray
from skimage.transform import resize

from hilum_inference.engines import EngineSettings, open_engine
from hilum_inference.geometry import AxisMap
from hilum_inference.head import Decider, Labels
from hilum_inference.manifest import Head
from hilum_inference.pipeline import Segmenter
from hilum_inference.preprocess import Source, model_grid
from hilum_inference.sinks import Plane, between
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


HEAD = Head.from_arrays(
    np.array([[1, -1, 0.5], [-1, 1, 0], [0.2, 0, -1]], np.float32), np.array([0.1, 0, -0.1], np.float32)
)
KINDS: dict[str, dict[str, Any]] = {
    "argmax": {},
    "features": {"head": HEAD, "tensors": {"features": "features"}},
    "regions": {"output": "sigmoid-regions", "region_order": [9, 4]},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("noise", [0.02, 3.0], ids=["smooth", "noisy"])
@pytest.mark.parametrize(
    ("shape", "out", "order"),
    [
        ((20, 24), (70, 51), 1),
        ((20, 24), (70, 24), 1),
        ((1, 24), (9, 40), 1),
        ((20, 24), (11, 9), 1),
        ((9, 8), (30, 20), 0),
    ],
    ids=["both axes", "one axis", "one row", "shrunk", "nearest"],
)
@pytest.mark.parametrize("shares", [[0.0], [0.0, 0.3, 0.9]], ids=["on a plane", "between two"])
def test_only_what_lies_between_labels_is_interpolated_and_every_label_is_the_same(
    kind: str, noise: float, shape: tuple[int, int], out: tuple[int, int], order: int, shares: list[float]
) -> None:
    labels = [{"name": "a", "id": 4}, {"name": "b", "id": 9}]
    described = manifest(labels=labels, **KINDS[kind])
    decider = Counting(described, kind == "features")
    rng = np.random.default_rng(3)
    rows, columns = np.meshgrid(np.linspace(0, 3, shape[0]) + 0.5, np.linspace(0, 3, shape[1]), indexing="ij")
    channels = 2 if kind == "regions" else 3
    waves = np.stack([np.sin(rows + 2 * n) * np.cos(columns * (1 + n)) for n in range(channels)], axis=-1)
    means = [(waves + bias + rng.normal(0, noise, waves.shape)).astype(np.float32) for bias in (0, 0.05)]
    maps = [AxisMap(n, m, n / m, n / m / 2 - 0.5, order) for n, m in zip(shape, out, strict=True)]
    ways = np.array(shares, np.float32)
    blends = [means[0] + share * (means[1] - means[0]) for share in ways]
    every = [np.ascontiguousarray(maps[1].resample(maps[0].resample(blend, 0), 1)) for blend in blends]
    expected = np.stack([decider.labels(each, np.ones(out, np.float32)) for each in every])
    assert len(np.unique(expected)) > 1
    planes = [Plane(each, decider.labels(each, np.ones(shape, np.float32))) for each in means]
    pair = (planes[0], planes[-1 if len(shares) > 1 else 0])
    decider.seen = 0
    np.testing.assert_array_equal(between(decider, pair, ways, maps[0], maps[1]), expected)
    if noise < 1 and np.prod(out) > np.prod(shape):
        assert decider.seen < 0.5 * expected.size
    undecided = (Plane(pair[0].means), Plane(pair[1].means))
    np.testing.assert_array_equal(between(decider, undecided, ways, maps[0], maps[1]), expected)


class Counting(Decider):
    """Tells how many voxels it decided."""

    seen = 0

    def labels(self, sums: NDArray[np.float32], weights: NDArray[np.float32]) -> Labels:
        self.seen += weights.size
        return super().labels(sums, weights)
