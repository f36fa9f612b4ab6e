"""A MONAI Bundle as one of our models: its configuration is read as data and its weights as tensors; nothing in it runs.

A closed list of networks and transforms is understood. What ``configs/inference.json`` computes by ``$`` expressions is
refused wherever we would have to know its value.
"""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from hilum_export.imported import Foreign, ImportRefusedError, Judge, first_line, inside, plain_name, split, unique
from hilum_inference.head import Labels
from hilum_inference.manifest import (
    Channel,
    Geometry,
    Intensity,
    IntensityStep,
    Label,
    Manifest,
    Percentile,
    PostProcessing,
    Provenance,
    Window,
    Windows,
    ZScore,
)

INFERENCE, METADATA = "configs/inference.json", "configs/metadata.json"
WEIGHTS: Final = ("models/model.safetensors", "models/model.pt")
NETWORKS: Final = (
    "AttentionUnet",
    "BasicUNet",
    "BasicUNetPlusPlus",
    "DynUNet",
    "HighResNet",
    "SegResNet",
    "SegResNetDS",
    "SegResNetVAE",
    "SwinUNETR",
    "UNet",
    "UNETR",
    "VNet",
)
"""Of ``monai.networks.nets``: those that segment volumes and are built from plain numbers and names."""
ORDERS: Final[dict[str, int]] = {"nearest": 0, "bilinear": 1}
PADDING: Final = {"constant": "constant", "replicate": "edge", "reflect": "reflect"}
_IGNORED_OF_INFERER: Final = (
    "device", "sw_device", "progress", "cache_roi_weight_map", "cpu_thresh", "buffer_steps", "buffer_dim"
)  # fmt: skip
_NEUTRAL_OF_DICTIONARY: Final = ("keys", "allow_missing_keys", "_desc_")
_NEUTRAL_OF_INVERT: Final = ("orig_keys", "meta_keys", "orig_meta_keys", "meta_key_postfix", "to_tensor", "device")


def is_bundle(folder: Path) -> bool:
    """Whether a folder is laid out as a MONAI Bundle."""
    return (folder / "configs").is_dir()


def read_bundle(folder: Path, name: str | None = None) -> Foreign:
    """The model in a bundle, ready to be compared.

    Args:
        folder: holds configs/inference.json, configs/metadata.json, and models/model.safetensors or models/model.pt.
        name: of our model; default: that of the bundle.

    Raises:
        ImportRefusedError: something is missing or cannot be expressed; the message says what.
    """
    config, metadata = _json(folder, INFERENCE), _json(folder, METADATA)
    try:
        rules = _rules(config)
        manifest = _manifest(rules, metadata, name or str(metadata.get("name") or folder.resolve().name))
    except (KeyError, TypeError, ValueError) as error:
        missing = f"{error} is missing" if isinstance(error, KeyError) else first_line(error)
        raise ImportRefusedError(f"The configuration of {folder.name} cannot be read: {missing}.") from error
    kind, network = _network(_plain(config, "network_def"))
    _load(network, folder)
    whole = copy.deepcopy(network)
    parts = split(network, len(manifest.channels), manifest.windows.size)
    if parts.head.out_channels != manifest.classes:
        raise ImportRefusedError(
            f"The network answers {parts.head.out_channels} channels, {METADATA} names {manifest.classes}."
        )
    origin = {
        "from": "MONAI",
        "version": version("monai"),
        "network": kind,
        "bundle": str(metadata.get("name") or folder.resolve().name),
        "bundle_version": str(metadata.get("version", "")),
        "made_with": str(metadata.get("monai_version", "")),
    }
    judge = Judge("MONAI", lambda images: _answer(rules, whole, images))
    return Foreign(parts, manifest, origin, (judge,))


@dataclass
class _Rules:
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
    windows: dict[str, Any] = field(default_factory=dict)
    activated: bool = False
    decided: bool = False
    way_back: str = ""
    largest: tuple[int, ...] | None = None
    before: list[dict[str, Any]] = field(default_factory=list)
    after: list[dict[str, Any]] = field(default_factory=list)
    inferer: dict[str, Any] = field(default_factory=dict)

    # Each method below is one of MONAI's transforms; its arguments are those that can be expressed, with MONAI's defaults.

    def load_image(
        self, *, reader: str | None = None, image_only: bool = True, ensure_channel_first: bool = False
    ) -> None:
        if reader not in (None, "NibabelReader", "ITKReader"):
            raise ValueError(f"reader {reader!r} is not known")

    def ensure_channel_first(self, *, channel_dim: None = None, strict_check: bool = True) -> None:
        if channel_dim not in (None, "no_channel"):
            raise ValueError("channel_dim must be left to the file")

    def ensure_type(self, *, data_type: str = "tensor", track_meta: bool | None = None) -> None:
        if data_type != "tensor":
            raise ValueError("data_type must be tensor")

    def cast_to_type(self, *, dtype: str = "float32") -> None:
        if dtype not in ("float32", "torch.float32"):
            raise ValueError("dtype must be float32")

    def orientation_(self, *, axcodes: str, labels: Any = None, lazy: bool = False) -> None:
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
        if _one(align_corners) or diagonal or scale_extent or _one(padding_mode) != "border" or self.spacing:
            raise ValueError("Spacing is understood once, with padding_mode border and no other switches")
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
        if (b_min is None) != (b_max is None) or (b_min is None and clip):
            raise ValueError("ScaleIntensityRange needs both b_min and b_max")
        low, high = (0.0, 1.0) if b_min is None or b_max is None else (b_min, b_max)
        self._step(Window(low=a_min, high=a_max, out_low=low, out_high=high, clip=clip))

    def scale_intensity(
        self, *, minv: float = 0.0, maxv: float = 1.0, factor: None = None, channel_wise: bool = False
    ) -> None:
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
        if (subtrahend is None) != (divisor is None):
            raise ValueError("NormalizeIntensity needs both subtrahend and divisor, or neither")
        if subtrahend is not None and divisor is not None:
            if nonzero:
                raise ValueError("NormalizeIntensity with fixed figures must not be nonzero")
            self._step(ZScore(mean=_number(subtrahend), sd=_number(divisor)))
            return
        if nonzero and self.steps:
            raise ValueError("nonzero must be asked of the image's own values, before other steps")
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
        if sigmoid or other is not None or self.decided:
            raise ValueError("only softmax can be expressed: regions have no order in a bundle")
        self.activated = softmax

    def as_discrete(
        self, *, argmax: bool = False, to_onehot: None = None, threshold: None = None, rounding: None = None
    ) -> None:
        if not argmax or (to_onehot, threshold, rounding) != (None, None, None):
            raise ValueError("AsDiscrete must be an argmax and nothing else")
        self.decided = True

    def invert(self, *, nearest_interp: bool = True) -> None:
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
        late = self.way_back == "labels"
        if is_onehot or not independent or connectivity not in (None, 3) or num_components != 1 or late:
            raise ValueError("the largest component is kept of labels, each for itself, 26 neighbours, on their own grid")
        if not self.decided:
            raise ValueError("KeepLargestConnectedComponent must follow AsDiscrete")
        self.largest = () if applied_labels is None else tuple(np.atleast_1d(applied_labels).tolist())

    def nothing(self) -> None:
        """A transform that changes no voxel."""

    def _step(self, step: IntensityStep, *, joint: bool = False) -> None:
        self.steps.append(step)
        self.stages.add("after" if self.spacing else "before")
        self.joint |= joint


Handler = Callable[..., None]

BEFORE: Final[dict[str, Handler]] = {
    "LoadImage": _Rules.load_image,
    "EnsureChannelFirst": _Rules.ensure_channel_first,
    "EnsureType": _Rules.ensure_type,
    "CastToType": _Rules.cast_to_type,
    "Orientation": _Rules.orientation_,
    "Spacing": _Rules.spacing_,
    "ScaleIntensityRange": _Rules.scale_intensity_range,
    "ScaleIntensity": _Rules.scale_intensity,
    "ScaleIntensityRangePercentiles": _Rules.scale_intensity_range_percentiles,
    "NormalizeIntensity": _Rules.normalize_intensity,
}
AFTER: Final[dict[str, Handler]] = {
    "Activations": _Rules.activations,
    "AsDiscrete": _Rules.as_discrete,
    "Invert": _Rules.invert,
    "KeepLargestConnectedComponent": _Rules.keep_largest,
    "EnsureType": _Rules.ensure_type,
}
"""What is understood before and after the network. SaveImage is left out: the comparison writes nothing."""


def _rules(config: Mapping[str, Any]) -> _Rules:
    """The rules of a configuration, every transform read once."""
    rules = _Rules()
    for given in _transforms(config, "preprocessing"):
        name, arguments = _named(given, BEFORE)
        BEFORE[name](rules, **_without(arguments, _NEUTRAL_OF_DICTIONARY))
        rules.before.append({"_target_": f"monai.transforms.{name}d", **arguments, "keys": "image"})
    inferer = _without(_plain(config, "inferer", _IGNORED_OF_INFERER), ("_desc_",))
    if inferer.pop("_target_", None) not in ("SlidingWindowInferer", "monai.inferers.SlidingWindowInferer"):
        raise ImportRefusedError("The inferer must be a SlidingWindowInferer.")
    rules.sliding_window(**inferer)
    rules.inferer = inferer
    for given in _transforms(config, "postprocessing"):
        if _short(given) == "SaveImage":
            continue
        name, arguments = _named(given, AFTER)
        unused = (*_NEUTRAL_OF_DICTIONARY, *(_NEUTRAL_OF_INVERT if name == "Invert" else ()))
        AFTER[name](rules, **_without(arguments, unused))
        extra = {"transform": "@preprocessing", "orig_keys": "image"} if name == "Invert" else {}
        kept = _without(arguments, (*_NEUTRAL_OF_DICTIONARY, *_NEUTRAL_OF_INVERT))
        rules.after.append({"_target_": f"monai.transforms.{name}d", **kept, "keys": "pred", **extra})
    return rules


def _manifest(rules: _Rules, metadata: Mapping[str, Any], name: str) -> Manifest:
    image, pred = (metadata["network_data_format"][side][key] for side, key in (("inputs", "image"), ("outputs", "pred")))
    channels, labels = _channels(image), _labels(pred)
    if not rules.decided or not rules.way_back:
        raise ImportRefusedError("The postprocessing must hold AsDiscrete with argmax, and Invert back to the input's grid.")
    if len(rules.stages) > 1:
        raise ImportRefusedError("The intensities are changed before and after Spacing; only one of both can be expressed.")
    if rules.joint and len(channels) > 1:
        raise ImportRefusedError("An intensity rule takes its figures from all channels together; set channel_wise.")
    kept = [label.name for label in labels if rules.largest == () or (rules.largest and label.id in rules.largest)]
    masked = any(getattr(step, "scope", "") == "mask" for step in rules.steps)
    return Manifest.model_validate(
        {
            "name": plain_name(name),
            "title": str(metadata.get("name") or ""),
            "description": str(metadata.get("description") or ""),
            "channels": channels,
            "labels": labels,
            "geometry": Geometry.model_validate(
                {"orientation": rules.orientation, "spacing": rules.spacing, "order": rules.order}
            ),
            "intensity": Intensity(
                steps=(tuple(rules.steps),),
                stage="before-resampling" if rules.stages == {"before"} and rules.spacing else "after-resampling",
                outside=0.0 if masked else None,
            ),
            "windows": Windows.model_validate({**rules.windows, "placement": "monai"}),
            "way_back": rules.way_back,
            "post_processing": PostProcessing(largest_component=tuple(kept)),
            "provenance": Provenance(
                data=str(metadata.get("data_source") or ""), licence=str(metadata.get("copyright") or "")
            ),
        }
    )


def _channels(image: Mapping[str, Any]) -> tuple[Channel, ...]:
    count = int(image["num_channels"])
    defined = image.get("channel_def") or {}
    names = unique([str(defined.get(str(n)) or f"channel-{n}") for n in range(count)])
    modality = str(image.get("modality") or "")
    return tuple(Channel(name=name, modality=modality) for name in names)


def _labels(pred: Mapping[str, Any]) -> tuple[Label, ...]:
    defined = pred["channel_def"]
    ids = sorted(int(key) for key in defined)
    if ids != list(range(len(ids))) or len(ids) < 2:
        raise ValueError("outputs.pred.channel_def must name channels 0, 1 and so on, 0 being the background")
    names = unique([str(defined[str(i)]) for i in ids[1:]])
    return tuple(Label(name=name, id=i) for i, name in zip(ids[1:], names, strict=True))


def _network(given: Mapping[str, Any]) -> tuple[str, nn.Module]:
    """Name and network of a definition that names one of NETWORKS and plain arguments."""
    target = str(given.get("_target_", ""))
    path, _, name = target.rpartition(".")
    if name not in NETWORKS or (path != "" and path != "monai.networks.nets" and not _module_of_nets(path)):
        raise ImportRefusedError(
            f"network_def names {target or 'nothing'}; one of {', '.join(NETWORKS)} of monai.networks.nets can be imported."
        )
    from monai.networks import nets

    arguments = _without(given, ("_target_", "_desc_"))
    if any(key.startswith("_") for key in arguments) or any(_targets(value) for value in arguments.values()):
        raise ImportRefusedError("network_def must hold plain numbers and names, no other object and no switch.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about arguments of another version, which nobody can act on here
            network = getattr(nets, name)(**arguments)
    except (TypeError, ValueError, KeyError, AssertionError, RuntimeError, NotImplementedError, ImportError) as error:
        raise ImportRefusedError(f"{name} cannot be built from network_def: {first_line(error)}") from error
    return name, network


def _module_of_nets(path: str) -> bool:
    """Whether it is a module right in monai.networks.nets: the class is taken from the package anyway."""
    parent, _, module = path.rpartition(".")
    return parent == "monai.networks.nets" and module.isidentifier()


def _load(network: nn.Module, folder: Path) -> None:
    """Put the weights in, read as tensors only."""
    there = [name for name in WEIGHTS if (folder / name).is_file()]
    if not there:
        hint = ""
        if (folder / "models" / "model.ts").is_file():
            hint = " TorchScript is code and is not read."
        raise ImportRefusedError(f"{folder.name} has neither {WEIGHTS[0]} nor {WEIGHTS[1]}.{hint}")
    path = inside(folder, there[0])
    state = _tensors(path, there[0])
    for key in ("state_dict", "model", "network", "net"):
        if isinstance(state.get(key), Mapping):
            state = state[key]
            break
    plain = {name.removeprefix("module."): value for name, value in state.items()}
    try:
        network.load_state_dict(plain)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ImportRefusedError(
            f"The weights in {there[0]} do not fit network_def: {' '.join(str(error).split())[:300]}"
        ) from error
    network.eval()


def _tensors(path: Path, name: str) -> Mapping[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise ImportRefusedError(f"{name} holds more than tensors, or is damaged; it was not loaded.") from error
    if not isinstance(found, Mapping):
        raise ImportRefusedError(f"{name} holds no named tensors.")
    return found


def _answer(rules: _Rules, network: nn.Module, images: Sequence[Path]) -> Labels:
    """MONAI's own mask: the bundle's transforms and inferer, as MONAI builds them, around its network."""
    from monai.bundle import ConfigParser
    from monai.inferers import SlidingWindowInferer

    compose = "monai.transforms.Compose"
    parser = ConfigParser(
        {
            "preprocessing": {"_target_": compose, "transforms": rules.before},
            "postprocessing": {"_target_": compose, "transforms": rules.after},
        }
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, after = parser.get_parsed_content("preprocessing"), parser.get_parsed_content("postprocessing")
        files = [str(path) for path in images]
        try:
            data = before({"image": files if len(files) > 1 else files[0]})
            with torch.inference_mode():
                data["pred"] = SlidingWindowInferer(**rules.inferer)(data["image"][None], network)[0]
            mask = after(data)["pred"]
        except (RuntimeError, ValueError, OSError, KeyError, IndexError) as error:
            raise ImportRefusedError(f"MONAI cannot segment this case: {first_line(error)}") from error
    return np.asarray(mask[0].cpu().numpy()).astype(np.uint16)


def _transforms(config: Mapping[str, Any], key: str) -> Iterator[dict[str, Any]]:
    """The transforms of a Compose, as plain data."""
    given = _plain(config, key, ("transform", "device", "output_dir"))
    if _short(given) != "Compose":
        raise ImportRefusedError(f"{key} must be a Compose of transforms.")
    for entry in given["transforms"]:
        if not isinstance(entry, dict) or "_target_" not in entry:
            raise ImportRefusedError(f"{key} must list transforms.")
        if not entry.pop("_disabled_", False):
            yield entry


def _named(given: Mapping[str, Any], known: Mapping[str, Handler]) -> tuple[str, dict[str, Any]]:
    name = _short(given)
    if name not in known:
        raise ImportRefusedError(f"The transform {given['_target_']} cannot be expressed; known are {', '.join(known)}.")
    return name, _without(given, ("_target_", "_desc_"))


def _short(given: Mapping[str, Any]) -> str:
    """The name of a transform without its package and without the suffix of dictionary transforms."""
    path, _, name = str(given.get("_target_", "")).rpartition(".")
    if path != "" and not path.startswith("monai.transforms"):
        return str(given["_target_"])
    for suffix in ("Dict", "d", "D"):
        if name.endswith(suffix) and name.removesuffix(suffix) in {*BEFORE, *AFTER, "SaveImage"}:
            return name.removesuffix(suffix)
    return name


def _plain(config: Mapping[str, Any], key: str, skip: Sequence[str] = ()) -> dict[str, Any]:
    """A part of the configuration with its references put in, and nothing in it that would have to be computed."""
    found = _resolved(config[key], config, skip, (key,))
    if not isinstance(found, dict):
        raise ImportRefusedError(f"{key} in {INFERENCE} must be an object with a _target_.")
    return found


def _resolved(node: Any, config: Mapping[str, Any], skip: Sequence[str], trail: tuple[str, ...]) -> Any:
    if isinstance(node, dict):
        return {k: _resolved(v, config, skip, trail) for k, v in node.items() if k not in skip}
    if isinstance(node, list):
        return [_resolved(value, config, skip, trail) for value in node]
    if not isinstance(node, str):
        return node
    if node.startswith(("$", "%")):
        raise ImportRefusedError(
            f"{trail[0]} in {INFERENCE} holds {node[:60]!r}, which would have to be computed; only plain values are read."
        )
    if not node.startswith("@"):
        return node
    path = node[1:]
    if path in trail:
        raise ImportRefusedError(f"{INFERENCE} refers to {node} in a circle.")
    found: Any = config
    for part in path.replace("#", "::").split("::"):
        try:
            found = found[int(part) if isinstance(found, list) else part]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ImportRefusedError(f"{INFERENCE} refers to {node}, which is not there.") from error
    return _resolved(found, config, skip, (*trail, path))


def _targets(value: Any) -> bool:
    """Whether an object to be built hides in plain data."""
    if isinstance(value, dict):
        return "_target_" in value or any(_targets(v) for v in value.values())
    return isinstance(value, list) and any(_targets(v) for v in value)


def _without(given: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if key not in keys}


def _one(given: Any) -> Any:
    """The value that all of a list share, where it is a list."""
    if not isinstance(given, list | tuple):
        return given
    if len(set(given)) != 1:
        raise ValueError(f"{given} differ from axis to axis")
    return given[0]


def _number(given: Any) -> float:
    return float(_one(given))


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads(inside(folder, name).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ImportRefusedError(f"{name} is no JSON: {first_line(error)}.") from error
    if not isinstance(found, dict):
        raise ImportRefusedError(f"{name} must be a JSON object.")
    return found
