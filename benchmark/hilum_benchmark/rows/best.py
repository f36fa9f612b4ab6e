"""The demo model from file to file with everything that makes it fast, each by itself and all together, beside nnU-Net.

The peer is nnU-Net's predictor with the same network in torch, the same windows at its overlap of one half, and no
mirroring. What each setting costs in Dice is measured against the reference, beside what it saves.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hilum_benchmark.figures import Figure, Measured, Metric, Rounds, at_most, times_less
from hilum_benchmark.row import Contender, Context, Row
from hilum_benchmark.rows.whole import plans

if TYPE_CHECKING:
    from hilum_inference.manifest import Manifest
    from hilum_inference.repository import Model
    from hilum_search.network import Network

HERE = "hilum_benchmark.rows.best"
CALIBRATION = 32
SCANS = {
    "learnt": ("example_ct.nii.gz", "example_seg_fast_force_split.nii.gz"),
    "series": ("example_ct_dicom", "example_seg_dicom.nii.gz"),
}
"""Scan -> image and reference in the folder of the sample."""
REACH, DICE_LOSS = 10.0, 0.005


@dataclass(frozen=True)
class Setting:
    """One way to run the demo model."""

    int8: bool = False
    crop: bool = False
    overlap: float = 0.5

    def of(self, manifest: Manifest) -> Manifest:
        """The manifest, changed."""
        crop = manifest.crop.model_copy(update={"kind": "body" if self.crop else "none"})
        windows = manifest.windows.model_copy(update={"overlap": self.overlap})
        digests = manifest.digests.model_copy(update={"weights": "", "preprocessing": ""})
        return manifest.model_copy(update={"crop": crop, "windows": windows, "digests": digests})


SETTINGS = {
    "f32": Setting(),
    "INT8": Setting(int8=True),
    "body crop": Setting(crop=True),
    "overlap 0.25": Setting(overlap=0.25),
    "all together": Setting(int8=True, crop=True, overlap=0.25),
}
AS_PUBLISHED = "body crop"
"""What the demo model's own manifest says, and its card was scored with."""


def _shipped() -> Model:
    from hilum_inference.repository import Repository, shipped_repository

    return Repository([shipped_repository()]).model("abdomen-ct-demo")


def prepare(context: Context) -> Measured:
    """The scans as RAS files, their references, and the demo model's network in INT8."""
    import nibabel
    import numpy as np

    from hilum_client.sample import default_folder
    from hilum_export.precision import to_int8
    from hilum_inference.io import read_volume, write_volume
    from hilum_inference.preprocess import Source, model_grid

    folder = default_folder()
    if not (folder / SCANS["learnt"][0]).is_file():
        raise FileNotFoundError(f"The real CT is not in {folder}; make sample fetches it.")
    for name, (image, reference) in SCANS.items():
        for path, kind in ((image, "image"), (reference, "reference")):
            plain = context.folder / "plain.nii.gz"
            write_volume(plain, read_volume(folder / path))
            nibabel.save(nibabel.as_closest_canonical(nibabel.load(plain)), context.folder / f"{name}-{kind}.nii.gz")
    model = _shipped()
    volume = read_volume(context.folder / "learnt-image.nii.gz")
    source = Source(volume, model_grid(volume, model.manifest), model.manifest)
    places = list(source.layout)
    chosen = np.linspace(0, len(places) - 1, min(CALIBRATION, len(places))).astype(int)
    windows = [source.window(places[place])[None] for place in chosen]
    to_int8(model.onnx(), context.folder / "int8.onnx", windows)
    return {}


def ours(context: Context) -> Measured:
    """Read, segment, write, with the engine opened before; CPU seconds, windows, and Dice by label."""
    import dataclasses

    from hilum_inference.engines import EngineSettings, open_engine
    from hilum_inference.io import read_volume, write_labels
    from hilum_inference.pipeline import Segmenter

    scan, name = _scan(context), context.argument.partition("/")[2]
    setting, shipped = SETTINGS[name], _shipped()
    network = context.folder / "int8.onnx" if setting.int8 else shipped.network
    model = dataclasses.replace(shipped, manifest=setting.of(shipped.manifest), network=network)
    engine = open_engine(model, EngineSettings(threads=1))
    start = time.process_time()
    volume = read_volume(context.folder / f"{scan}-image.nii.gz")
    found = Segmenter(model, engine).segment(volume)
    write_labels(context.folder / "ours.nii.gz", found.labels, volume)
    spent = time.process_time() - start
    return {"cpu_s": spent, "windows": float(found.plan.windows)} | _dice(context, found.labels)


def nnunet(context: Context) -> Measured:
    """nnUNetPredictor.predict_from_files_sequential; torch and nnU-Net are imported before."""
    import nibabel
    import numpy as np
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    torch.set_num_threads(1)
    model = _shipped()
    manifest, network = model.manifest, _network(model)
    low, high = _window(manifest)
    size, spacing = manifest.windows.size, manifest.geometry.spacing or (1.0, 1.0, 1.0)
    described = plans(size, spacing, (low, high), (low, high - low))  # a z-score that maps low to 0 and high to 1
    described |= {"transpose_forward": [2, 1, 0], "transpose_backward": [2, 1, 0]}  # SimpleITK's arrays are (k, j, i)
    manager = PlansManager(described)
    labels = {"background": 0} | {label.name: label.id for label in manifest.labels}
    about = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz", "numTraining": 1}
    predictor = nnUNetPredictor(
        0.5, True, False, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    configuration = manager.get_configuration("3d_fullres")
    predictor.manual_initialization(
        network, manager, configuration, [network.state_dict()], about, "nnUNetTrainer", None
    )
    start = time.process_time()
    scan = context.folder / f"{_scan(context)}-image.nii.gz"
    predictor.predict_from_files_sequential([[str(scan)]], [str(context.folder / "nnunet")])
    spent = time.process_time() - start
    answer = np.asarray(nibabel.load(context.folder / "nnunet.nii.gz").dataobj).astype(np.uint8)
    return {"cpu_s": spent} | _dice(context, answer)


def _network(model: Model) -> Network:
    """The shipped network in torch, from the weights in its ONNX file; the exporter writes equal tensors once."""
    import onnx
    import torch
    from onnx import numpy_helper

    from hilum_search.architecture import parse_architecture
    from hilum_search.network import build

    path = model.onnx()
    architecture = parse_architecture(path.with_name("architecture.json").read_bytes())
    network = build(architecture, len(model.manifest.channels), model.manifest.classes)
    graph = onnx.load(path).graph
    values = {each.name: torch.from_numpy(numpy_helper.to_array(each).copy()) for each in graph.initializer}
    weights = {}
    for node in graph.node:
        for name, kind in zip(node.input[1:], ("weight", "bias"), strict=False):
            if name in values and node.input[1].endswith(".weight"):
                weights[f"{node.input[1].removeprefix('network.').removesuffix('weight')}{kind}"] = values[name]
    network.load_state_dict(weights)
    return network.eval()


def _window(manifest: Manifest) -> tuple[float, float]:
    from hilum_inference.manifest import Window

    (step,) = manifest.intensity_steps(0)
    if not isinstance(step, Window):
        raise ValueError(f"the demo model's intensity rule is no window: {step}")
    return step.low, step.high


def _scan(context: Context) -> str:
    return context.argument.partition("/")[0]


def _dice(context: Context, answer: Any) -> dict[str, float]:
    """Dice of each label; one that neither the reference nor the answer holds is left out."""
    import math

    from hilum_inference.io import read_volume
    from hilum_search.evaluate import classes
    from hilum_search.metrics import dice
    from hilum_search.recipe import read_recipe

    labels = read_recipe("demo").labels
    reference = read_volume(context.folder / f"{_scan(context)}-reference.nii.gz")
    found = dice(answer, classes(reference, labels), [label.id for label in labels])
    return {f"Dice {label.name}": found[label.id] for label in labels if not math.isnan(found[label.id])}


def _figures(rounds: Rounds) -> list[Figure]:
    figures: list[Figure] = []
    for scan in SCANS:
        peer, plain = Metric(f"{scan}/nnU-Net", "cpu_s"), Metric(f"{scan}/f32", "cpu_s")
        for name in SETTINGS:
            reach = REACH if name == "all together" else 1.0
            mine = Metric(f"{scan}/{name}", "cpu_s")
            figures += times_less(rounds, f"demo model, file to file, {scan} scan: {name}", mine, peer, reach)
            if name != "f32":
                lost = _losses(rounds, plain.contender, mine.contender)
                what = f"{scan} scan, {name}: Dice lost"
                means = [sum(each) / len(each) for each in lost]
                figures += at_most(means, f"{what}, mean of labels", DICE_LOSS, "of 1")
                figures += at_most([max(each) for each in lost], f"{what}, label that loses most", DICE_LOSS, "of 1")
        what = f"{scan} scan, all together: Dice lost against"
        most = [max(each) for each in _losses(rounds, f"{scan}/{AS_PUBLISHED}", f"{scan}/all together")]
        figures += at_most(most, f"{what} the model as published, label that loses most", DICE_LOSS, "of 1")
        means = [sum(each) / len(each) for each in _losses(rounds, peer.contender, f"{scan}/all together")]
        figures += at_most(means, f"{what} nnU-Net, mean of labels", DICE_LOSS, "of 1")
        whole = f"demo model, file to file, {scan} scan: INT8"
        figures += times_less(rounds, whole, Metric(f"{scan}/INT8", "cpu_s"), plain, 2.0)
    return figures


def _losses(rounds: Rounds, before: str, after: str) -> list[list[float]]:
    """What each label loses in Dice from one contender to another, in every round that both have."""
    pairs = zip(rounds.get(before, ()), rounds.get(after, ()), strict=False)
    return [[old[name] - new[name] for name in old if name.startswith("Dice ")] for old, new in pairs]


ROW = Row(
    "best",
    "The demo model with its best legal settings",
    {f"{scan}/{name}": Contender(f"{HERE}:ours", f"{scan}/{name}") for scan in SCANS for name in SETTINGS}
    | {f"{scan}/nnU-Net": Contender(f"{HERE}:nnunet", scan) for scan in SCANS},
    _figures,
    prepare=f"{HERE}:prepare",
    packages=("hilum_inference", "hilum_benchmark", "hilum_export.precision"),
    note="The demo model on the CT that it learnt from (122x101x112 at 3 mm, cut to the body already) and on a "
    "clinical series that it did not see (512x512x20, 0.98x0.98x2 mm); reading and writing inside, imports and opening "
    "outside. INT8's ranges were read from 32 windows of the first.",
)
