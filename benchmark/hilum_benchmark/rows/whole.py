"""The whole job from file to file, the same network, window, overlap and (no) crop on every side, imports included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hilum_benchmark.figures import Figure, Measured, Metric, Rounds, at_least, times_less
from hilum_benchmark.row import Contender, Context, Row

HERE = "hilum_benchmark.rows.whole"
SHAPE, QUICK_SHAPE = (512, 512, 300), (44, 40, 40)
SPACING, MODEL_SPACING = (0.8, 0.8, 1.5), 1.5
LOW, HIGH = -1000.0, 1000.0
MEAN, DEVIATION = 100.0, 150.0
FILTERS = 12
SIZE, QUICK_SIZE = 96, 16
MANY, FEW = 105, 14
"""Classes: those of a whole-body model, and those of an abdominal one. nnU-Net's logits of MANY on this grid: 33 GB."""


def prepare(context: Context) -> Measured:
    """The scan, the two models, and the real series as a file where the sample is there."""
    from hilum_benchmark.networks import manifest, publish, searched
    from hilum_benchmark.volumes import write_ct

    write_ct(context.folder / "synthetic.nii.gz", QUICK_SHAPE if context.quick else SHAPE, SPACING)
    size = QUICK_SIZE if context.quick else SIZE
    geometry: dict[str, Any] = {"orientation": "RAS", "spacing": (MODEL_SPACING,) * 3}
    described = manifest("monai", size, MANY, geometry=geometry)
    publish(context.folder / "models", described, searched(MANY, FILTERS))
    geometry = {"orientation": "native", "axes": (2, 1, 0), "spacing": (MODEL_SPACING,) * 3, "order": 3}
    geometry |= {"align": "edges", "separate_z": "auto"}
    steps = [{"rule": "clip", "low": LOW, "high": HIGH}, {"rule": "z-score", "mean": MEAN, "sd": DEVIATION}]
    windows = {"size": (size, size, size), "placement": "nnunet", "weights": "nnunet"}
    intensity = {"steps": [steps], "stage": "before-resampling"}
    described = manifest("nnunet", size, FEW, geometry=geometry, intensity=intensity, windows=windows)
    described = described.model_copy(update={"way_back": "logits"})
    publish(context.folder / "models", described, searched(FEW, FILTERS))
    return {}


def image_path(context: Context) -> Path:
    """Where a contender's input lies: the argument is ``<model>/<image>``.

    Raises:
        FileNotFoundError: the real series is not there.
    """
    if context.argument.endswith("series"):
        from hilum_client.sample import Sample, default_folder

        series = Sample(default_folder()).series
        if not series.is_dir():
            raise FileNotFoundError(f"The real series is not in {series}; make sample fetches it.")
        return series
    return context.folder / "synthetic.nii.gz"


def ours(context: Context) -> Measured:
    """LocalClient.segment."""
    from hilum_inference.local import LocalClient

    model = context.argument.partition("/")[0]
    client = LocalClient([context.folder / "models"], threads=1)
    client.segment(image_path(context), model=model, out=_mask(context, "hilum"))
    return {}


def _mask(context: Context, who: str) -> Path:
    return context.folder / f"{who}-{context.argument.replace('/', '-')}.nii.gz"


def monai(context: Context) -> Measured:
    """LoadImaged to SaveImaged as a bundle does it, the network in torch eager."""
    import torch
    from monai.data import MetaTensor
    from monai.inferers import SlidingWindowInferer
    from monai.transforms import (
        Compose,
        Invertd,
        LoadImaged,
        Orientationd,
        SaveImaged,
        ScaleIntensityRanged,
        Spacingd,
    )

    from hilum_benchmark.networks import searched

    torch.set_num_threads(1)
    forward = Compose(
        [
            LoadImaged("image", ensure_channel_first=True),
            Orientationd("image", "RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            Spacingd("image", (MODEL_SPACING,) * 3, mode="bilinear"),
            ScaleIntensityRanged("image", LOW, HIGH, 0.0, 1.0, clip=True),
        ]
    )
    after = Compose(
        [
            Invertd("pred", transform=forward, orig_keys="image", nearest_interp=True),
            SaveImaged(
                "pred",
                output_dir=str(context.folder),
                output_postfix=_mask(context, "monai").name.removesuffix(".nii.gz"),
                output_dtype="uint8",
                separate_folder=False,
                print_log=False,
            ),
        ]
    )
    network = searched(MANY, FILTERS)
    roi = (QUICK_SIZE if context.quick else SIZE,) * 3
    data = forward({"image": str(image_path(context))})
    with torch.inference_mode():
        logits = SlidingWindowInferer(roi, 1, 0.5, "gaussian")(data["image"][None], network)
        labels = logits[0].argmax(0, keepdim=True).to(torch.uint8)
        del logits
        data["pred"] = MetaTensor(torch.Tensor(labels.as_subclass(torch.Tensor)), meta=data["image"].meta)
        after(data)
    return {}


def nnunet(context: Context) -> Measured:
    """nnUNetPredictor.predict_from_files_sequential without mirroring."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from hilum_benchmark.networks import searched

    torch.set_num_threads(1)
    network = searched(FEW, FILTERS)
    predictor = nnUNetPredictor(
        0.5, True, False, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    size = QUICK_SIZE if context.quick else SIZE
    manager = PlansManager(plans((size,) * 3, (MODEL_SPACING,) * 3, (LOW, HIGH), (MEAN, DEVIATION)))
    labels = {"background": 0} | {f"label {n}": n for n in range(1, FEW)}
    about = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz", "numTraining": 1}
    configuration = manager.get_configuration("3d_fullres")
    weights = [network.state_dict()]
    predictor.manual_initialization(network, manager, configuration, weights, about, "nnUNetTrainer", None)
    out = str(_mask(context, "nnunet")).removesuffix(".nii.gz")
    predictor.predict_from_files_sequential([[str(image_path(context))]], [out])
    return {}


def plans(
    size: tuple[int, ...], spacing: tuple[float, ...], clip: tuple[float, float], score: tuple[float, float]
) -> dict[str, Any]:
    """What nnU-Net's planner writes for CT.

    Args:
        size: of the patch.
        spacing: in mm.
        clip: lowest and highest value.
        score: mean and standard deviation.
    """
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(size),
        "spacing": list(spacing),
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": resampling | {"is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": resampling | {"order": 1},
        "architecture": {"network_class_name": "", "arch_kwargs": {}, "_kw_requires_import": []},
        "batch_dice": False,
    }
    seen = dict(zip(("mean", "std", "percentile_00_5", "percentile_99_5"), (*score, *clip), strict=True))
    return {
        "dataset_name": "Dataset001_Benchmark",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "foreground_intensity_properties_per_channel": {"0": seen},
    }


def agreement(context: Context) -> Measured:
    """Share of equal labels in the written masks."""
    import nibabel
    import numpy as np

    peer = context.argument.partition("/")[0]
    ours = np.asarray(nibabel.load(_mask(context, "hilum")).dataobj)
    found = sorted(context.folder.glob(f"*{_mask(context, peer).name}"))
    theirs = np.asarray(nibabel.load(found[0]).dataobj).reshape(ours.shape)
    return {"equal_percent": 100.0 * float((ours == theirs).mean()), "labels": float(len(np.unique(theirs)))}


def _figures(rounds: Rounds) -> list[Figure]:
    figures: list[Figure] = []
    for peer, what, reach in (
        ("monai/synthetic", "file to file, synthetic CT, 105 classes", 4),
        ("monai/series", "file to file, real series, 105 classes", 4),
        ("nnunet/synthetic", "file to file, synthetic CT, 14 classes", 3),
    ):
        name = peer.partition("/")[0]
        mine = Metric(f"hilum as {peer}", "process_cpu_s")
        parts = times_less(rounds, f"{what}: CPU", mine, Metric(peer, "process_cpu_s"), reach)
        peak = Metric(f"hilum as {peer}", "process_peak_mib")
        parts += times_less(rounds, f"{what}: peak memory", peak, Metric(peer, "process_peak_mib"), 1)
        figures += parts
        equal = Metric(f"labels {peer}", "equal_percent").values(rounds)
        figures += at_least(equal, f"{what}: labels equal to {name}'s", 99.0, "%")
    return figures


ROW = Row(
    "whole",
    "The whole job, file to file",
    {
        "hilum as monai/synthetic": Contender(f"{HERE}:ours", "monai/synthetic"),
        "monai/synthetic": Contender(f"{HERE}:monai", "monai/synthetic"),
        "labels monai/synthetic": Contender(f"{HERE}:agreement", "monai/synthetic"),
        "hilum as nnunet/synthetic": Contender(f"{HERE}:ours", "nnunet/synthetic"),
        "nnunet/synthetic": Contender(f"{HERE}:nnunet", "nnunet/synthetic"),
        "labels nnunet/synthetic": Contender(f"{HERE}:agreement", "nnunet/synthetic"),
        "hilum as monai/series": Contender(f"{HERE}:ours", "monai/series"),
        "monai/series": Contender(f"{HERE}:monai", "monai/series"),
    },
    _figures,
    prepare=f"{HERE}:prepare",
    note="A network of the search room (the demo model's walk, 12 filters), windows of 96, overlap 0.5, no crop, no "
    "mirroring. Imports, reading and writing are inside. nnU-Net runs with 14 classes: with 105 its logits on the "
    "grid of the scan alone would take 33 GB. With random weights and noise the labels change from voxel to voxel "
    "and near ties are everywhere, so rounding alone moves some of them.",
)
