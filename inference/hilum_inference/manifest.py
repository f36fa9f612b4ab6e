"""What a model is, as data: everything a gateway must know to serve it, in a closed and versioned vocabulary.

The manifest travels as JSON inside ``config.pbtxt`` (``parameters { key: "hilum_manifest" ... }``). What it cannot
express is refused, never ignored. The model sees (D, H, W): the three voxel axes of the oriented volume, in order.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hilum_inference.errors import ModelError

FORMAT = "hilum.manifest/1"
PARAMETER = "hilum_manifest"

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_LETTER_AXIS = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Channel(_Part):
    """One input channel: its name in requests, its modality (``CT``, ``MR``...)."""

    name: str
    modality: str = "CT"


class Code(_Part):
    """A coded term: value, scheme designator and meaning (for example 10200004, SCT, Liver)."""

    value: str
    scheme: str
    meaning: str


class Label(_Part):
    """One label of the answer; background is implied by id 0 and is never listed."""

    name: str
    id: int = Field(ge=1, le=65535)
    category: Code | None = None
    type: Code | None = None
    color: tuple[int, int, int] | None = None


class Geometry(_Part):
    """The model's grid, parallel to the input's.

    Attributes:
        orientation: three letters such as ``RAS`` (direction of increase), or ``native``: the axes as stored.
        axes: permutation applied after orientation (nnU-Net's (k, j, i) arrays are ``native`` with (2, 1, 0)).
        spacing: mm along each model axis after ``axes``, or None: the input's own.
        order: interpolation of the image, 0 nearest, 1 linear, 3 cubic B-spline.
        separate_z: whether the axis of largest spacing is interpolated by ``order_z`` alone ("auto": where the
            largest spacing is more than 3 times the smallest, nnU-Net's rule).
        align: ``first-voxel`` keeps the centre of voxel 0 in place (MONAI, ITK), or the middle of a grid that is
            oblique (MONAI); ``edges`` keeps the outer faces (nnU-Net, scikit-image).
    """

    orientation: str = "RAS"
    axes: tuple[int, int, int] = (0, 1, 2)
    spacing: tuple[float, float, float] | None = None
    order: Literal[0, 1, 3] = 1
    separate_z: Literal["never", "auto", "always"] = "never"
    order_z: Literal[0, 1] = 0
    align: Literal["first-voxel", "edges"] = "first-voxel"

    @field_validator("orientation")
    @classmethod
    def _known_orientation(cls, value: str) -> str:
        if value != "native" and sorted(_LETTER_AXIS.get(c, -1) for c in value) != [0, 1, 2]:
            raise ValueError(f"orientation {value!r} must be 'native' or name each of R/L, A/P, S/I once")
        return value

    @field_validator("spacing")
    @classmethod
    def _lengths(cls, value: tuple[float, float, float] | None) -> tuple[float, float, float] | None:
        if value is not None and not all(0 < length < math.inf for length in value):
            raise ValueError(f"spacing must be three lengths in mm, not {value}")
        return value

    @field_validator("axes")
    @classmethod
    def _permutation(cls, value: tuple[int, int, int]) -> tuple[int, int, int]:
        if sorted(value) != [0, 1, 2]:
            raise ValueError("axes must be a permutation of 0, 1, 2")
        return value


class Crop(_Part):
    """The part of the input that is segmented; everything outside is background.

    Attributes:
        kind: ``none``; ``body``: the box of what lies above ``threshold``; ``non-zero``: the box of voxels != 0.
        threshold: value above which a voxel belongs to the body (HU for CT).
        grid: the box is widened to multiples of this many input voxels, so that one voxel of noise does not move it.
        margin_mm: added on every side first.
    """

    kind: Literal["none", "body", "non-zero"] = "none"
    threshold: float = -300.0
    grid: int = Field(default=16, ge=1)
    margin_mm: float = Field(default=10.0, ge=0)


class Clip(_Part):
    """Values below ``low`` or above ``high`` are set to the bound."""

    rule: Literal["clip"] = "clip"
    low: float
    high: float


class Window(_Part):
    """[low, high] is mapped to [out_low, out_high] linearly, clipped where ``clip``."""

    rule: Literal["window"] = "window"
    low: float
    high: float
    out_low: float = 0.0
    out_high: float = 1.0
    clip: bool = True

    @model_validator(mode="after")
    def _rising(self) -> Window:
        if not self.low < self.high:
            raise ValueError(f"a window begins below its end, not {self.low:g} to {self.high:g}")
        return self


class ZScore(_Part):
    """(value - mean) / sd; fixed figures, or those of the volume or of a mask.

    ``mask``: values above the mask's threshold. ``filled``: voxels that are not 0 in any channel, and the holes between
    them (nnU-Net); before resampling only.
    """

    rule: Literal["z-score"] = "z-score"
    scope: Literal["fixed", "volume", "mask", "filled"] = "fixed"
    mean: float = 0.0
    sd: float = Field(default=1.0, gt=0)


class Percentile(_Part):
    """The values at two percentiles are mapped to [out_low, out_high], clipped where ``clip``."""

    rule: Literal["percentile"] = "percentile"
    scope: Literal["volume", "mask"] = "volume"
    lower: float = Field(default=0.5, ge=0, lt=100)
    upper: float = Field(default=99.5, gt=0, le=100)
    out_low: float = 0.0
    out_high: float = 1.0
    clip: bool = True


IntensityStep = Annotated[Clip | Window | ZScore | Percentile, Field(discriminator="rule")]


class Intensity(_Part):
    """The steps for each channel (one list for all, or one each).

    Attributes:
        steps: one tuple of steps for every channel, or exactly one for all channels.
        stage: whether the steps run on the stored voxels or on the resampled ones.
        mask_threshold: the mask of ``scope: mask`` is value > mask_threshold.
        outside: what voxels outside the mask become when any step has ``scope: mask``; None leaves them to the rule.
            With ``scope: filled`` None is 0.
    """

    steps: tuple[tuple[IntensityStep, ...], ...]
    stage: Literal["before-resampling", "after-resampling"] = "after-resampling"
    mask_threshold: float = 0.0
    outside: float | None = None

    @model_validator(mode="after")
    def _filled_before_resampling(self) -> Self:
        if self.stage != "before-resampling" and any(self.is_filled(n) for n in range(len(self.steps))):
            raise ValueError("scope filled needs stage before-resampling")
        return self

    def is_filled(self, channel: int) -> bool:
        """Whether a step of this channel has ``scope: filled``."""
        steps = self.steps[0] if len(self.steps) == 1 else self.steps[channel]
        return any(isinstance(step, ZScore) and step.scope == "filled" for step in steps)


class Windows(_Part):
    """How windows are placed and weighted; the two named rules are those of the two reference libraries.

    Attributes:
        size: (D, H, W) voxels.
        overlap: share of a window that its neighbour covers, 0 <= overlap < 1.
        placement: ``monai`` (fixed step, last one pushed back) or ``nnunet`` (evenly spread).
        weights: ``monai`` or ``nnunet`` Gaussian, or ``constant``.
        padding: how a volume smaller than a window is filled, after the intensity rule.
        padding_value: for ``constant``.
        batch: windows in one call of the engine.
    """

    size: tuple[int, int, int]
    overlap: float = Field(default=0.5, ge=0, lt=1)
    placement: Literal["monai", "nnunet"] = "monai"
    weights: Literal["monai", "nnunet", "constant"] = "monai"
    padding: Literal["constant", "edge", "reflect"] = "constant"
    padding_value: float = 0.0
    batch: int = Field(default=1, ge=1, le=64)


class PostProcessing(_Part):
    """What is done with the finished labels.

    Attributes:
        largest_component: names of labels of which only the largest connected part (26 neighbours) is kept.
        smallest_ml: parts smaller than this are removed, for every label; 0 keeps all.
    """

    largest_component: tuple[str, ...] = ()
    smallest_ml: float = Field(default=0.0, ge=0)


class Tensors(_Part):
    """Names of the network's input and outputs; ``features`` only where the head is given."""

    image: str = "image"
    logits: str = "logits"
    features: str | None = None


class Head(_Part):
    """The last layer, a 1x1x1 convolution: logits = weight @ features + bias, float32, base64, little-endian."""

    features: int = Field(ge=1)
    classes: int = Field(ge=1)
    weight: str
    bias: str

    @classmethod
    def from_arrays(cls, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> Self:
        """A head from weight (K, C) and bias (K,)."""
        classes, features = weight.shape
        return cls(features=features, classes=classes, weight=_encode(weight), bias=_encode(bias))

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        for name, text, count in (
            ("weight", self.weight, self.features * self.classes),
            ("bias", self.bias, self.classes),
        ):
            if len(base64.b64decode(text, validate=True)) != 4 * count:
                raise ValueError(f"head {name} must hold {count} float32")
        return self

    def arrays(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Weight (K, C) and bias (K,)."""
        weight = np.frombuffer(base64.b64decode(self.weight), "<f4").reshape(self.classes, self.features)
        return weight, np.frombuffer(base64.b64decode(self.bias), "<f4")


class Fingerprint(_Part):
    """What the training data looked like: intensity percentiles 0.5/50/99.5, median spacing (mm) and size, cases."""

    intensity: tuple[tuple[float, float, float], ...] = ()
    spacing: tuple[float, float, float] | None = None
    size: tuple[int, int, int] | None = None
    cases: int = 0


class Calibration(_Part):
    """Temperature by which logits are divided before a probability is read from them."""

    temperature: float = Field(default=1.0, gt=0)


class Digests(_Part):
    """SHA-256 of the network file and of the canonical preprocessing part of this manifest."""

    weights: str = ""
    preprocessing: str = ""


class Provenance(_Part):
    """Where the model comes from."""

    architecture: str = ""
    recipe: str = ""
    data: str = ""
    seed: int | None = None
    created: str = ""
    software: dict[str, str] = Field(default_factory=dict)
    licence: str = ""
    dice_gate: Literal["passed", "on-training-cases", "compared", "skipped"] | None = None


class Manifest(_Part):
    """A trained model as the gateway sees it. See the module's docstring; every field is documented in its part."""

    format: Literal["hilum.manifest/1"] = "hilum.manifest/1"
    name: str
    title: str = ""
    description: str = ""
    task: Literal["segmentation", "interactive"] = "segmentation"
    channels: tuple[Channel, ...] = Field(min_length=1)
    labels: tuple[Label, ...] = Field(min_length=1)
    output: Literal["softmax-argmax", "sigmoid-regions"] = "softmax-argmax"
    region_order: tuple[int, ...] = ()
    geometry: Geometry = Geometry()
    crop: Crop = Crop()
    intensity: Intensity
    windows: Windows
    way_back: Literal["labels", "logits", "probabilities"] = "labels"
    flips: tuple[tuple[int, ...], ...] = ()
    folds: int = Field(default=1, ge=1)
    post_processing: PostProcessing = PostProcessing()
    tensors: Tensors = Tensors()
    head: Head | None = None
    precisions: tuple[Literal["f32", "bf16", "f16"], ...] = ("f32",)
    prompt_channels: tuple[str, ...] = ()
    fingerprint: Fingerprint = Fingerprint()
    calibration: Calibration = Calibration()
    digests: Digests = Digests()
    provenance: Provenance = Provenance()
    intended_use: str = "Research use only; not a medical device."

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError(f"name {value!r} must be 1-64 of a-z, 0-9, '.', '_', '-', starting with a letter or digit")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        ids = [label.id for label in self.labels]
        if len(set(ids)) != len(ids) or len({label.name for label in self.labels}) != len(ids):
            raise ValueError("label names and ids must be unique")
        if len(self.intensity.steps) not in (1, len(self.channels)):
            raise ValueError("intensity.steps needs one entry for all channels or one for each")
        if self.output == "sigmoid-regions" and self.way_back == "probabilities":
            raise ValueError("way_back probabilities needs output softmax-argmax")
        if self.output == "sigmoid-regions" and sorted(self.region_order) != sorted(ids):
            raise ValueError("region_order must name every label id once")
        if self.head is not None and self.head.classes != self.classes:
            raise ValueError(f"the head has {self.head.classes} classes, the labels ask for {self.classes}")
        if (self.head is None) != (self.tensors.features is None):
            raise ValueError("tensors.features and head belong together")
        if any(not flip or len(set(flip)) != len(flip) or not set(flip) <= {0, 1, 2} for flip in self.flips):
            raise ValueError("each flip names distinct axes out of 0, 1, 2")
        unknown = set(self.post_processing.largest_component) - {label.name for label in self.labels}
        if unknown:
            raise ValueError(f"post_processing names unknown labels: {sorted(unknown)}")
        return self

    @property
    def classes(self) -> int:
        """K, the number of output channels: background included for softmax, one a label for regions."""
        return len(self.labels) + (self.output == "softmax-argmax")

    @property
    def blends_features(self) -> bool:
        """Whether windows are blended as features (cheaper where C x folds < K) and the head applied afterwards.

        Never where probabilities are resampled: softmax comes before resampling then, and is not linear.
        """
        linear = self.way_back != "probabilities"
        return linear and self.head is not None and self.head.features < self.head.classes

    def intensity_steps(self, channel: int) -> tuple[Clip | Window | ZScore | Percentile, ...]:
        """The intensity steps of one channel."""
        steps = self.intensity.steps
        return steps[0] if len(steps) == 1 else steps[channel]

    def preprocessing_digest(self) -> str:
        """SHA-256 over everything but the network that decides the labels."""
        parts = {"channels", "labels", "output", "region_order", "geometry", "crop", "intensity", "windows", "way_back"}
        text = self.model_dump_json(include=parts | {"flips", "folds", "post_processing", "head"})
        return hashlib.sha256(json.dumps(json.loads(text), sort_keys=True).encode()).hexdigest()

    def to_json(self, indent: int | None = None) -> str:
        """The manifest as JSON, every field written out: a later default must not change an old model."""
        return self.model_dump_json(indent=indent)


def parse_manifest(text: str | bytes) -> Manifest:
    """A manifest from its JSON.

    Raises:
        ModelError: not JSON, or outside the vocabulary; the message names the first field at fault.
    """
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise ModelError(f"The manifest is not valid at {where}: {first['msg']}.", code="bad_manifest") from error


def _encode(array: NDArray[np.float32]) -> str:
    return base64.b64encode(np.ascontiguousarray(array, "<f4").tobytes()).decode()
