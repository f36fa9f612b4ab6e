"""Small cases with a known answer, networks that find it, and runs without training."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hilum_inference.io import write_volume
from hilum_inference.repository import Model
from hilum_inference.volume import Volume
from hilum_search.cases import Files
from hilum_search.evaluate import Opened
from hilum_search.network import Network, build
from hilum_search.recipe import Recipe
from hilum_search.recorded import contents
from hilum_search.torch_engine import TorchEngine
from hilum_search.trained import Trained, write_trained


class Thresholds(nn.Module):
    """Features: outside, ball between 0.4 and 0.7 of the window, rod above."""

    def forward(self, image: Tensor) -> Tensor:
        ball, rod = (image > 0.4) & (image <= 0.7), image > 0.7
        return torch.cat([~(ball | rod), ball, rod], 1).float()


def thresholds() -> Network:
    head = nn.Conv3d(3, 3, 1, bias=False)
    nn.init.eye_(head.weight.data[:, :, 0, 0, 0])
    return Network(Thresholds(), head)


def opened(recipe: Recipe, title: str = "thresholds", training: dict[str, Any] | None = None) -> Opened:
    """Thresholds as a model of the recipe."""
    model = Model(recipe.manifest(), 0, Path(), Path(), f"digest of {title}")
    return Opened(title, model, TorchEngine(model.manifest, thresholds()), recipe.labels, training)


def phantom(folder: Path, name: str, move: int = 0, *, rod: bool = True) -> Files:
    """A ball (id 7), moved along the first axis, and a rod (ids 3 and 4), stored LAS at 2 mm."""
    i, j, k = np.indices((24, 22, 20))
    ids = np.zeros((24, 22, 20), np.uint8)
    ids[(i - 7 - move) ** 2 + (j - 8) ** 2 + (k - 10) ** 2 < 25] = 7
    if rod:
        ids[(abs(i - 17) < 2) & (abs(j - 14) < 2)] = 3
        ids[(ids == 3) & (k > 9)] = 4
    image = np.choose(ids.astype(int), [20, 0, 0, 180, 180, 0, 0, 110])
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])
    folder.mkdir(parents=True, exist_ok=True)
    files = Files((folder / f"{name}.nii.gz",), folder / f"{name}_seg.nii.gz", name)
    write_volume(files.images[0], Volume.from_array(image.astype(np.int16), affine))
    write_volume(files.labels, Volume.from_array(ids, affine))
    return files


def line(files: Files, part: str, planes: tuple[int, int | None] | None = None) -> dict[str, Any]:
    """What training.json says of a case."""
    known = contents(files, files.labels.parent)
    return {"name": files.name, "part": part, "planes": planes, "patient": "", "files": known}


def untrained(folder: Path, recipe: Recipe, cases: Sequence[dict[str, Any]] | None, seed: int = 0) -> Path:
    """The folder of a run whose weights are chance."""
    torch.manual_seed(seed)
    network = build(recipe.architecture, len(recipe.file.channels), recipe.classes)
    training: dict[str, Any] = {"recipe": json.loads(recipe.file.model_dump_json())}
    training["dice"] = {label.name: None for label in recipe.labels}
    if cases is not None:
        training["cases"] = list(cases)
    write_trained(folder, Trained(recipe.architecture, network, recipe.manifest(), training))
    return folder


def renamed(files: Files, name: str) -> Files:
    return dataclasses.replace(files, name=name)
