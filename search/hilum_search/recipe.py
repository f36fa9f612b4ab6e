"""A recipe: everything that decides a training run but the voxels, read from TOML.

``[architecture]`` is an architecture's fields; ``[preprocessing]`` and ``[[channels]]`` are written in the manifest's
own words and travel unchanged into the model's manifest, so that training and serving cannot differ.
"""

from __future__ import annotations

import dataclasses
import hashlib
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hilum_inference.manifest import Channel, Crop, Geometry, Intensity, Label, Manifest, Windows
from hilum_search.architecture import Architecture, from_fields
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
        learning_rate, weight_decay, warmup: AdamW's; linear warm-up over ``warmup`` steps, then cosine to zero.
        class_weights: cross-entropy weight of background and each label.
        logit_offsets: added to each class's logit once training is over, background first; what class weights teach
            finds every voxel but draws borders too wide. Chosen on held-back slabs; empty adds nothing.
        dice_share: share of the soft Dice in the loss, the rest is cross-entropy.
        ema: decay of the averaged weights, which are what is kept.
        seed: of weights, windows and augmentation.
        precision: of the convolutions; ``bf16`` is faster where the CPU has it and slower elsewhere.
        threads: torch threads; part of the recipe since sums are ordered by it.
        held_back: planes [first, last) along the window's last axis that are never trained on.
        gap: planes on either side of a held-back slab that are used for nothing.
    """

    steps: int = Field(ge=1)
    batch: int = Field(default=2, ge=1)
    learning_rate: float = Field(default=2e-3, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    warmup: int = Field(default=50, ge=0)
    class_weights: tuple[float, ...]
    logit_offsets: tuple[float, ...] = ()
    dice_share: float = Field(default=0.5, ge=0, le=1)
    ema: float = Field(default=0.99, ge=0, lt=1)
    seed: int = 0
    precision: Literal["f32", "bf16"] = "f32"
    threads: int = Field(default=1, ge=1)
    checkpoint_every: int = Field(default=100, ge=1)
    validate_every: int = Field(default=500, ge=1)
    held_back: tuple[tuple[int, int], ...] = ()
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


class CaseFiles(_Part):
    """One case of the training data, by path below the folder that holds it, and the SHA-256 of its files."""

    image: str
    labels: str
    image_sha256: str = ""
    labels_sha256: str = ""


class _File(_Part):
    name: str
    title: str = ""
    description: str = ""
    intended_use: str = "Research use only; not a medical device."
    data: str = ""
    licence: str = ""
    architecture: dict[str, Any]
    channels: tuple[Channel, ...] = Field(min_length=1)
    labels: tuple[Target, ...] = Field(min_length=1)
    cases: tuple[CaseFiles, ...] = ()
    preprocessing: Preprocessing
    training: Training
    augmentation: Augmentation = Augmentation()


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
        """The same recipe with other training figures (seed, steps, held-back slabs...)."""
        training = Training.model_validate(self.training.model_dump() | changes)
        return dataclasses.replace(self, file=self.file.model_copy(update={"training": training}))

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
    _check(recipe)
    return recipe


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


def _check(recipe: Recipe) -> None:
    if len(recipe.training.class_weights) != recipe.classes:
        raise RecipeError(
            f"training.class_weights has {len(recipe.training.class_weights)} figures; "
            f"background and {len(recipe.labels)} labels need {recipe.classes}."
        )
    if len(recipe.training.logit_offsets) not in (0, recipe.classes):
        raise RecipeError(f"training.logit_offsets needs no figure or {recipe.classes}, one for each class.")
    if [target.id for target in recipe.labels] != list(range(1, recipe.classes)):
        raise RecipeError("The labels' ids must be 1, 2, 3... in order: they are the network's channels.")
    size, stride = recipe.preprocessing.windows.size, recipe.architecture.stride
    if any(side % stride for side in size):
        raise RecipeError(f"The window {size} must have sides that are multiples of {stride}, the network's stride.")
    if recipe.preprocessing.geometry.spacing is None:
        raise RecipeError("preprocessing.geometry.spacing must be given: training needs one spacing for all cases.")
    try:
        recipe.manifest()
    except ValidationError as error:
        raise RecipeError(f"The recipe makes no valid manifest: {error.errors()[0]['msg']}.") from error
