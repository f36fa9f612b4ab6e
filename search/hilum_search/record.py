"""What a run leaves behind besides its weights: the manifest, and training.json with split, seed, figures and cost."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from hilum_inference.manifest import Fingerprint, Manifest, Provenance
from hilum_search.architecture import digest
from hilum_search.data import Case
from hilum_search.recipe import Recipe


@dataclass(frozen=True)
class Cases:
    """Slabs to train on, slabs held back, and what the record says of the files they come from."""

    train: Sequence[Case]
    held_back: Sequence[Case] = ()
    files: Sequence[Mapping[str, str]] = field(default_factory=tuple)


def manifest(recipe: Recipe, cases: Cases) -> Manifest:
    """The recipe's manifest with the training data's fingerprint and the provenance."""
    fields = {"fingerprint": fingerprint(recipe, cases.train), "provenance": provenance(recipe)}
    return recipe.manifest().model_copy(update=fields)


def fingerprint(recipe: Recipe, cases: Sequence[Case]) -> Fingerprint:
    """Intensity percentiles of each channel over all slabs, spacing, median size, number of slabs."""
    values = np.concatenate([case.image.reshape(case.image.shape[0], -1) for case in cases], axis=1)
    marks = np.percentile(values, (0.5, 50, 99.5), axis=1).T  # (C, 3)
    sizes = np.median([case.ids.shape for case in cases], axis=0)
    return Fingerprint(
        intensity=tuple((round(float(a), 3), round(float(b), 3), round(float(c), 3)) for a, b, c in marks),
        spacing=recipe.preprocessing.geometry.spacing,
        size=(int(sizes[0]), int(sizes[1]), int(sizes[2])),
        cases=len(cases),
    )


def provenance(recipe: Recipe) -> Provenance:
    """Digests of architecture and recipe, seed, data, versions, time."""
    return Provenance(
        architecture=digest(recipe.architecture),
        recipe=recipe.digest,
        data=recipe.file.data,
        seed=recipe.training.seed,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        software=versions(),
        licence=recipe.file.licence,
    )


def record(recipe: Recipe, cases: Cases, dice: Mapping[str, float], cpu_seconds: float) -> dict[str, Any]:
    """training.json: all that is needed to do it again, and what came out."""
    return {
        "recipe": json.loads(recipe.file.model_dump_json()),
        "recipe_digest": recipe.digest,
        "seed": recipe.training.seed,
        "files": [dict(each) for each in cases.files],
        "train": [case.name for case in cases.train],
        "held_back": [case.name for case in cases.held_back],
        "dice": dict(dice),
        "cpu_seconds": round(cpu_seconds, 1),
        "software": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of what the weights depend on."""
    import torch

    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}
