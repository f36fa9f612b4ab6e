"""What MONAI's transforms and inferer say, in the words of our manifest: a closed list, everything else is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from hilum_inference.manifest import IntensityStep, Percentile, Window, ZScore

ORDERS: Final[dict[str, int]] = {"nearest": 0, "bilinear": 1}
PADDING: Final = {"constant": "constant", "replicate": "edge", "reflect": "reflect"}


@dataclass
class Rules:
    """What the transforms of a bundle come down to, gathered in the order in which they stand.

    Attributes:
        before, after: the transforms that MONAI itself runs around the network, by their names in monai.transforms.
        inferer: arguments of its SlidingWindowInferer.
    """

    channels: int | None = None
    orientation: str = "native"
    spacing: tuple[float, float, float] | None = None
    order: int = 1
    steps: list[IntensityStep] = field(default_factory=list)
    stages: set[str] = field(default_factory=set)
    joint: bool = False
    mask_threshold: float = 0.0
    windows: dict[str, Any] = field(default_factory=dict)
    activated: bool = False
    decided: bool = False
    way_back: str = ""
    largest: tuple[int, ...] | None = None
    before: list[dict[str, Any]] = field(default_factory=list)
    after: list[dict[str, Any]] = field(default_factory=list)
    inferer: dict[str, Any] = field(default_factory=dict)

    # Each method below is one of MONAI's transforms; its arguments are those that can be expressed, MONAI's defaults.

    def load_image(
        self, *, reader: str | None = None, image_only: bool = True, ensure_channel_first: bool = False
    ) -> None:
        """Any reader that gives the file's own values."""
        if reader not in (None, "NibabelReader", "ITKReader"):
            raise ValueError(f"reader {reader!r} is not known")

    def ensure_channel_first(self, *, channel_dim: None = None, strict_check: bool = True) -> None:
        """Channels as our volumes have them."""
        if channel_dim not in (None, "no_channel"):
            raise ValueError("channel_dim must be left to the file")

    def ensure_type(self, *, data_type: str = "tensor", track_meta: bool | None = None) -> None:
        """Changes no voxel."""
        if data_type != "tensor":
            raise ValueError("data_type must be tensor")

    def cast_to_type(self, *, dtype: str = "float32") -> None:
        """float32, which is ours."""
        if dtype not in ("float32", "torch.float32"):
            raise ValueError("dtype must be float32")

    def orientation_(self, *, axcodes: str, labels: Any = None, lazy: bool = False) -> None:
        """Before Spacing, letters as in the manifest."""
        if labels is not None or self.spacing is not None:
            raise ValueError("Orientation must use MONAI's own labels and stand before Spacing")
        self.orientation = "".join(axcodes)

    def spacing_(
        self,
        *,
        pixdim: Sequence[float],
        mode: str | Sequence[str] = "bilinear",
        padding_mode: str | Sequence[str] = "border",
        align_corners: bool = False,
        diagonal: bool = False,
        scale_extent: bool = False,
        recompute_affine: bool = False,
        lazy: bool = False,
    ) -> None:
        """Once; the first voxel stays in place."""
        if _one(align_corners) or diagonal or scale_extent or _one(padding_mode) != "border" or self.spacing:
            raise ValueError("Spacing is understood once, with padding_mode border and no other switches")
        if len(pixdim) != 3 or not all(length > 0 for length in pixdim):
            raise ValueError(f"Spacing is understood with three lengths in mm, not {list(pixdim)}")
        d, h, w = pixdim
        self.spacing, self.order = (float(d), float(h), float(w)), ORDERS[_one(mode)]

    def scale_intensity_range(
        self,
        *,
        a_min: float,
        a_max: float,
        b_min: float | None = None,
        b_max: float | None = None,
        clip: bool = False,
    ) -> None:
        """A window."""
        if (b_min is None) != (b_max is None) or (b_min is None and clip):
            raise ValueError("ScaleIntensityRange needs both b_min and b_max")
        low, high = (0.0, 1.0) if b_min is None or b_max is None else (b_min, b_max)
        self._step(Window(low=a_min, high=a_max, out_low=low, out_high=high, clip=clip))

    def scale_intensity(
        self, *, minv: float = 0.0, maxv: float = 1.0, factor: None = None, channel_wise: bool = False
    ) -> None:
        """From least and greatest value."""
        if factor is not None or minv is None or maxv is None:
            raise ValueError("ScaleIntensity needs minv and maxv, and no factor")
        self._step(Percentile(lower=0, upper=100, out_low=minv, out_high=maxv, clip=False), joint=not channel_wise)

    def scale_intensity_range_percentiles(
        self,
        *,
        lower: float,
        upper: float,
        b_min: float,
        b_max: float,
        clip: bool = False,
        relative: bool = False,
        channel_wise: bool = False,
    ) -> None:
        """From two percentiles."""
        if relative:
            raise ValueError("relative percentiles have no counterpart")
        step = Percentile(lower=lower, upper=upper, out_low=b_min, out_high=b_max, clip=clip)
        self._step(step, joint=not channel_wise)

    def normalize_intensity(
        self,
        *,
        subtrahend: float | None = None,
        divisor: float | None = None,
        nonzero: bool = False,
        channel_wise: bool = False,
    ) -> None:
        """A z-score: fixed, of the volume, or of what is not zero."""
        if (subtrahend is None) != (divisor is None):
            raise ValueError("NormalizeIntensity needs both subtrahend and divisor, or neither")
        if subtrahend is not None and divisor is not None:
            if nonzero:
                raise ValueError("NormalizeIntensity with fixed figures must not be nonzero")
            self._step(ZScore(mean=_number(subtrahend), sd=_number(divisor)))
            return
        if nonzero:
            self.mask_threshold = self._least_of_a_window()
        self._step(ZScore(scope="mask" if nonzero else "volume"), joint=not channel_wise)

    def sliding_window(
        self,
        *,
        roi_size: Sequence[int],
        sw_batch_size: int = 1,
        overlap: float | Sequence[float] = 0.25,
        mode: str = "constant",
        sigma_scale: float = 0.125,
        padding_mode: str = "constant",
        cval: float = 0.0,
        with_coord: bool = False,
    ) -> None:
        """Placement and weights of MONAI's SlidingWindowInferer."""
        if with_coord or _one(sigma_scale) != 0.125:
            raise ValueError("sigma_scale must be 0.125 and with_coord false")
        self.windows = {
            "size": tuple(roi_size),
            "overlap": _one(overlap),
            "weights": {"gaussian": "monai", "constant": "constant"}[mode],
            "padding": PADDING[padding_mode],
            "padding_value": cval,
        }

    def activations(self, *, softmax: bool = False, sigmoid: bool = False, other: None = None) -> None:
        """Softmax before the way back."""
        if sigmoid or other is not None or self.decided:
            raise ValueError("only softmax can be expressed: regions have no order in a bundle")
        self.activated = softmax

    def as_discrete(
        self, *, argmax: bool = False, to_onehot: None = None, threshold: None = None, rounding: None = None
    ) -> None:
        """Argmax."""
        if not argmax or (to_onehot, threshold, rounding) != (None, None, None):
            raise ValueError("AsDiscrete must be an argmax and nothing else")
        self.decided = True

    def invert(self, *, nearest_interp: bool = True) -> None:
        """The way back; what stands before it decides what is resampled."""
        if self.decided and not nearest_interp:
            raise ValueError("labels must be inverted with nearest_interp")
        if nearest_interp and not self.decided:
            raise ValueError("logits must be inverted without nearest_interp")
        self.way_back = "labels" if self.decided else "probabilities" if self.activated else "logits"

    def keep_largest(
        self,
        *,
        applied_labels: int | Sequence[int] | None = None,
        is_onehot: bool | None = None,
        independent: bool = True,
        connectivity: int | None = None,
        num_components: int = 1,
    ) -> None:
        """On labels, on the grid on which our pipeline cleans them."""
        late = self.way_back == "labels"
        if is_onehot or not independent or connectivity not in (None, 3) or num_components != 1 or late:
            raise ValueError(
                "the largest component is kept of labels, each for itself, 26 neighbours, on their own grid"
            )
        if not self.decided:
            raise ValueError("KeepLargestConnectedComponent must follow AsDiscrete")
        self.largest = () if applied_labels is None else tuple(np.atleast_1d(applied_labels).tolist())

    def _least_of_a_window(self) -> float:
        """The image's own value that becomes 0, everything below it, too.

        MONAI's mask is what is not 0, ours what lies above a value: the same only where nothing can be negative.
        """
        if len(self.steps) == 1 and isinstance(window := self.steps[0], Window):
            rises = window.out_low == 0 < window.out_high
            if window.clip and rises:
                return window.low
        raise ValueError(
            "nonzero leaves out 0 but keeps what is negative, which cannot be expressed; only after one "
            "ScaleIntensityRange from 0 upwards with clip nothing is negative"
        )

    def _step(self, step: IntensityStep, *, joint: bool = False) -> None:
        if any(getattr(earlier, "scope", "") == "mask" for earlier in self.steps):
            raise ValueError("nonzero must be asked in the last intensity rule")
        self.steps.append(step)
        self.stages.add("after" if self.spacing else "before")
        self.joint |= joint


Handler = Callable[..., None]

BEFORE: Final[dict[str, Handler]] = {
    "LoadImage": Rules.load_image,
    "EnsureChannelFirst": Rules.ensure_channel_first,
    "EnsureType": Rules.ensure_type,
    "CastToType": Rules.cast_to_type,
    "Orientation": Rules.orientation_,
    "Spacing": Rules.spacing_,
    "ScaleIntensityRange": Rules.scale_intensity_range,
    "ScaleIntensity": Rules.scale_intensity,
    "ScaleIntensityRangePercentiles": Rules.scale_intensity_range_percentiles,
    "NormalizeIntensity": Rules.normalize_intensity,
}
AFTER: Final[dict[str, Handler]] = {
    "Activations": Rules.activations,
    "AsDiscrete": Rules.as_discrete,
    "Invert": Rules.invert,
    "KeepLargestConnectedComponent": Rules.keep_largest,
    "EnsureType": Rules.ensure_type,
}
"""What is understood before and after the network. SaveImage is left out: the comparison writes nothing."""


def _one(given: Any) -> Any:
    """The value that all of a list share, where it is a list."""
    if not isinstance(given, list | tuple):
        return given
    if len(set(given)) != 1:
        raise ValueError(f"{given} differ from axis to axis")
    return given[0]


def _number(given: Any) -> float:
    return float(_one(given))
