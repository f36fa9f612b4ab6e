"""One window through one network: our engine, torch eager and onnxruntime in turn, inside one process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hilum_benchmark.figures import Figure, Measured, Metric, Rounds, geometric_mean
from hilum_benchmark.figures import times_less as ratio
from hilum_benchmark.row import Contender, Context, Row

if TYPE_CHECKING:
    from torch import nn

HERE = "hilum_benchmark.rows.window"
NETWORKS = ("unet", "c2fnas", "segresnet", "dynunet")
CLASSES = 4
SIZE, QUICK_SIZE = 96, 32


def build(name: str, quick: bool) -> nn.Module:
    """One of NETWORKS with random weights, the same for a seed."""
    import torch
    from monai.networks.nets import DynUNet, SegResNet, UNet

    from hilum_search.architecture import C2FNAS_PANC
    from hilum_search.network import build as build_searched

    torch.manual_seed(0)
    if name == "unet":
        network: nn.Module = UNet(3, 1, CLASSES, (16, 32, 64, 128, 256), (2, 2, 2, 2), num_res_units=2)
    elif name == "c2fnas":
        network = build_searched(C2FNAS_PANC, 1, CLASSES)
    elif name == "segresnet":
        network = SegResNet(init_filters=16, in_channels=1, out_channels=CLASSES)
    else:
        filters = [8, 16, 32, 64] if quick else [32, 64, 128, 256, 320, 320]
        halved = len(filters) - 1
        kernels, steps = [3] * len(filters), [1, *[2] * halved]
        network = DynUNet(3, 1, CLASSES, kernels, steps, [2] * halved, filters=filters)
    return network.eval()


def prepare(context: Context) -> Measured:
    """Publish the four networks."""
    from hilum_benchmark.networks import manifest, publish

    size = side(context)
    for name in NETWORKS:
        publish(context.folder / "models", manifest(name, size, CLASSES), build(name, context.quick))
    return {}


def seconds(context: Context) -> Measured:
    """CPU seconds of one window for each engine after a warm-up, and how well their labels agree with torch."""
    import numpy as np

    size = side(context)
    window = np.random.default_rng(0).standard_normal((1, 1, size, size, size), np.float32)
    engines = {"torch": torch_engine(context), "onnxruntime": _onnxruntime(context), "hilum": hilum_engine(context)}
    measured: dict[str, float] = {}
    labels = {}
    for name, engine in engines.items():
        labels[name] = engine(window).argmax(1)
        start = time.process_time()
        engine(window)
        measured[name] = time.process_time() - start
    return measured | {"equal_percent": 100.0 * float((labels["hilum"] == labels["torch"]).mean())}


def side(context: Context) -> int:
    """Voxels of a window's side."""
    return QUICK_SIZE if context.quick else SIZE


def _model(context: Context) -> Any:
    from hilum_inference.repository import Repository

    return Repository([context.folder / "models"]).model(context.argument)


def hilum_engine(context: Context) -> Callable[[Any], Any]:
    """Our engine on one thread: windows to logits."""
    from hilum_inference.engines import EngineSettings, open_engine

    engine = open_engine(_model(context), EngineSettings(threads=1))
    return lambda window: engine.run(window, "logits")


def torch_engine(context: Context) -> Callable[[Any], Any]:
    """The network in torch eager on one thread."""
    import torch

    torch.set_num_threads(1)
    network = build(context.argument, context.quick)

    def run(window: Any) -> Any:
        with torch.inference_mode():
            return network(torch.from_numpy(window)).numpy()

    return run


def _onnxruntime(context: Context) -> Callable[[Any], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(_model(context).network, options, providers=["CPUExecutionProvider"])
    return lambda window: session.run(["logits"], {"image": window})[0]


def _figures(rounds: Rounds) -> list[Figure]:
    figures: list[Figure] = []
    for peer, reach in (("torch", 2.2), ("onnxruntime", 1.8)):
        each: list[Figure] = []
        for name in NETWORKS:
            sides = {engine: Metric(name, engine).values(rounds) for engine in ("hilum", peer)}
            by_engine = {engine: [{"s": value} for value in values] for engine, values in sides.items()}
            each += ratio(by_engine, f"{name}, one window", Metric("hilum", "s"), Metric(peer, "s"), 1.0)
        figures += geometric_mean(each, f"one window, geometric mean of {len(each)} networks", reach) + each
    return figures


ROW = Row(
    "window",
    "One window of 96x96x96, f32",
    {name: Contender(f"{HERE}:seconds", name) for name in NETWORKS},
    _figures,
    prepare=f"{HERE}:prepare",
    note="The reach is that of the geometric mean; a single network is not to be slower. c2fnas is C2FNAS_PANC of the "
    "search room, the others are MONAI's with the sizes of their papers or examples.",
)
