"""A results folder of nnU-Net v2 as one of our models: plans, labels and the weights of its folds.

Only what the two lists of names below allow is built, and weights are read without running anything they hold; nnU-Net's
own predictor is asked for one mask to compare with.
"""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import json
import logging
import pickle
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from hilum_export.imported import Foreign, ImportRefusedError, Judge, first_line, inside, plain_name, split, unique
from hilum_inference.head import Labels
from hilum_inference.io import read_volume
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
from hilum_search.ensemble import ensemble

PLANS, DATASET = "plans.json", "dataset.json"
CHECKPOINTS: Final = ("checkpoint_final.pth", "checkpoint_best.pth")
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
INSTALL: Final = "pip install --no-deps nnunetv2, beside the packages that it names"

Resampling = tuple[int, int, bool | None]


def is_results(folder: Path) -> bool:
    """Whether a folder holds what nnU-Net leaves after a training."""
    return (folder / PLANS).is_file() or (folder / DATASET).is_file()


def read_results(folder: Path, name: str | None = None, folds: Sequence[str] = (), *, flips: bool = False) -> Foreign:
    """The model in a results folder, ready to be compared.

    Args:
        folder: holds plans.json, dataset.json and fold_0, fold_1 and so on.
        name: of our model; default: that of the data set.
        folds: their numbers, or ``all``; default: every one that is there.
        flips: whether windows are also seen mirrored, as nnU-Net does where nobody says otherwise.

    Raises:
        ImportRefusedError: something is missing or cannot be expressed; the message says what.
    """
    library = _library()
    plans, dataset = _json(folder, PLANS), _json(folder, DATASET)
    checkpoints = [_checkpoint(path) for path in _fold_files(folder, folds)]
    configuration = _shared(checkpoints, lambda c: c["init_args"]["configuration"], "configuration")
    trainer = _shared(checkpoints, lambda c: c["trainer_name"], "trainer")
    mirrored = _shared(checkpoints, lambda c: tuple(c.get("inference_allowed_mirroring_axes") or ()), "mirroring")
    try:
        read = _Read(plans, dataset, library.resolve(plans, configuration), configuration, mirrored if flips else ())
        manifest = read.manifest(name)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ImportRefusedError(f"{PLANS} or {DATASET} is not as nnU-Net writes it: {_why(error)}.") from error
    manifest = manifest.model_copy(update={"folds": len(checkpoints)})
    library.require_own_network(trainer)
    weights = [_weights(checkpoint) for checkpoint in checkpoints]
    networks = [read.network(manifest.classes, state) for state in weights]
    whole = copy.deepcopy(networks[0])
    parts = [split(_lean(network), len(manifest.channels), manifest.windows.size) for network in networks]
    origin = {
        "from": "nnU-Net",
        "version": version("nnunetv2"),
        "network": NETWORKS[read.architecture["network_class_name"]],
        "dataset": str(plans.get("dataset_name", "")),
        "plans": str(plans.get("plans_name", "")),
        "configuration": configuration,
        "trainer": trainer,
        "epochs": [int(checkpoint.get("current_epoch", 0)) for checkpoint in checkpoints],
        "folds": len(checkpoints),
        "flips": flips,
    }
    judges = library.judges(whole, weights, read)
    return Foreign(ensemble(parts) if len(parts) > 1 else parts[0], manifest, origin, judges)


@dataclass(frozen=True)
class _Read:
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
        found: Mapping[str, Any] = self.rules["architecture"]
        return found

    @property
    def channels(self) -> tuple[str, ...]:
        names = self.dataset.get("channel_names") or self.dataset["modality"]
        return tuple(str(names[key]) for key in sorted(names, key=int))

    def manifest(self, name: str | None) -> Manifest:
        """The rules in our vocabulary."""
        self._require_known()
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

        arguments = dict(self.architecture["arch_kwargs"])
        for key in self.architecture["_kw_requires_import"]:
            arguments[key] = None if arguments[key] is None else OPERATIONS[arguments[key]]
        build = getattr(unet, NETWORKS[self.architecture["network_class_name"]])
        try:
            network = build(
                input_channels=len(self.channels), num_classes=classes, **(arguments | {"deep_supervision": False})
            )
            network.load_state_dict(state)
        except (RuntimeError, TypeError, ValueError, AssertionError, AttributeError) as error:
            raise ImportRefusedError(
                f"The weights do not fit the network of {PLANS} with {classes} outputs: {first_line(error)}"
            ) from error
        return network.eval()  # type: ignore[no-any-return]

    def _require_known(self) -> None:
        """Refuse what nnU-Net would import by name, or do in a way that the manifest has no word for."""
        rules = self.rules
        if rules.get("previous_stage") or "cascade" in self.configuration:
            raise ImportRefusedError(
                f"{self.configuration} is the second stage of a cascade, which needs another model's mask as its input; "
                "import 3d_fullres or 3d_lowres instead."
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
                    f"{DATASET} has {len(values)} regions, its regions_class_order {list(order)} must name one value for "
                    "each, no two the same."
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
        uses_mask = any(getattr(step, "scope", "") == "mask" for channel in steps for step in channel)
        return Intensity(
            steps=tuple(steps),
            stage="before-resampling",
            mask_threshold=0.0,
            outside=0.0 if uses_mask else None,
        )


def _steps(scheme: str, masked: bool, figures: Mapping[str, float] | None) -> tuple[Any, ...]:
    """The steps of one channel."""
    if scheme == "ZScoreNormalization":
        return (ZScore(scope="mask" if masked else "volume"),)
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


def _lean(network: nn.Module) -> nn.Module:
    """The network without what only its training needs: the other outputs, and the decoder's hold on the encoder."""
    decoder: Any = network.get_submodule("decoder")
    unused = len(decoder.seg_layers) - 1
    decoder.seg_layers = nn.ModuleList([*(nn.Identity() for _ in range(unused)), decoder.seg_layers[-1]])
    del decoder.encoder
    return network


def _fold_files(folder: Path, folds: Sequence[str]) -> list[Path]:
    """The checkpoint of each fold."""
    names = [f"fold_{fold}" for fold in folds]
    if not names:
        names = sorted(path.name for path in folder.glob("fold_*") if path.is_dir() and path.name != "fold_all")
        names = names or ["fold_all"]
    found = []
    for name in names:
        there = [file for file in CHECKPOINTS if (folder / name / file).is_file()]
        if not there:
            raise ImportRefusedError(
                f"{folder.name} has no {name}/{CHECKPOINTS[0]}, nor {CHECKPOINTS[1]}; choose the folds that are there."
            )
        found.append(inside(folder, f"{name}/{there[0]}"))
    return found


def _checkpoint(path: Path) -> dict[str, Any]:
    """What nnU-Net saved, read as tensors, plain data and numpy's numbers; nothing else is let in."""
    try:
        with torch.serialization.safe_globals(_numbers()):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError, AttributeError) as error:
        raise ImportRefusedError(
            f"{path.parent.name}/{path.name} holds more than tensors and numbers, or is damaged; it was not loaded."
        ) from error
    wanted = ("network_weights", "init_args", "trainer_name")
    if not isinstance(found, dict) or any(key not in found for key in wanted):
        raise ImportRefusedError(f"{path.parent.name}/{path.name} is no checkpoint of nnU-Net v2.")
    return found


def _numbers() -> list[Any]:
    """What a pickled number of numpy names, by numpy's old names and its new ones."""
    from numpy._core.multiarray import scalar

    kinds = [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?")]
    return [np.dtype, *kinds, scalar, (scalar, "numpy.core.multiarray.scalar")]


def _weights(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The weights by their plain names, also where the training ran on several GPUs or was compiled."""
    return {
        key.removeprefix("module.").removeprefix("_orig_mod."): value
        for key, value in checkpoint["network_weights"].items()
    }


def _shared(checkpoints: Sequence[dict[str, Any]], read: Any, what: str) -> Any:
    """What all folds must have in common."""
    try:
        found = {read(checkpoint) for checkpoint in checkpoints}
    except (KeyError, TypeError) as error:
        raise ImportRefusedError(f"A checkpoint does not tell its {what}; it is none of nnU-Net v2.") from error
    if len(found) != 1:
        raise ImportRefusedError(f"The folds differ in their {what}; they are no ensemble.")
    return found.pop()


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads(inside(folder, name).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ImportRefusedError(f"{name} in {folder.name} is no JSON: {first_line(error)}.") from error
    if not isinstance(found, dict):
        raise ImportRefusedError(f"{name} in {folder.name} is not as nnU-Net writes it.")
    return found


def _why(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else first_line(error)


def _library() -> _Library:
    try:
        with _quiet():
            from nnunetv2.inference import predict_from_raw_data  # noqa: F401
    except ImportError as error:
        raise ImportRefusedError(
            f"Importing from nnU-Net compares with nnU-Net's own predictor, which needs the package nnunetv2 ({INSTALL}); "
            f"{first_line(error)}."
        ) from error
    return _Library()


class _Library:
    """The few things that nnU-Net's own code is asked for."""

    def resolve(self, plans: Mapping[str, Any], configuration: str) -> Mapping[str, Any]:
        """The rules of one configuration, what it inherits put in."""
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        try:
            with _quiet():
                manager = PlansManager(copy.deepcopy(dict(plans))).get_configuration(configuration)
        except (RuntimeError, AssertionError) as error:
            raise ImportRefusedError(f"{PLANS} holds no configuration that can be used: {first_line(error)}") from error
        found: Mapping[str, Any] = manager.configuration
        return found

    def require_own_network(self, trainer: str) -> None:
        """Refuse a trainer of nnU-Net's that builds another network than the one of the plans.

        One that nnU-Net does not know passes: its weights must fit the network of the plans.
        """
        import nnunetv2
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
        from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

        place = Path(nnunetv2.__path__[0]) / "training" / "nnUNetTrainer"
        with _quiet():
            found = recursive_find_python_class(str(place), trainer, "nnunetv2.training.nnUNetTrainer")
        if found is not None and found.build_network_architecture is not nnUNetTrainer.build_network_architecture:
            raise ImportRefusedError(f"The trainer {trainer} builds a network of its own, which the plans do not tell.")

    def judges(self, network: nn.Module, weights: Sequence[Mapping[str, Any]], read: _Read) -> tuple[Judge, ...]:
        """nnU-Net's own predictor as it is, and with sums in float32.

        nnU-Net sums the windows in float16, which moves voxels whose two best classes are within a thousandth of each
        other: too many where a label has a few hundred voxels.
        """
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        def judge(name: str, predictor: type[Any]) -> Judge:
            return Judge(name, lambda images: _predicted(predictor, network, weights, read, images))

        return judge("nnU-Net", nnUNetPredictor), judge("nnU-Net, sums in float32", _in_float32(nnUNetPredictor))


def _predicted(
    kind: type[Any], network: nn.Module, weights: Sequence[Mapping[str, Any]], read: _Read, images: Sequence[Path]
) -> Labels:
    """The mask of nnU-Net's predictor, from files to a file."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    with _quiet(), tempfile.TemporaryDirectory() as folder:
        predictor = kind(
            tile_step_size=STEP,
            use_mirroring=bool(read.mirrored),
            perform_everything_on_device=False,
            device=torch.device("cpu"),
            allow_tqdm=False,
        )
        plans = PlansManager(copy.deepcopy(dict(read.plans)))
        rules = plans.get_configuration(read.configuration)
        # The mask is always written as NIfTI: the ending in the data set's description is not ours to trust.
        dataset = {**read.dataset, "file_ending": ".nii.gz"}
        predictor.manual_initialization(network, plans, rules, list(weights), dataset, "", read.mirrored or None)
        try:
            predictor.predict_from_files_sequential([[str(path) for path in images]], [f"{folder}/mask"])
        except (RuntimeError, ValueError, AssertionError, OSError, KeyError, IndexError) as error:
            raise ImportRefusedError(f"nnU-Net cannot segment this case: {first_line(error)}") from error
        return np.array(read_volume(Path(folder) / "mask.nii.gz").array[0]).astype(np.uint16)


def _in_float32(predictor: type[Any]) -> type[Any]:
    from nnunetv2.inference.sliding_window_prediction import compute_gaussian

    class Float32(predictor):  # type: ignore[misc]
        def _internal_predict_sliding_window_return_logits(
            self, data: torch.Tensor, slicers: Sequence[Any], do_on_device: bool = True
        ) -> torch.Tensor:
            size = tuple(self.configuration_manager.patch_size)
            bell = compute_gaussian(size, sigma_scale=1.0 / 8, value_scaling_factor=10, device=self.device).float()
            sums = torch.zeros((self.label_manager.num_segmentation_heads, *data.shape[1:]))
            total = torch.zeros(data.shape[1:])
            for place in slicers:
                sums[place] += self._internal_maybe_mirror_and_predict(data[place][None].contiguous())[0] * bell
                total[place[1:]] += bell
            return sums / total

    return Float32


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without nnU-Net's prints, and without its hints that a user of ours cannot act on."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = logging.root.level
        try:
            yield
        finally:
            logging.root.setLevel(level)
