"""A recipe: everything that decides a training run but the voxels, read from TOML.

``[architecture]`` is an architecture's fields; ``[preprocessing]`` and ``[[channels]]`` are written in the manifest's
own words and travel unchanged into the model's manifest, so that training and serving cannot differ.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hilum_inference.manifest import Channel, Crop, Geometry, Intensity, Label, Manifest, Windows
from hilum_search.architecture import Architecture, from_fields, to_json
from hilum_search.consistency import check
from hilum_search.errors import RecipeError


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Target(Label):
    """One label of the network and the ids of the reference segmentation that make it up."""

    from_ids: tuple[int, ...] = Field(min_length=1)


class Preprocessing(_Part):
    """The manifest's rules from stored voxels to windows."""

    geometry: Geometry
    intensity: Intensity
    windows: Windows
    crop: Crop = Crop()
    way_back: Literal["labels", "logits"] = "labels"


class Training(_Part):
    """How the weights are found.

    Attributes:
        steps, batch: optimiser steps and windows in each.
        optimiser: AdamW, or SGD with ``momentum`` as in the C2FNAS talk.
        learning_rate, weight_decay, warmup: linear warm-up over ``warmup`` steps, then the schedule.
        schedule: cosine to zero; ``poly``, power 0.9 to zero; or ``steps``: times ``decay`` at each milestone.
        milestones: shares of ``steps`` at which the rate falls.
        class_weights: weight of background and each label in cross-entropy or focal loss.
        logit_offsets: added to each class's logit once training is over, background first; what class weights teach
            finds every voxel but draws borders too wide. Chosen on held-back slabs; empty adds nothing.
        dice_share: share of the region loss; the rest is the voxel loss.
        region_loss: soft Dice, or Tversky (Salehi et al. 2017) with ``tversky`` as weights of false positives and
            false negatives.
        voxel_loss: cross-entropy, or focal loss (Lin et al. 2017) with ``focal_gamma``.
        deep_supervision: also score coarser features, each level half the weight of the finer one.
        patience: scorings on held-back data without a better mean Dice after which the run ends; the best weights are
            then kept. 0 runs all steps and keeps the last.
        ema: decay of the averaged weights, which are what is kept.
        seed: of weights, windows and augmentation.
        precision: of the convolutions; ``bf16`` is faster where the CPU has it and slower elsewhere; ``fp16`` needs a
            GPU.
        deterministic: refuse operations whose result may differ from run to run; on a CPU only.
        keep: prepared cases all in memory; ``smart``: ``cached_cases`` of them, some exchanged every epoch; on
            ``disk``, below the run's folder; or ``no``: read again for every window.
        workers: threads that draw the windows of the steps to come; 0 draws each when it is wanted.
        threads: torch threads; part of the recipe since sums are ordered by it.
    """

    steps: int = Field(ge=1)
    batch: int = Field(default=2, ge=1)
    optimiser: Literal["adamw", "sgd"] = "adamw"
    momentum: float = Field(default=0.9, ge=0, lt=1)
    schedule: Literal["cosine", "poly", "steps"] = "cosine"
    milestones: tuple[float, ...] = ()
    decay: float = Field(default=0.5, gt=0, lt=1)
    learning_rate: float = Field(default=2e-3, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    warmup: int = Field(default=50, ge=0)
    class_weights: tuple[float, ...]
    logit_offsets: tuple[float, ...] = ()
    dice_share: float = Field(default=0.5, ge=0, le=1)
    region_loss: Literal["dice", "tversky"] = "dice"
    tversky: tuple[float, float] = (0.3, 0.7)
    voxel_loss: Literal["ce", "focal"] = "ce"
    focal_gamma: float = Field(default=2.0, ge=0)
    deep_supervision: bool = False
    patience: int = Field(default=0, ge=0)
    ema: float = Field(default=0.99, ge=0, lt=1)
    seed: int = 0
    precision: Literal["f32", "bf16", "fp16"] = "f32"
    deterministic: bool = False
    workers: int = Field(default=0, ge=0)
    keep: Literal["memory", "smart", "disk", "no"] = "memory"
    cached_cases: int = Field(default=24, ge=1)
    threads: int = Field(default=1, ge=1)
    checkpoint_every: int = Field(default=100, ge=1)
    validate_every: int = Field(default=500, ge=1)


class Splitting(_Part):
    """Which cases train, which choose, which are scored at the end; no patient stands on two sides.

    Attributes:
        folds, fold: the patients left after the test are dealt into ``folds`` parts; part ``fold`` (from 0) validates,
            the rest trains. ``fold`` unset: all train.
        test_share: of the patients, kept for the end.
        seed: of the dealing.
        validation_planes, test_planes: instead, slabs [first, last) of every case along the window's last axis on the
            model's grid; the planes that are left train, those next to a cut left out.
        gap: planes on either side of such a slab that are used for nothing.
    """

    folds: int = Field(default=5, ge=2)
    fold: int | None = Field(default=None, ge=0)
    test_share: float = Field(default=0.0, ge=0, lt=1)
    seed: int = 0
    validation_planes: tuple[tuple[int, int], ...] = ()
    test_planes: tuple[tuple[int, int], ...] = ()
    gap: int = Field(default=4, ge=0)


class Enhancement(_Part):
    """Organs whose values a contrast agent raises: ids of the reference segmentation, largest rise in HU."""

    ids: tuple[int, ...]
    rise: float


class Limbs(_Part):
    """Arms that are painted beside the body, as in scans with the arms down.

    Attributes:
        chance: that a window gets one.
        radius: smallest and largest, as shares of the slab's extent along the window's first axis.
        id: of the reference, for the limb's bone.
    """

    chance: float = Field(ge=0, le=1)
    radius: tuple[float, float] = (0.1, 0.15)
    id: int = Field(ge=1)


class Augmentation(_Part):
    """Random changes of a window; angles in degrees, lengths in voxels, intensities in the image's unit.

    Attributes:
        rotation: largest angle about each axis of the window.
        flips: axes that are mirrored half the time. Not the axis from left to right where labels have sides, unless
            ``swap`` names the pairs.
        swap: pairs of labels that change places when left and right do.
        scale: each axis is scaled by a factor between 1/scale and scale.
        elastic: standard deviation of the coarse displacement field.
        gain, shift, noise, bias: standard deviations (noise and bias: largest) of what is done to the values.
        short: chance that a window holds only part of its planes, the rest repeated as padding does.
        smallest_share: the smallest such part.
        smooth: chance of a blur along one or all axes, as by thick slices or a soft kernel.
        outside: value beyond the slab's first two axes, as in a wider field of view; None repeats the edge.
        limbs: arms painted into the air.
        enhancement: organs raised together, by a random strength.
        enhance: chance that they are.
    """

    rotation: tuple[float, float, float] = (0.0, 0.0, 0.0)
    flips: tuple[Literal[0, 1, 2], ...] = ()
    swap: tuple[tuple[str, str], ...] = ()
    scale: float = Field(default=1.0, ge=1)
    elastic: float = Field(default=0.0, ge=0)
    gain: float = Field(default=0.0, ge=0)
    shift: float = Field(default=0.0, ge=0)
    noise: float = Field(default=0.0, ge=0)
    bias: float = Field(default=0.0, ge=0)
    short: float = Field(default=0.0, ge=0, le=1)
    smallest_share: float = Field(default=0.5, gt=0, le=1)
    smooth: float = Field(default=0.0, ge=0, le=1)
    enhance: float = Field(default=0.0, ge=0, le=1)
    outside: float | None = None
    limbs: Limbs | None = None
    enhancement: tuple[Enhancement, ...] = ()

    @property
    def margin(self) -> int:
        """Planes over which bending (three standard deviations), blur and soft organ edges carry a value."""
        return math.ceil(3 * self.elastic) + (1 if self.smooth else 0) + (1 if self.enhancement else 0)


class CaseFiles(_Part):
    """One case of the training data, by path below the folder that holds it, and the SHA-256 of its files."""

    image: str
    labels: str
    image_sha256: str = ""
    labels_sha256: str = ""
    patient: str = ""


class Exporting(_Part):
    """What an exported file may lose.

    Attributes:
        dice_drop: Dice of any label, against the network, on the cases that were held back.
    """

    dice_drop: float = Field(default=0.005, ge=0, le=1)


class _File(_Part):
    name: str
    title: str = ""
    description: str = ""
    intended_use: str = "Research use only; not a medical device."
    data: str = ""
    licence: str = ""
    limits: str = ""
    architecture: dict[str, Any]
    channels: tuple[Channel, ...] = Field(min_length=1)
    labels: tuple[Target, ...] = Field(min_length=1)
    cases: tuple[CaseFiles, ...] = ()
    preprocessing: Preprocessing
    training: Training
    split: Splitting = Splitting()
    augmentation: Augmentation = Augmentation()
    export: Exporting = Exporting()


@dataclass(frozen=True)
class Recipe:
    """A recipe, checked as a whole; ``digest`` is the SHA-256 of the TOML it came from."""

    file: _File
    architecture: Architecture
    digest: str = field(default="")

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.file.name

    @property
    def training(self) -> Training:
        """How the weights are found."""
        return self.file.training

    @property
    def split(self) -> Splitting:
        """Which cases train, validate, test."""
        return self.file.split

    @property
    def augmentation(self) -> Augmentation:
        """Random changes of a window."""
        return self.file.augmentation

    @property
    def labels(self) -> tuple[Target, ...]:
        """The network's labels, background left out."""
        return self.file.labels

    @property
    def preprocessing(self) -> Preprocessing:
        """From stored voxels to windows."""
        return self.file.preprocessing

    @property
    def classes(self) -> int:
        """Number of output channels, background among them."""
        return len(self.file.labels) + 1

    def with_training(self, **changes: Any) -> Recipe:
        """The same recipe with other training figures (seed, steps...).

        Raises:
            RecipeError: a figure outside its bounds.
        """
        training = _valid(Training, self.training.model_dump() | changes, "training")
        return dataclasses.replace(self, file=self.file.model_copy(update={"training": training}))

    def with_split(self, **changes: Any) -> Recipe:
        """The same recipe with another fold, other slabs...

        Raises:
            RecipeError: a split that contradicts itself.
        """
        split = _valid(Splitting, self.split.model_dump() | changes, "split")
        changed = dataclasses.replace(self, file=self.file.model_copy(update={"split": split}))
        check(changed)
        return changed

    def with_architecture(self, architecture: Architecture) -> Recipe:
        """The same recipe for another network.

        Raises:
            RecipeError: a window that the network cannot take.
        """
        fields = json.loads(to_json(architecture))
        fields.pop("format")
        changed = dataclasses.replace(
            self, file=self.file.model_copy(update={"architecture": fields}), architecture=architecture
        )
        check(changed)
        return changed

    def with_window(self, size: tuple[int, int, int]) -> Recipe:
        """The same recipe with other windows.

        Raises:
            RecipeError: sides that the network cannot take.
        """
        windows = self.preprocessing.windows.model_copy(update={"size": size})
        preprocessing = self.preprocessing.model_copy(update={"windows": windows})
        changed = dataclasses.replace(self, file=self.file.model_copy(update={"preprocessing": preprocessing}))
        check(changed)
        return changed

    @property
    def swapped(self) -> tuple[int, ...]:
        """The class that each class becomes when left and right change places, background first."""
        ids = {label.name: label.id for label in self.labels}
        table = list(range(self.classes))
        for one, other in self.augmentation.swap:
            table[ids[one]], table[ids[other]] = ids[other], ids[one]
        return tuple(table)

    @property
    def sided_axis(self) -> int | None:
        """The window's axis from left to right; None where the orientation is left as it is stored."""
        geometry = self.preprocessing.geometry
        if geometry.orientation == "native":
            return None
        return next(axis for axis, stored in enumerate(geometry.axes) if geometry.orientation[stored] in "LR")

    def manifest(self) -> Manifest:
        """The manifest of the network before it is trained: no digests, no head, no provenance."""
        f = self.file
        plain = f.preprocessing.model_dump()
        return Manifest.model_validate(
            {
                "name": f.name,
                "title": f.title,
                "description": f.description,
                "intended_use": f.intended_use,
                "channels": [c.model_dump() for c in f.channels],
                "labels": [t.model_dump(exclude={"from_ids"}) for t in f.labels],
                **plain,
            }
        )


_Group = TypeVar("_Group", bound=_Part)


def _valid(kind: type[_Group], fields: Mapping[str, Any], name: str) -> _Group:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join((name, *map(str, first["loc"])))
        raise RecipeError(f"{where} cannot be {first['input']!r}: {first['msg']}.") from error


def parse_recipe(text: str) -> Recipe:
    """A recipe from TOML.

    Raises:
        RecipeError: not TOML, an unknown or missing field, figures that contradict each other.
        ArchitectureError: an architecture outside its space.
    """
    try:
        file = _File.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"The recipe is not valid TOML: {error}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecipeError(f"The recipe is not valid at {where}: {first['msg']}.") from error
    recipe = Recipe(file, from_fields(file.architecture), hashlib.sha256(text.encode()).hexdigest())
    check(recipe)
    return recipe


def recipe_of(record: Mapping[str, Any]) -> Recipe:
    """The recipe that a run was trained by, from its training.json.

    Raises:
        RecipeError: the record holds none.
    """
    try:
        file = _File.model_validate(record["recipe"])
    except (KeyError, ValidationError) as error:
        raise RecipeError("The record of the training holds no recipe; train again with this version.") from error
    return Recipe(file, from_fields(file.architecture), str(record.get("recipe_digest", "")))


def read_recipe(name: str | Path) -> Recipe:
    """A recipe by file, or by the name of one that Hilum brings (``demo``).

    Raises:
        RecipeError: no such file or name; see also parse_recipe.
    """
    path = Path(name)
    if path.suffix != ".toml":
        path = next((folder / f"{name}.toml" for folder in _folders() if (folder / f"{name}.toml").is_file()), path)
    if not path.is_file():
        known = sorted({found.stem for folder in _folders() for found in folder.glob("*.toml")})
        raise RecipeError(f"There is no recipe {str(name)!r}; give a .toml file or one of: {', '.join(known)}.")
    return parse_recipe(path.read_text(encoding="utf-8"))


def _folders() -> tuple[Path, ...]:
    package = Path(__file__).parent  # the wheel holds recipes/ inside the package, a checkout beside it
    return package.parent / "recipes", package / "recipes"
