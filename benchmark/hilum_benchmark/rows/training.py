"""A training step beside the bare network and beside nnU-Net's trainer; cached beside uncached epochs."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilum_benchmark.figures import Figure, Measured, Metric, Rounds, times_less
from hilum_benchmark.row import Contender, Context, Row

if TYPE_CHECKING:
    from hilum_search.network import Network
    from hilum_search.recipe import Recipe

HERE = "hilum_benchmark.rows.training"
SIZE, QUICK_SIZE = 96, 32
SHAPE, QUICK_SHAPE = (160, 160, 150), (48, 48, 40)
SPACING = 1.0
BATCH, CASES, CLASSES, THREADS = 1, 2, 3, 2
STEPS, QUICK_STEPS = 4, 3
"""Steps of each side; the first is a warm-up and does not count."""
DATASET, CONFIGURATION = "Dataset001_Benchmark", "3d_fullres"


def prepare(context: Context) -> Measured:
    """Two labelled volumes as nnU-Net's raw data, and what its planner and preprocessor make of them."""
    folder = context.folder / "raw" / DATASET
    shape = QUICK_SHAPE if context.quick else SHAPE
    for number in range(CASES):
        _write_case(folder, number, shape)
    _write_dataset(folder)
    if context.argument == "training-step":
        _preprocess(context.folder)
    return {}


def hilum(context: Context) -> Measured:
    """CPU seconds of our trainer's step, as ``hilum train`` runs it: data, augmentation, loss, optimiser, progress."""
    import tempfile

    from hilum_search.gather import gather
    from hilum_search.train import Progress, train

    _passive()
    recipe = _recipe(context.quick, _count(context))
    marks = [time.process_time()]
    with tempfile.TemporaryDirectory() as out:
        cases = gather(recipe, context.folder / "raw" / DATASET, Path(out))

        def mark(progress: Progress) -> None:
            marks.append(time.process_time())

        train(recipe, cases, Path(out), mark)
    return _median([after - before for before, after in itertools.pairwise(marks)])


def bare(context: Context) -> Measured:
    """CPU seconds of forward and backward of the same network and window, nothing else."""
    _passive()
    import torch

    torch.set_num_threads(THREADS)
    size = QUICK_SIZE if context.quick else SIZE
    network = _network(context.quick)
    image = torch.rand(BATCH, 1, size, size, size)

    def step() -> None:
        network.zero_grad(set_to_none=True)
        network(image).sum().backward()

    return _timed(step, _count(context))


def nnunet(context: Context) -> Measured:
    """CPU seconds of a step of nnU-Net's own trainer around the same network, its augmentation in this process too."""
    _passive()
    import torch

    torch.set_num_threads(THREADS)
    return _timed(_nnunet(context), _count(context))


def _passive() -> None:
    """Threads that wait use no CPU; read when torch is first loaded."""
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def _count(context: Context) -> int:
    return QUICK_STEPS if context.quick else STEPS


def _timed(step: Callable[[], object], count: int) -> Measured:
    seconds = []
    for _ in range(count):
        start = time.process_time()
        step()
        seconds.append(time.process_time() - start)
    return _median(seconds)


def _median(seconds: list[float]) -> Measured:
    """Of all but the first: that one warms up."""
    return {"s": statistics.median(seconds[1:])}


def epoch(context: Context) -> Measured:
    """CPU seconds of drawing two windows of each case, once the cases are prepared where they are kept."""
    from hilum_search.cases import Part
    from hilum_search.sources import find_dataset
    from hilum_search.store import Store
    from hilum_search.windows import Windows

    recipe = _recipe(context.quick, 1).with_training(keep=context.argument)
    dataset = find_dataset(context.folder / "raw" / DATASET)
    store = Store([Part(files) for files in dataset.cases], recipe, context.folder / "run")
    windows = Windows(store, recipe)
    if context.argument != "no":
        list(store)  # the first epoch prepares; what counts is every later one
    start = time.process_time()
    for step in range(2 * CASES):
        windows.batch(step, range(1))
    return {"s": time.process_time() - start}


def _recipe(quick: bool, count: int) -> Recipe:
    """Every kind of augmentation that nnU-Net's trainer has, for C2FNAS-Panc (narrow where quick)."""
    import json
    import tomllib

    from hilum_search.architecture import to_json
    from hilum_search.recipe import parse_recipe

    size = QUICK_SIZE if quick else SIZE
    network = json.loads(to_json(_architecture(quick)))
    network.pop("format")
    architecture = "\n".join(f"{name} = {json.dumps(value)}" for name, value in network.items())
    text = RECIPE.format(architecture=architecture, size=size, steps=count, batch=BATCH, threads=THREADS)
    tomllib.loads(text)
    return parse_recipe(text)


def _architecture(quick: bool) -> Any:
    import dataclasses

    from hilum_search.architecture import C2FNAS_PANC

    return dataclasses.replace(C2FNAS_PANC, filters=4) if quick else C2FNAS_PANC


def _network(quick: bool) -> Network:
    import torch

    from hilum_search.network import build

    torch.manual_seed(0)
    return build(_architecture(quick), 1, CLASSES)


def _nnunet(context: Context) -> Callable[[], None]:
    """nnU-Net's trainer, ready to make a step."""
    import json

    import torch

    _paths(context.folder)
    os.environ["nnUNet_n_proc_DA"] = "0"  # noqa: SIM112 - its name
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    class Trainer(nnUNetTrainer):  # type: ignore[misc]
        @staticmethod
        def build_network_architecture(
            plans_manager: Any, configuration_manager: Any, inputs: int, outputs: int, deep: bool = True
        ) -> Network:
            return _network(context.quick)

    prepared = context.folder / "preprocessed" / DATASET
    plans = json.loads((prepared / "nnUNetPlans.json").read_text()) | {"continue_training": False}
    about = json.loads((context.folder / "raw" / DATASET / "dataset.json").read_text())
    trainer = Trainer(plans, CONFIGURATION, "all", about, torch.device("cpu"))
    trainer.enable_deep_supervision = False
    trainer.initialize()
    batches, _ = trainer.get_dataloaders()
    trainer.network.train()
    return lambda: trainer.train_step(next(batches))


def _paths(folder: Path) -> None:
    for name in ("raw", "preprocessed", "results"):
        (folder / name).mkdir(exist_ok=True)
        os.environ[f"nnUNet_{name}"] = str(folder / name)


def _preprocess(folder: Path) -> None:
    """nnU-Net's fingerprint, plan and preprocessed arrays, with our window and batch in its plan."""
    import json

    _paths(folder)
    from nnunetv2.experiment_planning import plan_and_preprocess_api as planning

    planning.extract_fingerprints([1], num_processes=1)
    planning.plan_experiments([1])
    path = folder / "preprocessed" / DATASET / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    size = QUICK_SIZE if min(plans["original_median_shape_after_transp"]) < SIZE else SIZE
    plans["configurations"][CONFIGURATION] |= {"patch_size": [size] * 3, "batch_size": BATCH, "spacing": [SPACING] * 3}
    path.write_text(json.dumps(plans))
    planning.preprocess([1], configurations=[CONFIGURATION], num_processes=[1])


def _write_case(folder: Path, number: int, shape: tuple[int, int, int]) -> None:
    """A soft-tissue volume with an organ and a lesion in it."""
    import nibabel
    import numpy as np

    chance = np.random.default_rng(number)
    axes = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    organ = np.sum([(axis - 0.1 * number) ** 2 for axis in axes], axis=0) < 0.3
    lesion = np.sum([(axis - 0.2) ** 2 for axis in axes], axis=0) < 0.04
    ids = np.where(lesion, 2, organ.astype(np.uint8)).astype(np.uint8)
    values = chance.normal(0, 25, shape) + np.choose(ids, [-40, 90, 40])
    for kind, name, array in (
        ("imagesTr", f"case{number}_0000", values.astype(np.int16)),
        ("labelsTr", f"case{number}", ids),
    ):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        image = nibabel.Nifti1Image(array, np.diag([SPACING, SPACING, SPACING, 1.0]))
        nibabel.save(image, folder / kind / f"{name}.nii.gz")


def _write_dataset(folder: Path) -> None:
    import json

    labels = {"background": 0, "organ": 1, "lesion": 2}
    about = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": CASES, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(about))


RECIPE = """
name = "benchmark"

[architecture]
{architecture}

[[channels]]
name = "ct"

[[labels]]
name = "organ"
id = 1
from_ids = [1]

[[labels]]
name = "lesion"
id = 2
from_ids = [2]

[preprocessing.geometry]
spacing = [1.0, 1.0, 1.0]

[preprocessing.intensity]
steps = [[{{ rule = "window", low = -200.0, high = 300.0 }}]]

[preprocessing.windows]
size = [{size}, {size}, {size}]

[training]
steps = {steps}
batch = {batch}
optimiser = "sgd"
schedule = "poly"
learning_rate = 1e-3
class_weights = [1.0, 1.0, 1.0]
threads = {threads}

[augmentation]
rotation = [30.0, 30.0, 30.0]
scale = 1.4
elastic = 2.0
flips = [0, 1, 2]
gain = 0.1
shift = 10.0
noise = 20.0
bias = 10.0
smooth = 0.2
"""


def _step_figures(rounds: Rounds) -> list[Figure]:
    overhead = _ratio(rounds, "whole step against bare forward and backward: CPU", "bare", 1.10)
    return overhead + _ratio(rounds, "whole step against nnU-Net's trainer: CPU", "nnunet", 0.9)


def _ratio(rounds: Rounds, what: str, other: str, reach: float) -> list[Figure]:
    """Ours as a share of the other's, round by round; at most ``reach``."""
    mine, theirs = Metric("hilum", "s").values(rounds), Metric(other, "s").values(rounds)
    if not mine or not theirs:
        return []
    each = [a / b for a, b in zip(mine, theirs, strict=False)]
    value = statistics.median(mine) / statistics.median(theirs)
    return [Figure(what, None, value, min(each), max(each), reach, "x", "less")]


def _epoch_figures(rounds: Rounds) -> list[Figure]:
    ours = Metric("memory", "s")
    kept = times_less(rounds, "two windows of each case, kept in memory: CPU", ours, Metric("no", "s"), 1)
    disk = times_less(rounds, "two windows of each case, kept on disk: CPU", Metric("disk", "s"), Metric("no", "s"), 1)
    return kept + disk


STEP = Row(
    "training-step",
    "One training step of C2FNAS-Panc at 96x96x96, batch 1, 2 threads, f32",
    {name: Contender(f"{HERE}:{name}") for name in ("hilum", "bare", "nnunet")},
    _step_figures,
    prepare=f"{HERE}:prepare",
    packages=("hilum_search", "hilum_inference", HERE),
    note="Ours is a step of hilum train: data, augmentation, loss, optimiser, averaged weights, progress. nnU-Net's "
    "trainer runs without deep supervision, its augmentation in the same process, so that its CPU time counts as ours "
    "does. A process each, in turn; the first step warms up.",
)
EPOCH = Row(
    "training-epoch",
    "An epoch of drawn windows",
    {keep: Contender(f"{HERE}:epoch", keep) for keep in ("memory", "disk", "no")},
    _epoch_figures,
    prepare=f"{HERE}:prepare",
    packages=("hilum_search", "hilum_inference", HERE),
    note="Two windows of each of two volumes of 160x160x150; 'no' reads and resamples the case for every window.",
)
