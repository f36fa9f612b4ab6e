from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from hilum_inference.intensity import Normaliser
from hilum_search.data import Case
from hilum_search.recipe import Recipe
from hilum_search.record import SAMPLED, Cases, Origin, fingerprint


def test_the_fingerprint_reads_every_plane(recipe: Recipe) -> None:
    shape = (160, 160, 40)  # of a stride of voxels // SAMPLED every step would meet planes 0, 5, 10... alone
    assert np.prod(shape) // SAMPLED == 5
    image = np.random.default_rng(1).normal(100, 20, shape).astype(np.float32)
    image[:, :, ::5] = 0
    cases = Cases.of(recipe, [Case("a", image[None], np.ones(shape, np.uint8), (Normaliser(()),))])
    found = fingerprint(recipe, cases.train)
    assert found.intensity[0] == pytest.approx(np.percentile(image, (0.5, 50, 99.5)), abs=2)
    assert fingerprint(recipe, cases.train) == found


def test_other_channels_are_other_cases(recipe: Recipe) -> None:
    files = {"x.nii": "1", "y.nii": "2", "seg.nii": "3"}
    one = Cases((), origins=[Origin("a", "train", files=files)])
    exchanged = {name: files[name] for name in ("y.nii", "x.nii", "seg.nii")}
    other = dataclasses.replace(one, origins=[Origin("a", "train", files=exchanged)])
    assert one.digest() != other.digest()
