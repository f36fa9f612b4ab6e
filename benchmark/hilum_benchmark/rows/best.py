"""The demo model from file to file with everything that makes it fast, each by itself and all together, beside nnU-Net.

The peer is nnU-Net's predictor with the same network in torch, the same windows at its overlap of one half, and no
mirroring. What each setting costs in Dice is measured against the reference, beside what it saves.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
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


def _shipped() -> Model:
    from hilum_inference.repository import Repository, shipped_repository

    return Repository([shipped_repository()]).model("abdomen-ct-demo")


def _sample() -> tuple[Path, Path]:
    """The real CT and its reference.

    Raises:
        FileNotFoundError: it was not fetched.
    """
    from hilum_client.sample import default_folder

    folder = default_folder()
    image, labels = folder / "example_ct.nii.gz", folder / "example_seg_fast_force_split.nii.gz"
    if not image.is_file() or not labels.is_file():
        raise FileNotFoundError(f"The real CT is not in {folder}; make sample fetches it.")
    return image, labels


def prepare(context: Context) -> Measured:
    """The demo model's network in INT8, calibrated on the sample."""
    import numpy as np

    from hilum_export.precision import to_int8
    from hilum_inference.io import read_volume
    from hilum_inference.preprocess import Source, model_grid

    model = _shipped()
    volume = read_volume(_sample()[0])
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

    setting, shipped = SETTINGS[context.argument], _shipped()
    network = context.folder / "int8.onnx" if setting.int8 else shipped.network
    model = dataclasses.replace(shipped, manifest=setting.of(shipped.manifest), network=network)
    engine = open_engine(model, EngineSettings(threads=1))
    start = time.process_time()
    volume = read_volume(_sample()[0])
    found = Segmenter(model, engine).segment(volume)
    write_labels(context.folder / "ours.nii.gz", found.labels, volume)
    spent = time.process_time() - start
    return {"cpu_s": spent, "windows": float(found.plan.windows)} | _dice(found.labels)


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
    predictor.predict_from_files_sequential([[str(_sample()[0])]], [str(context.folder / "nnunet")])
    spent = time.process_time() - start
    answer = np.asarray(nibabel.load(context.folder / "nnunet.nii.gz").dataobj).astype(np.uint8)
    return {"cpu_s": spent} | _dice(answer)


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


def _dice(answer: Any) -> dict[str, float]:
    from hilum_inference.io import read_volume
    from hilum_search.evaluate import classes
    from hilum_search.metrics import dice
    from hilum_search.recipe import read_recipe

    labels = read_recipe("demo").labels
    found = dice(answer, classes(read_volume(_sample()[1]), labels), [label.id for label in labels])
    return {f"Dice {label.name}": found[label.id] for label in labels}


def _figures(rounds: Rounds) -> list[Figure]:
    figures: list[Figure] = []
    peer = Metric("nnU-Net", "cpu_s")
    for name in SETTINGS:
        reach = REACH if name == "all together" else 1.0
        figures += times_less(rounds, f"demo model, file to file: {name}", Metric(name, "cpu_s"), peer, reach)
        lost = [_lost(a, b) for a, b in zip(rounds.get("f32", ()), rounds.get(name, ()), strict=False)]
        if name != "f32":
            figures += at_most(lost, f"{name}: Dice lost by the label that loses most", DICE_LOSS, "of 1")
    figures += times_less(
        rounds, "whole volume in INT8 beside f32", Metric("INT8", "cpu_s"), Metric("f32", "cpu_s"), 2.0
    )
    return figures


def _lost(before: Measured, after: Measured) -> float:
    return max(value - after[name] for name, value in before.items() if name.startswith("Dice "))


ROW = Row(
    "best",
    "The demo model with its best legal settings",
    {name: Contender(f"{HERE}:ours", name) for name in SETTINGS} | {"nnU-Net": Contender(f"{HERE}:nnunet")},
    _figures,
    prepare=f"{HERE}:prepare",
    packages=("hilum_inference", "hilum_benchmark", "hilum_export.precision"),
    note="The demo model on the CT that it learnt from (122x101x112 at 3 mm), reading and writing inside, imports and "
    "opening outside. INT8's ranges were read from 32 windows of that CT.",
)
