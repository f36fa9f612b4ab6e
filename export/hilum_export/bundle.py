"""A trained model as a MONAI Bundle, for those who run MONAI and not Hilum.

The network travels as TorchScript: weights and graph in one file that MONAI and what is built on it load as they are;
nothing of Hilum is needed to run it, and nothing is pickled.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from hilum_export.errors import ExportError, GateError
from hilum_export.gates import BOUNDS, Gate, difference
from hilum_export.noise import noise
from hilum_inference.manifest import Clip, Manifest, Percentile, Window, ZScore
from hilum_search.card import card
from hilum_search.network import Network
from hilum_search.trained import Trained

SCHEMA: Final = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
)
INFERENCE, METADATA, NETWORK = "configs/inference.json", "configs/metadata.json", "models/model.ts"
LIBRARIES: Final = {"nibabel": "nibabel", "pytorch-ignite": "pytorch-ignite", "scikit-image": "scikit-image"}
"""What MONAI needs beside itself to read and write NIfTI, to run an evaluator, and to keep the largest component."""
MODES: Final = {0: "nearest", 1: "bilinear"}
PADDING: Final = {"constant": "constant", "edge": "replicate", "reflect": "reflect"}
Transform = dict[str, Any]


def write_bundle(trained: Trained, manifest: Manifest, folder: Path) -> Path:
    """Write the bundle; all of it appears at once, or nothing.

    Args:
        trained: the network and the record of its training.
        manifest: of the model.
        folder: must not be there yet.

    Raises:
        ExportError: the folder is there, or MONAI's transforms cannot do what the manifest says.
        GateError: the TorchScript does not compute what the network computes.
    """
    if folder.exists():
        raise ExportError(f"{folder} is there already; name a folder that is not.")
    inference = json.dumps(inference_config(manifest), indent=2)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as place:
        built = Path(place) / "bundle"
        for part in ("configs", "docs", "models"):
            (built / part).mkdir(parents=True)
        write_torchscript(trained.network, manifest, built / NETWORK)
        (built / INFERENCE).write_text(inference + "\n", encoding="utf-8")
        (built / METADATA).write_text(json.dumps(metadata(manifest), indent=2) + "\n", encoding="utf-8")
        (built / "docs" / "README.md").write_text(_readme(trained, manifest), encoding="utf-8")
        licence = manifest.provenance.licence or "Who trained this model did not tell its licence."
        (built / "LICENSE").write_text(licence + "\n", encoding="utf-8")
        shutil.move(built, folder)
    return folder


def write_torchscript(network: Network, manifest: Manifest, path: Path) -> Gate:
    """Trace the network for windows of the manifest's size and any batch; the file must answer as the network.

    Raises:
        GateError: it does not.
    """
    channels, size = len(manifest.channels), manifest.windows.size
    windows = noise(channels, size)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # TorchScript is in maintenance, which nobody can act on here
        script: Any = torch.jit
        script.trace(network.eval(), torch.zeros(1, channels, *size), check_trace=False).save(str(path))
        loaded = script.load(str(path), map_location="cpu").eval()
        truth, answer = (run(torch.from_numpy(windows)).numpy() for run in (network, loaded))
    gate = Gate("TorchScript logits", difference(answer, truth, truth), BOUNDS["fp32"]["onnxruntime"])
    if not gate.passed:
        raise GateError(f"The TorchScript failed a check: {gate}; nothing was written.")
    return gate


def inference_config(manifest: Manifest) -> dict[str, Any]:
    """configs/inference.json: what the manifest says, in MONAI's transforms.

    Raises:
        ExportError: they cannot do it; the message says what.
    """
    _require(manifest)
    rule = manifest.windows
    one = len(manifest.channels) == 1
    cases = "sorted(glob.glob(os.path.join(@dataset_dir, '*')))"
    files = cases if one else f"[sorted(glob.glob(os.path.join(case, '*'))) for case in {cases}]"
    return {
        "imports": ["$import glob", "$import os"],
        "bundle_root": ".",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "dataset_dir": "$os.path.join(@bundle_root, 'data')",
        "output_dir": "$os.path.join(@bundle_root, 'eval')",
        "files": f"${files}",
        "network_def": f"$torch.jit.load(os.path.join(@bundle_root, '{NETWORK}'), map_location=@device).eval()",
        "preprocessing": {"_target_": "Compose", "transforms": list(_preprocessing(manifest))},
        "dataset": {"_target_": "Dataset", "data": "$[{'image': f} for f in @files]", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(rule.size),
            "sw_batch_size": rule.batch,
            "overlap": rule.overlap,
            "mode": {"monai": "gaussian", "constant": "constant"}[rule.weights],
            "padding_mode": PADDING[rule.padding],
            "cval": rule.padding_value,
        },
        "postprocessing": {"_target_": "Compose", "transforms": list(_postprocessing(manifest))},
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network_def",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
        "run": ["$@evaluator.run()"],
    }


def metadata(manifest: Manifest) -> dict[str, Any]:
    """configs/metadata.json, with all that MONAI's schema asks for."""
    size = list(manifest.windows.size)
    names = ["background", *(label.name for label in manifest.labels)]
    provenance = manifest.provenance
    shared = {"type": "image", "spatial_shape": size, "dtype": "float32", "is_patch_data": True}
    modality = manifest.channels[0].modality
    return {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": f"exported by Hilum {version('hilum')}"},
        "monai_version": version("monai").split("+")[0],
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {name: version(package) for name, package in LIBRARIES.items() if _there(package)},
        "name": manifest.title or manifest.name,
        "task": "segmentation",
        "description": manifest.description or manifest.title or manifest.name,
        "authors": "exported by Hilum",
        "copyright": provenance.licence,
        "data_source": provenance.data,
        "data_type": "nifti",
        "intended_use": manifest.intended_use,
        "network_data_format": {
            "inputs": {
                "image": {
                    **shared,
                    "format": "hounsfield" if modality == "CT" else "magnitude",
                    "modality": modality,
                    "num_channels": len(manifest.channels),
                    "value_range": [],
                    "channel_def": {str(n): channel.name for n, channel in enumerate(manifest.channels)},
                }
            },
            "outputs": {
                "pred": {
                    **shared,
                    "format": "segmentation",
                    "num_channels": manifest.classes,
                    "value_range": [],
                    "channel_def": {str(n): name for n, name in enumerate(names)},
                }
            },
        },
    }


def _require(manifest: Manifest) -> None:
    """Refuse what MONAI's transforms have no word for."""
    geometry, windows = manifest.geometry, manifest.windows
    masked = any(
        getattr(step, "scope", "") in ("mask", "filled") for steps in manifest.intensity.steps for step in steps
    )
    falling = any(
        isinstance(step, Window | Percentile) and step.clip and step.out_low > step.out_high
        for steps in manifest.intensity.steps
        for step in steps
    )
    resampled = geometry.spacing is not None
    reasons = {
        "its task is interactive": manifest.task != "segmentation" or bool(manifest.prompt_channels),
        "its regions are painted in an order": manifest.output != "softmax-argmax",
        f"the volume is cropped first ({manifest.crop.kind})": manifest.crop.kind != "none",
        "windows are placed as nnU-Net places them": "nnunet" in (windows.placement, windows.weights),
        "windows are also seen mirrored": bool(manifest.flips),
        "axes as stored are put in another order": geometry.orientation == "native" and geometry.axes != (0, 1, 2),
        "the outer faces stay in place when it is resampled": resampled and geometry.align != "first-voxel",
        "the image is resampled by a cubic spline": resampled and geometry.order == 3,
        "one axis is resampled apart from the others": resampled and geometry.separate_z != "never",
        "an intensity rule takes its figures from a mask": masked,
        "an intensity rule clips to a range that falls": falling,
        "channels have different intensity rules": len(set(manifest.intensity.steps)) > 1,
        "small parts are removed by their volume": bool(manifest.post_processing.smallest_ml),
    }
    for reason, found in reasons.items():
        if found:
            raise ExportError(
                f"{manifest.name} cannot be a MONAI Bundle: {reason}, which MONAI's transforms cannot do."
            )


def _preprocessing(manifest: Manifest) -> Iterator[Transform]:
    geometry = manifest.geometry
    intensity = [_intensity(step) for step in manifest.intensity_steps(0)]
    first = manifest.intensity.stage == "before-resampling"
    yield _on("image", "LoadImaged")
    yield _on("image", "EnsureChannelFirstd")
    if geometry.orientation != "native":
        yield _on("image", "Orientationd", axcodes="".join(geometry.orientation[axis] for axis in geometry.axes))
    yield from intensity if first else ()
    if geometry.spacing is not None:
        yield _on("image", "Spacingd", pixdim=list(geometry.spacing), mode=MODES[geometry.order])
    yield from () if first else intensity
    yield _on("image", "EnsureTyped")


def _intensity(step: Clip | Window | ZScore | Percentile) -> Transform:
    if isinstance(step, Clip):
        return _range(step.low, step.high, step.low, step.high, clip=True)
    if isinstance(step, Window):
        return _range(step.low, step.high, step.out_low, step.out_high, clip=step.clip)
    if isinstance(step, Percentile):
        figures = {"lower": step.lower, "upper": step.upper, "b_min": step.out_low, "b_max": step.out_high}
        return _on("image", "ScaleIntensityRangePercentilesd", **figures, clip=step.clip, channel_wise=True)
    if step.scope == "fixed":
        return _on("image", "NormalizeIntensityd", subtrahend=step.mean, divisor=step.sd)
    return _on("image", "NormalizeIntensityd", channel_wise=True)


def _range(a_min: float, a_max: float, b_min: float, b_max: float, *, clip: bool) -> Transform:
    return _on("image", "ScaleIntensityRanged", a_min=a_min, a_max=a_max, b_min=b_min, b_max=b_max, clip=clip)


def _postprocessing(manifest: Manifest) -> Iterator[Transform]:
    """Logits or probabilities come back before they are decided, labels after they are decided and cleaned."""
    ids = [label.id for label in manifest.labels]
    early = manifest.way_back != "labels"
    back = _on("pred", "Invertd", transform="@preprocessing", orig_keys="image", nearest_interp=not early)
    if manifest.way_back == "probabilities":
        yield _on("pred", "Activationsd", softmax=True)
    if early:
        yield back
    yield _on("pred", "AsDiscreted", argmax=True)
    kept = [n for n, label in enumerate(manifest.labels, 1) if label.name in manifest.post_processing.largest_component]
    if kept:
        yield _on("pred", "KeepLargestConnectedComponentd", applied_labels=kept, is_onehot=False)
    if not early:
        yield back
    if ids != list(range(1, len(ids) + 1)):
        classes = list(range(1, len(ids) + 1))
        yield _on("pred", "MapLabelValued", orig_labels=[0, *classes], target_labels=[0, *ids], dtype="$np.float32")
    kind = "$np.uint8" if max(ids) < 256 else "$np.uint16"
    yield _on("pred", "SaveImaged", output_dir="@output_dir", output_postfix="seg", output_dtype=kind, resample=False,
              separate_folder=False)  # fmt: skip


def _on(key: str, name: str, **arguments: Any) -> Transform:
    return {"_target_": name, "keys": key, **arguments}


def _there(package: str) -> bool:
    try:
        version(package)
    except ModuleNotFoundError:
        return False
    return True


def _readme(trained: Trained, manifest: Manifest) -> str:
    """The model's card, and how the bundle is run."""
    one = len(manifest.channels) == 1
    names = ", ".join(channel.name for channel in manifest.channels)
    where = "one NIfTI file a case" if one else f"one folder a case, with one NIfTI file a channel; by name: {names}"
    nearest = manifest.way_back == "labels" and manifest.geometry.spacing is not None
    ties = (
        " Labels are brought back to the input's grid by the nearest voxel; where two are equally near, MONAI may take "
        "the other one than Hilum."
    )
    return (
        f"{card(manifest, trained.training)}\n## How it is run\n\nPut the images into `data`: {where}.\n\n"
        f"```\npython -m monai.bundle run --config_file {INFERENCE} --bundle_root .\n```\n\n"
        f"The masks come into `eval`. MONAI needs {', '.join(LIBRARIES)} and fire beside it; Hilum is not needed."
        f"{ties if nearest else ''}\n"
    )
