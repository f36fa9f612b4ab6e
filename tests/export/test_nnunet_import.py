from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hilum_nnunet import RESIDUAL, architecture, blobs, dataset, make_results, plans

from hilum_export.imported import compare, publish_import
from hilum_export.nnunet_import import read_results
from hilum_inference.io import write_volume
from hilum_inference.volume import Volume


def case(folder: Path, affine: Any, shape: tuple[int, int, int] = (30, 26, 22), channels: int = 1) -> list[Path]:
    rng = np.random.default_rng(5)
    image, _ = blobs(shape, rng)
    paths = []
    for n in range(channels):
        values = image if n == 0 else rng.normal(60, 10, shape)
        paths.append(folder / f"case_{n:04}.nii.gz")
        write_volume(paths[-1], Volume.from_array(values.astype(np.int16), np.float32(affine)))
    return paths


def test_a(tmp_path, monkeypatch):
    t = time.time()
    results = make_results(tmp_path, monkeypatch, plans(), dataset(), folds=2)
    print("made", time.time() - t); t = time.time()
    foreign = read_results(results)
    print("read", time.time() - t); t = time.time()
    paths = case(tmp_path, np.diag([-1.0, 1.3, 1.4, 1]))
    print(compare(foreign, paths)); print("compare", time.time() - t); t = time.time()
    done, found = publish_import(foreign, paths, tmp_path / "models")
    print(done.folder, found, time.time() - t)
    print((done.folder / "card.md").read_text())
