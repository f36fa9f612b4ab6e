"""nnU-Net's plans and data set description as our manifest and as a network.

Only what the lists of names below allow is built: plans name classes to import, and we import none by name.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch import nn

from hilum_export.imported import ImportRefusedError, first_line, plain_name, unique
from hilum_inference.manifest import (
    Channel,
    Clip,
    Crop,
    Geometry,
    Intensity,
    Label,
    Manifest,
    Percentile,
    Provenance,
    Window,
    Windows,
    ZScore,
)

PLANS, DATASET = "plans.json", "dataset.json"
NETWORKS: Final = {
    "dynamic_network_architectures.architectures.unet.PlainConvUNet": "PlainConvUNet",
    "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet": "ResidualEncoderUNet",
    "dynamic_network_architectures.architectures.residual_unet.ResidualEncoderUNet": "ResidualEncoderUNet",
}
"""The networks of nnU-Net's own planners, also under the name that older plans use."""
OPERATIONS: Final[dict[str, type[nn.Module]]] = {
    f"{module}.{layer.__name__}": layer
    for layer in (
        nn.Conv3d,
        nn.InstanceNorm3d,
        nn.BatchNorm3d,
        nn.Dropout3d,
        nn.LeakyReLU,
        nn.ReLU,
        nn.GELU,
        nn.ELU,
    )
    for module in ("torch.nn", layer.__module__)
}
READERS: Final = {"SimpleITKIO": "native", "NibabelIO": "native", "NibabelIOWithReorient": "RAS"}
"""How each of nnU-Net's readers turns the axes before it reverses their order."""
STEP: Final = 0.5
"""Share of a window by which nnU-Net moves on."""

Resampling = tuple[int, int, bool | None]


@dataclass(frozen=True)
class Plans:
    """Plans, resolved for one configuration, and the data set's description.

    Attributes:
        mirrored: axes along which windows are also seen mirrored.
    """

    plans: Mapping[str, Any]
    dataset: Mapping[str, Any]
    rules: Mapping[str, Any]
    configuration: str
    mirrored: tuple[int, ...]

    @property
    def architecture(self) -> Mapping[str, Any]:
        """Name and arguments of the network."""
        found: Mapping[str, Any] = self.rules["architecture"]
        return found

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the input channels, in order."""
        names = self.dataset.get("channel_names") or self.dataset["modality"]
        return tuple(str(names[key]) for key in sorted(names, key=int))

    def manifest(self, name: str | None) -> Manifest:
        """The rules in our vocabulary."""
        self.require_known()
        size, spacing = self.rules["patch_size"], self.rules["spacing"]
        labels, order = self._labels()
        return Manifest(
            name=plain_name(name or str(self.plans["dataset_name"])),
            title=str(self.dataset.get("name") or self.plans["dataset_name"]),
            description=str(self.dataset.get("description") or ""),
            channels=self._channels(),
            labels=labels,
            output="sigmoid-regions" if order else "softmax-argmax",
            region_order=order,
            geometry=self._geometry((float(spacing[0]), float(spacing[1]), float(spacing[2]))),
            crop=Crop(kind="non-zero", grid=1, margin_mm=0.0),
            intensity=self._intensity(),
            windows=Windows(
                size=(int(size[0]), int(size[1]), int(size[2])), overlap=1 - STEP, placement="nnunet", weights="nnunet"
            ),
            way_back="logits",
            flips=tuple(c for n in range(len(self.mirrored)) for c in itertools.combinations(self.mirrored, n + 1)),
            provenance=Provenance(
                data=str(self.dataset.get("reference") or ""), licence=str(self.dataset.get("licence") or "")
            ),
        )

    def network(self, classes: int, state: Mapping[str, Any]) -> nn.Module:
        """The network of the plans with the weights of one fold, in evaluation mode, deep supervision off."""
        from dynamic_network_architectures.architectures import unet

        try:
            arguments = dict(self.architecture["arch_kwargs"])
            for key in self.architecture["_kw_requires_import"]:
                arguments[key] = None if arguments[key] is None else OPERATIONS[arguments[key]]
            build = getattr(unet, NETWORKS[self.architecture["network_class_name"]])
            network = build(
                input_channels=len(self.channels), num_classes=classes, **(arguments | {"deep_supervision": False})
            )
            network.load_state_dict(state)
        except (RuntimeError, TypeError, ValueError, KeyError, AssertionError, AttributeError) as error:
            raise ImportRefusedError(
                f"The weights do not fit the network of {PLANS} with {classes} outputs: {first_line(error)}"
            ) from error
        return network.eval()  # type: ignore[no-any-return]

    def require_known(self) -> None:
        """Refuse what nnU-Net would import by name, or do in a way that the manifest has no word for."""
        rules = self.rules
        if rules.get("previous_stage") or "cascade" in self.configuration:
            raise ImportRefusedError(
                f"{self.configuration} is the second stage of a cascade and takes another model's mask; import "
                "3d_fullres or 3d_lowres instead."
            )
        if len(rules["patch_size"]) != 3:
            raise ImportRefusedError(f"{self.configuration} segments planes, not volumes; import a 3d configuration.")
        architecture = self.architecture
        _among("network", architecture["network_class_name"], NETWORKS)
        arguments = architecture["arch_kwargs"]
        for key in architecture["_kw_requires_import"]:
            if arguments[key] is not None:
                _among(f"{key} of the network", arguments[key], OPERATIONS)
        _among("reader", self.plans["image_reader_writer"], READERS)
        _among("preprocessor", rules["preprocessor_name"], ("DefaultPreprocessor",))
        _among("label manager", self.plans.get("label_manager", "LabelManager"), ("LabelManager",))
        for key in ("resampling_fn_data", "resampling_fn_probabilities"):
            _among(key, rules[key], ("resample_data_or_seg_to_shape",))

    def _channels(self) -> tuple[Channel, ...]:
        schemes = self.rules["normalization_schemes"]
        modalities = [
            "CT"
            if scheme == "CTNormalization" or name.upper() == "CT"
            else "MR"
            if scheme == "ZScoreNormalization"
            else ""
            for name, scheme in zip(self.channels, schemes, strict=True)
        ]
        names = unique(self.channels)
        return tuple(Channel(name=name, modality=m) for name, m in zip(names, modalities, strict=True))

    def _labels(self) -> tuple[tuple[Label, ...], tuple[int, ...]]:
        """The labels, and in which order regions are painted; no order where each label is a class."""
        given = {name: value for name, value in self.dataset["labels"].items() if name not in ("background", "ignore")}
        values = {name: tuple(value) if isinstance(value, list) else (value,) for name, value in given.items()}
        if any(len(value) > 1 for value in values.values()):
            order = tuple(int(value) for value in self.dataset["regions_class_order"])
            if len(order) != len(values) or len(set(order)) != len(order):
                raise ImportRefusedError(
                    f"{DATASET} has {len(values)} regions; its regions_class_order {list(order)} must name one value "
                    "for each, no two the same."
                )
            return tuple(Label(name=name, id=i) for name, i in zip(values, order, strict=True)), order
        ids = {name: int(value[0]) for name, value in values.items()}
        if sorted(ids.values()) != list(range(1, len(ids) + 1)):
            raise ImportRefusedError(
                f"The labels of {DATASET} must be 1, 2, 3 and so on; they are {sorted(ids.values())}."
            )
        return tuple(Label(name=name, id=i) for name, i in sorted(ids.items(), key=lambda item: item[1])), ()

    def _geometry(self, spacing: tuple[float, float, float]) -> Geometry:
        order, order_z, separate = _resampling(self.rules["resampling_fn_data_kwargs"])
        if _resampling(self.rules["resampling_fn_probabilities_kwargs"]) != (1, order_z, separate):
            raise ImportRefusedError(
                "The plans resample probabilities otherwise than linearly with the image's rule for the coarse axis."
            )
        forward = [int(axis) for axis in self.plans["transpose_forward"]]
        return Geometry.model_validate(
            {
                "orientation": READERS[self.plans["image_reader_writer"]],
                "axes": tuple(2 - axis for axis in forward),  # nnU-Net's arrays are (k, j, i)
                "spacing": spacing,
                "order": order,
                "order_z": order_z,
                "separate_z": {None: "auto", False: "never", True: "always"}[separate],
                "align": "edges",
            }
        )

    def _intensity(self) -> Intensity:
        schemes, masked = self.rules["normalization_schemes"], self.rules["use_mask_for_norm"]
        figures = self.plans.get("foreground_intensity_properties_per_channel") or {}
        steps = [
            _steps(scheme, bool(m), figures.get(str(n)))
            for n, (scheme, m) in enumerate(zip(schemes, masked, strict=True))
        ]
        return Intensity(
            steps=tuple(steps),
            stage="before-resampling",
        )


def _steps(scheme: str, masked: bool, figures: Mapping[str, float] | None) -> tuple[Any, ...]:
    """The steps of one channel."""
    if scheme == "ZScoreNormalization":
        return (ZScore(scope="filled" if masked else "volume"),)
    if scheme == "CTNormalization":
        if figures is None:
            raise ImportRefusedError(f"{PLANS} holds no intensities for a channel that CTNormalization needs them for.")
        low, high = float(figures["percentile_00_5"]), float(figures["percentile_99_5"])
        return (Clip(low=low, high=high), ZScore(mean=float(figures["mean"]), sd=max(float(figures["std"]), 1e-8)))
    if scheme == "RescaleTo01Normalization":
        return (Percentile(lower=0, upper=100, clip=False),)
    if scheme == "RGBTo01Normalization":
        return (Window(low=0, high=255, clip=False),)
    if scheme == "NoNormalization":
        return ()
    raise ImportRefusedError(f"The normalisation {scheme!r} is none of nnU-Net's own.")


def _resampling(given: Mapping[str, Any]) -> Resampling:
    """(order, order along the coarse axis, whether that axis is apart) of one of nnU-Net's resamplings."""
    if given.get("is_seg"):
        raise ImportRefusedError("The plans resample the image as if it were a mask.")
    separate = given.get("force_separate_z", False)
    if separate not in (None, True, False):
        raise ImportRefusedError(f"force_separate_z is {separate!r}; it must be true, false or null.")
    return int(given.get("order", 3)), int(given.get("order_z", 0)), separate


def _among(what: str, name: object, known: Sequence[str] | Mapping[str, Any]) -> None:
    if name not in known:
        raise ImportRefusedError(f"The {what} {name!r} is none that can be imported; known are {', '.join(known)}.")
