"""A MONAI Bundle as one of our models: configuration is read as data, weights as tensors, and nothing in it runs.

A closed list of networks and transforms is understood. What ``configs/inference.json`` computes by ``$`` expressions is
refused wherever we would have to know its value.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from hilum_export.imported import (
    Foreign,
    ImportRefusedError,
    Judge,
    first_line,
    inside,
    plain_name,
    quiet,
    read_json,
    split,
    unique,
)
from hilum_export.monai_rules import AFTER, BEFORE, Handler, Rules
from hilum_inference.head import Labels
from hilum_inference.manifest import (
    Channel,
    Geometry,
    Intensity,
    Label,
    Manifest,
    PostProcessing,
    Provenance,
    Windows,
)

INFERENCE, METADATA = "configs/inference.json", "configs/metadata.json"
WEIGHTS: Final = ("models/model.safetensors", "models/model.pt")
NETWORKS: Final = (
    "AttentionUnet",
    "BasicUNet",
    "DynUNet",
    "HighResNet",
    "SegResNet",
    "SegResNetDS",
    "SwinUNETR",
    "UNet",
    "UNETR",
    "VNet",
)
"""Of ``monai.networks.nets``: those that segment volumes and are built from plain numbers and names."""
MOST_CHANNELS: Final = 256
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
    config, metadata = read_json(folder, INFERENCE), read_json(folder, METADATA)
    try:
        rules = _rules(config)
        manifest = _manifest(rules, metadata, name or str(metadata.get("name") or folder.resolve().name))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
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


def _rules(config: Mapping[str, Any]) -> Rules:
    """The rules of a configuration, every transform read once."""
    rules = Rules()
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


def _manifest(rules: Rules, metadata: Mapping[str, Any], name: str) -> Manifest:
    told = _object(metadata["network_data_format"], "network_data_format")
    image, pred = (
        _object(_object(told[side], side)[key], f"{side}.{key}")
        for side, key in (("inputs", "image"), ("outputs", "pred"))
    )
    channels, labels = _channels(image), _labels(pred)
    if not rules.decided or not rules.way_back:
        raise ImportRefusedError(
            "The postprocessing must hold AsDiscrete with argmax, and Invert back to the input's grid."
        )
    if len(rules.stages) > 1:
        raise ImportRefusedError(
            "The intensities are changed before and after Spacing; only one of both can be expressed."
        )
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
                mask_threshold=rules.mask_threshold,
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
    if not 1 <= count <= MOST_CHANNELS:
        raise ValueError(f"inputs.image.num_channels must be 1 to {MOST_CHANNELS}")
    defined = _object(image.get("channel_def") or {}, "inputs.image.channel_def")
    names = unique([str(defined.get(str(n)) or f"channel-{n}") for n in range(count)])
    modality = str(image.get("modality") or "")
    return tuple(Channel(name=name, modality=modality) for name in names)


def _labels(pred: Mapping[str, Any]) -> tuple[Label, ...]:
    defined = _object(pred["channel_def"], "outputs.pred.channel_def")
    ids = sorted(int(key) for key in defined)
    if ids != list(range(len(ids))) or len(ids) < 2:
        raise ValueError("outputs.pred.channel_def must name channels 0, 1 and so on, 0 being the background")
    names = unique([str(defined[str(i)]) for i in ids[1:]])
    return tuple(Label(name=name, id=i) for i, name in zip(ids[1:], names, strict=True))


def _object(given: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(given, dict):
        raise ValueError(f"{what} in {METADATA} must be a JSON object")
    return given


def _network(given: Mapping[str, Any]) -> tuple[str, nn.Module]:
    """Name and network of a definition that names one of NETWORKS and plain arguments."""
    target = str(given.get("_target_", ""))
    path, _, name = target.rpartition(".")
    if name not in NETWORKS or (path != "" and path != "monai.networks.nets" and not _module_of_nets(path)):
        raise ImportRefusedError(
            f"network_def names {target or 'nothing'}; of monai.networks.nets one can import {', '.join(NETWORKS)}."
        )
    from monai.networks import nets

    arguments = _without(given, ("_target_", "_desc_"))
    if any(key.startswith("_") for key in arguments) or any(_targets(value) for value in arguments.values()):
        raise ImportRefusedError("network_def must hold plain numbers and names, no other object and no switch.")
    try:
        with quiet("monai"):
            network = getattr(nets, name)(**arguments)
    except (
        TypeError,
        ValueError,
        LookupError,
        AttributeError,
        ArithmeticError,
        AssertionError,
        RuntimeError,
        MemoryError,
        ImportError,
    ) as error:
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
    except (
        pickle.UnpicklingError,
        SafetensorError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        AttributeError,
    ) as error:
        raise ImportRefusedError(f"{name} holds more than tensors, or is damaged; it was not loaded.") from error
    if not isinstance(found, Mapping):
        raise ImportRefusedError(f"{name} holds no named tensors.")
    return found


def _answer(rules: Rules, network: nn.Module, images: Sequence[Path]) -> Labels:
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
    with quiet("monai"):
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
        raise ImportRefusedError(
            f"The transform {given['_target_']} cannot be expressed; known are {', '.join(known)}."
        )
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
    if key not in config:
        raise ImportRefusedError(f"{INFERENCE} has no {key}.")
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
            f"{trail[0]} in {INFERENCE} holds {node[:60]!r}, which would have to be computed; only plain values are "
            "read."
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
