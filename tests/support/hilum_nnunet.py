"""Results folders of nnU-Net, made by its own trainer: networks of a few thousand weights that see bright blobs."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from hilum_inference.io import write_volume
from hilum_inference.volume import Volume

Image = NDArray[np.float32]

NORMAL = {"mean": 40.0, "std": 50.0, "percentile_00_5": -80.0, "percentile_99_5": 200.0}
PLAIN = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
RESIDUAL = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"


def plans(**changes: Any) -> dict[str, Any]:
    """Plans with one configuration, 3d_fullres; ``changes`` go into the configuration."""
    resampling = "resample_data_or_seg_to_shape"
    linear = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "tiny",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [16, 16, 16],
        "median_image_size_in_voxels": [24, 24, 24],
        "spacing": [1.5, 1.25, 1.0],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": resampling,
        "resampling_fn_data_kwargs": linear | {"order": 3},
        "resampling_fn_seg": resampling,
        "resampling_fn_seg_kwargs": linear | {"is_seg": True},
        "resampling_fn_probabilities": resampling,
        "resampling_fn_probabilities_kwargs": linear,
        "batch_dice": False,
        "architecture": architecture(PLAIN),
    }
    return {
        "dataset_name": "Dataset007_Tiny",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {"0": NORMAL},
        "configurations": {"3d_fullres": configuration | changes},
    }


def architecture(name: str) -> dict[str, Any]:
    """Three stages of a few features."""
    convolutions = "n_conv_per_stage" if name == PLAIN else "n_blocks_per_stage"
    return {
        "network_class_name": name,
        "arch_kwargs": {
            "n_stages": 3,
            "features_per_stage": [6, 8, 8],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * 3,
            "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
            convolutions: [1, 1, 1],
            "n_conv_per_stage_decoder": [1, 1],
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def dataset(**changes: Any) -> dict[str, Any]:
    """The data set's description."""
    labels = {"background": 0, "liver": 1, "spleen": 2}
    found = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 3, "file_ending": ".nii.gz", "name": "Tiny"}
    return found | changes


def make_results(
    folder: Path, monkeypatch: pytest.MonkeyPatch, plan: dict[str, Any], data: dict[str, Any], folds: int = 1
) -> Path:
    """A results folder as nnU-Net's trainer leaves it, each fold trained for moments on blobs."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(folder / variable))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    dataset_folder = folder / "nnUNet_preprocessed" / plan["dataset_name"] / "tiny"
    dataset_folder.mkdir(parents=True, exist_ok=True)
    (dataset_folder / "a.b2nd").touch()  # the trainer looks at what kind of files there are
    with contextlib.redirect_stdout(io.StringIO()):
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

        for fold in range(folds):
            torch.manual_seed(fold)
            given = {**copy.deepcopy(plan), "continue_training": False}
            trainer = nnUNetTrainer(given, "3d_fullres", fold, data, torch.device("cpu"))
            trainer.initialize()
            teach(trainer.network, len(data["channel_names"]), regions="regions_class_order" in data)
            trainer.inference_allowed_mirroring_axes = (0, 1, 2)  # as it is set when a training starts
            trainer._best_ema = np.float64(0.5)  # as a real training leaves it: a number of numpy's
            trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    results = Path(trainer.output_folder).parent
    (results / "plans.json").write_text(json.dumps(plan))
    (results / "dataset.json").write_text(json.dumps(data))
    return results


def teach(network: nn.Module, channels: int, *, regions: bool, steps: int = 60) -> None:
    """Let a network learn two levels of brightness of its first channel."""
    decoder: Any = network.get_submodule("decoder")
    decoder.deep_supervision = False
    optimiser = torch.optim.Adam(network.parameters(), 0.01)
    rng = np.random.default_rng(0)
    for _ in range(steps):
        image = np.stack([blobs((16, 16, 16), rng)[0] for _ in range(2)])[:, None] / 50 - 0.8
        image = np.concatenate([image, *[rng.normal(0, 1, image.shape)] * (channels - 1)], 1)
        window = torch.from_numpy(image.astype(np.float32))
        target = (window[:, 0] > 0.6).long() + (window[:, 0] > 2.0).long()
        answer = network(window)
        if regions:
            wanted = torch.stack([target > 0, target > 1], 1).float()
            loss = nn.functional.binary_cross_entropy_with_logits(answer, wanted)
        else:
            loss = nn.functional.cross_entropy(answer, target)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    decoder.deep_supervision = True


def blobs(shape: tuple[int, int, int], rng: np.random.Generator) -> tuple[Image, Image]:
    """An image with a blob of about 100 and one of about 180 on a noisy ground, and where they are."""
    places = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    image = rng.normal(0, 8, shape)
    where = np.zeros(shape)
    for label, value in ((1, 100), (2, 180)):
        centre = rng.uniform(0.3, 0.7, 3) * shape
        inside = (((places - centre) / (np.array(shape) * 0.22)) ** 2).sum(-1) < 1
        image[inside] = value + rng.normal(0, 8, int(inside.sum()))
        where[inside] = label
    return image.astype(np.float32), where.astype(np.float32)


def write_scene(
    path: Path, shape: tuple[int, int, int], spacing: tuple[float, float, float], turned: tuple[float, float, float]
) -> list[Path]:
    """The same two ellipsoids, in mm, on any grid, turned about each axis by degrees."""
    import nibabel
    from scipy.spatial.transform import Rotation

    places = np.stack(
        np.meshgrid(*[(np.arange(n) + 0.5) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij"), -1
    )
    image = np.random.default_rng(5).normal(0, 8, shape) + 1
    for value, centre, radii in ((100, (20, 20, 24), (12, 10, 10)), (180, (33, 30, 34), (9, 11, 9))):
        image[(((places - centre) / radii) ** 2).sum(-1) < 1] = value
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", turned, degrees=True).as_matrix() @ np.diag(spacing)
    nibabel.save(nibabel.Nifti1Image(image.astype(np.float32), affine), path)
    return [path]


def write_case(folder: Path, affine: Any, *, channels: int = 1, skull: bool = False) -> list[Path]:
    """A case as nnU-Net names its files, 30 x 26 x 22 voxels; the other channels are noise.

    With ``skull`` all is 0 outside an ellipsoid, and in a hole of it.
    """
    rng = np.random.default_rng(5)
    image, _ = blobs((30, 26, 22), rng)
    paths = []
    for channel in range(channels):
        values = image if channel == 0 else rng.normal(10, 5, image.shape)
        if skull:
            places = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in image.shape], indexing="ij"), -1)
            values = np.where((places**2).sum(-1) < 0.8, values + 40, 0)
            values[10:13, 10:13, 8:10] = 0
        paths.append(folder / f"case_{channel:04}.nii.gz")
        # ITK reads NIfTI-1 alone, so that the affine must be one of float32.
        write_volume(paths[-1], Volume.from_array(values.astype(np.int16), np.float32(affine)))
    return paths
