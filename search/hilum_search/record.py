"""What a run leaves behind besides its weights: the manifest, and training.json with split, seed, figures and cost."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from hilum_inference.manifest import Fingerprint, Manifest, Provenance
from hilum_search.architecture import digest
from hilum_search.data import Case
from hilum_search.recipe import Recipe
from hilum_search.spent import Spent
from hilum_search.store import Store
from hilum_search.windows import Prepared, prepare

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAMPLED = 200_000
"""Voxels of a case that its intensity percentiles are read from, drawn at random: a stride may meet one plane only."""


@dataclass(frozen=True)
class Origin:
    """One part in training.json.

    Attributes:
        name: of the case.
        part: ``train``, ``validation`` or ``test``.
        planes: of a slab, [first, last); last None: to the end.
        patient: empty where nobody knows.
        files: SHA-256 by path below the data's folder.
    """

    name: str
    part: str
    planes: tuple[int, int | None] | None = None
    patient: str = ""
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cases:
    """What a run learns from, what it is scored on while it runs, and where all of it comes from.

    Attributes:
        train: at least one.
        validation: never learnt from.
        origins: of these, and of what is kept for the end.
        test: what is kept for the end; prepared only if somebody asks.
    """

    train: Sequence[Prepared]
    validation: Sequence[Prepared] = ()
    origins: Sequence[Origin] = ()
    test: Sequence[Prepared] = ()

    @classmethod
    def of(
        cls, recipe: Recipe, train: Sequence[Case], validation: Sequence[Case] = (), test: Sequence[Case] = ()
    ) -> Cases:
        """Cases that lie in memory already, on the model's grid."""
        named = (("train", train), ("validation", validation), ("test", test))
        origins = tuple(Origin(case.name, part) for part, cases in named for case in cases)
        one, two, three = ([prepare(case, recipe) for case in cases] for _, cases in named)
        return cls(one, two, origins, three)

    def digest(self) -> str:
        """SHA-256 of what is learnt from: of the files, channels in order, where they are known, else of the voxels."""
        if self.origins and all(origin.files for origin in self.origins):
            return _sha([asdict(origin) for origin in self.origins])
        arrays = [array for each in self.train for array in (each.case.image, each.case.ids)]
        return _sha([hashlib.sha256(array.tobytes()).hexdigest() for array in arrays])


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        dice: of every label over all that is held back; empty where nothing is.
        per_case: the same for each case.
        step: at which the kept weights stood.
        steps: done in all; more than ``step`` where the best scoring was kept.
        spent: by the run's first process.
        parameters: of the network.
        start: SHA-256 of the weights that were fine-tuned, empty for none.
    """

    dice: Mapping[str, float]
    per_case: Mapping[str, Mapping[str, float]]
    step: int
    steps: int
    spent: Spent
    parameters: int = 0
    start: str = ""


def manifest(recipe: Recipe, cases: Cases) -> Manifest:
    """The recipe's manifest with the training data's fingerprint and the provenance."""
    fields = {"fingerprint": fingerprint(recipe, cases.train), "provenance": provenance(recipe)}
    return recipe.manifest().model_copy(update=fields)


def fingerprint(recipe: Recipe, cases: Sequence[Prepared]) -> Fingerprint:
    """Intensity percentiles of each channel over all slabs, spacing, median size, number of slabs."""
    samples: list[NDArray[np.float32]] = []
    sizes: list[tuple[int, ...]] = []
    for prepared in cases.every() if isinstance(cases, Store) else cases:
        samples.append(_sample(prepared.case.image))
        sizes.append(prepared.case.ids.shape)
    marks = np.percentile(np.concatenate(samples, axis=1), (0.5, 50, 99.5), axis=1).T  # (C, 3)
    size = np.median(sizes, axis=0)
    return Fingerprint(
        intensity=tuple((round(float(a), 3), round(float(b), 3), round(float(c), 3)) for a, b, c in marks),
        spacing=recipe.preprocessing.geometry.spacing,
        size=(int(size[0]), int(size[1]), int(size[2])),
        cases=len(sizes),
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


def record(recipe: Recipe, cases: Cases, outcome: Outcome) -> dict[str, Any]:
    """training.json: all that is needed to do it again, and what came out."""
    return {
        "recipe": json.loads(recipe.file.model_dump_json()),
        "recipe_digest": recipe.digest,
        "seed": recipe.training.seed,
        "parameters": outcome.parameters,
        "cases": [asdict(origin) for origin in cases.origins],
        "dice": _plain(outcome.dice),
        "dice_per_case": {name: _plain(scores) for name, scores in outcome.per_case.items()},
        "step": outcome.step,
        "steps": outcome.steps,
        "start": outcome.start,
        **outcome.spent.fields(),
        "processor": processor(),
        "software": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of what the weights depend on."""
    import torch

    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}


def processor() -> str:
    """The kind of processor: other kinds round differently."""
    import torch

    return f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def _plain(scores: Mapping[str, float]) -> dict[str, float | None]:
    """Dice as JSON has it: null where neither reference nor answer holds the label."""
    return {name: None if np.isnan(score) else round(score, 5) for name, score in scores.items()}


def _sample(image: NDArray[np.float32]) -> NDArray[np.float32]:
    flat = image.reshape(image.shape[0], -1)
    if flat.shape[1] <= SAMPLED:
        return flat
    return flat[:, np.random.default_rng(0).integers(flat.shape[1], size=SAMPLED)]  # the same each time


def _sha(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
