"""A results folder of nnU-Net v2 as one of our models: plans, labels and the weights of its folds.

Weights are read without running anything that they hold; nnU-Net's own predictor is asked for one mask to compare with.
"""

from __future__ import annotations

import copy
import importlib
import pickle
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from hilum_export.imported import Foreign, ImportRefusedError, Judge, first_line, inside, quiet, read_json, split
from hilum_export.nnunet_plans import DATASET, NETWORKS, PLANS, STEP, Plans
from hilum_inference.head import Labels
from hilum_inference.io import read_volume
from hilum_search.ensemble import ensemble

CHECKPOINTS: Final = ("checkpoint_final.pth", "checkpoint_best.pth")
INSTALL: Final = "pip install --no-deps nnunetv2, beside the packages that it names"


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
    plans, dataset = read_json(folder, PLANS), read_json(folder, DATASET)
    checkpoints = [_checkpoint(path) for path in _fold_files(folder, folds)]
    configuration = _shared(checkpoints, lambda c: c["init_args"]["configuration"], "configuration")
    trainer = _shared(checkpoints, lambda c: c["trainer_name"], "trainer")
    mirrored = _shared(checkpoints, lambda c: tuple(c.get("inference_allowed_mirroring_axes") or ()), "mirroring")
    if flips and not mirrored:
        raise ImportRefusedError(f"The trainer {trainer} did not mirror its windows; leave --flips out.")
    try:
        read = Plans(plans, dataset, library.resolve(plans, configuration), configuration, mirrored if flips else ())
        manifest = read.manifest(name)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
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
        "epochs": [_count(checkpoint.get("current_epoch")) for checkpoint in checkpoints],
        "folds": len(checkpoints),
        "flips": flips,
    }
    judges = library.judges(whole, weights, read)
    return Foreign(ensemble(parts) if len(parts) > 1 else parts[0], manifest, origin, judges)


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
        names = names or ["fold_all"] * (folder / "fold_all").is_dir()
        if not names:
            raise ImportRefusedError(f"{folder.name} has no folder of a fold, such as fold_0 or fold_all.")
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


def _count(given: object) -> int | None:
    return given if isinstance(given, int) else None


def _why(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else first_line(error)


def _library() -> _Library:
    try:
        with quiet():
            from nnunetv2.inference import predict_from_raw_data  # noqa: F401
    except ImportError as error:
        raise ImportRefusedError(
            f"Importing from nnU-Net compares with nnU-Net's own predictor and needs the package nnunetv2 ({INSTALL}): "
            f"{first_line(error)}."
        ) from error
    return _Library()


class _Library:
    """The few things that nnU-Net's own code is asked for."""

    def resolve(self, plans: Mapping[str, Any], configuration: str) -> Mapping[str, Any]:
        """The rules of one configuration, what it inherits put in."""
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        try:
            with quiet():
                manager = PlansManager(copy.deepcopy(dict(plans))).get_configuration(configuration)
        except (RuntimeError, AssertionError) as error:
            raise ImportRefusedError(f"{PLANS} holds no configuration that can be used: {first_line(error)}") from error
        found: Mapping[str, Any] = manager.configuration
        return found

    def require_own_network(self, trainer: str) -> None:
        """Refuse a trainer of nnU-Net's that builds another network than the one of the plans.

        One that nnU-Net does not know passes: its weights must fit the network of the plans.
        """
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

        found = _trainer(trainer)
        if found is not None and found.build_network_architecture is not nnUNetTrainer.build_network_architecture:
            raise ImportRefusedError(f"The trainer {trainer} builds a network of its own, which the plans do not tell.")

    def judges(self, network: nn.Module, weights: Sequence[Mapping[str, Any]], read: Plans) -> tuple[Judge, ...]:
        """nnU-Net's own predictor as it is, and with sums in float32.

        nnU-Net sums the windows in float16, which moves voxels whose two best classes are within a thousandth of each
        other: too many where a label has a few hundred voxels.
        """
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        def judge(name: str, predictor: type[Any]) -> Judge:
            return Judge(name, lambda images: _predicted(predictor, network, weights, read, images))

        return judge("nnU-Net", nnUNetPredictor), judge("nnU-Net, sums in float32", _in_float32(nnUNetPredictor))


def _predicted(
    kind: type[Any], network: nn.Module, weights: Sequence[Mapping[str, Any]], read: Plans, images: Sequence[Path]
) -> Labels:
    """The mask of nnU-Net's predictor, from files to a file."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    with quiet(), tempfile.TemporaryDirectory() as folder:
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


def _trainer(name: str) -> Any:
    """A trainer of nnU-Net's own by its name; None where it has none of that name.

    Only the module that defines it is imported: some of the others need packages that nobody asked for.
    """
    import nnunetv2

    root = Path(nnunetv2.__path__[0])
    for path in sorted((root / "training" / "nnUNetTrainer").rglob("*.py")):
        if f"\nclass {name}(" in path.read_text(encoding="utf-8"):
            module = ".".join(path.relative_to(root.parent).with_suffix("").parts)
            try:
                with quiet():
                    return getattr(importlib.import_module(module), name)
            except ImportError as error:
                raise ImportRefusedError(f"The trainer {name} needs a package: {first_line(error)}.") from error
    return None


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
