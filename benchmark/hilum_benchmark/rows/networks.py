"""The networks of the table, each by count and in seconds: one window through our engine and torch in turn."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hilum_benchmark.figures import Measured
from hilum_benchmark.row import Contender, Context, Row

if TYPE_CHECKING:
    from hilum_search.architecture import Architecture
    from hilum_search.network import Network

HERE = "hilum_benchmark.rows.networks"
CHANNELS = CLASSES = 4
SIDE, QUICK_SIDE = 96, 32
GEMM_SIDE, GEMM_TRIES = 2048, 5
SOURCE = (
    "hilum_search.architecture",
    "hilum_search.baseline_architectures",
    "hilum_search.baselines",
    "hilum_search.network",
    "hilum_search.ops",
    "hilum_search.space",
    "hilum_search.vnas_network",
    HERE,
)
"""What decides a network's counts; its seconds hang on the exporter and the engine as well."""


def names() -> tuple[str, ...]:
    """The networks, in the order of the table."""
    from hilum_search.architecture import NAMED

    return tuple(NAMED)


def rows(name: str, latency: bool) -> list[Row]:
    """The rows of one network: counts, which do not vary, and seconds."""
    title = f"{name} at {CHANNELS}x{SIDE}x{SIDE}x{SIDE}, {CLASSES} classes"
    size = Row(
        f"{name}/size",
        title,
        {"size": Contender(f"{HERE}:size", name)},
        lambda _: [],
        packages=(*SOURCE, "hilum_benchmark.cost"),
        rounds=1,
    )
    seconds = Row(
        f"{name}/latency",
        title,
        {"latency": Contender(f"{HERE}:latency", name)},
        lambda _: [],
        prepare=f"{HERE}:prepare",
        packages=(*SOURCE, "hilum_search.to_onnx", "hilum_benchmark.networks", "hilum_inference.engines"),
    )
    return [size, seconds] if latency else [size]


def size(context: Context) -> Measured:
    """What is counted: parameters, multiply-adds, activations."""
    from hilum_benchmark.cost import measure

    architecture = _architecture(context)
    counted = measure(architecture, CHANNELS, CLASSES, _window(architecture, context.quick))
    return {name: float(value) for name, value in dataclasses.asdict(counted).items()}


def prepare(context: Context) -> Measured:
    """Export the network and publish it as a model of its own."""
    from hilum_benchmark.networks import manifest, publish

    architecture = _architecture(context)
    window = _window(architecture, context.quick)
    channels = [{"name": f"channel {n}"} for n in range(1, CHANNELS + 1)]
    described = manifest(_name(context), window[0], CLASSES, channels=channels, windows={"size": window})
    publish(context.folder / "models", described, _network(architecture))
    return {}


def latency(context: Context) -> Measured:
    """CPU seconds of one window after a warm-up, in turn; the matrix product beside them; how labels agree."""
    import numpy as np

    architecture = _architecture(context)
    window = _window(architecture, context.quick)
    image = np.random.default_rng(0).standard_normal((1, CHANNELS, *window), np.float32)
    engines = {"hilum_s": _hilum(context), "torch_s": _torch(architecture)}
    measured: dict[str, float] = {}
    labels = {}
    for name, engine in engines.items():
        labels[name] = engine(image).argmax(1)
        measured[name] = _seconds(functools.partial(engine, image))
    equal = 100.0 * float((labels["hilum_s"] == labels["torch_s"]).mean())
    return measured | {"gemm_gflops": gemm_gflops(context.quick), "equal_percent": equal}


def _name(context: Context) -> str:
    """The network's name, from it alone or from a row's name."""
    return context.argument.partition("/")[0]


def _architecture(context: Context) -> Architecture:
    from hilum_search.architecture import NAMED

    return NAMED[_name(context)]


def _window(architecture: Architecture, quick: bool) -> tuple[int, int, int]:
    from hilum_search.baseline_architectures import AHNet

    if not quick:
        return SIDE, SIDE, SIDE
    plane = architecture.smallest_plane if isinstance(architecture, AHNet) else QUICK_SIDE
    return plane, plane, QUICK_SIDE


def _network(architecture: Architecture) -> Network:
    """With random weights, the same for a seed."""
    import torch

    from hilum_search.network import build

    torch.manual_seed(0)
    return build(architecture, CHANNELS, CLASSES).eval()


def _hilum(context: Context) -> Callable[[Any], Any]:
    from hilum_inference.engines import EngineSettings, open_engine
    from hilum_inference.repository import Repository

    model = Repository([context.folder / "models"]).model(_name(context))
    engine = open_engine(model, EngineSettings(threads=1))
    return lambda image: engine.run(image, "logits")


def _torch(architecture: Architecture) -> Callable[[Any], Any]:
    import torch

    torch.set_num_threads(1)
    network = _network(architecture)

    def run(image: Any) -> Any:
        with torch.inference_mode():
            return network(torch.from_numpy(image)).numpy()

    return run


def gemm_gflops(quick: bool = False) -> float:
    """The fastest of several products of square float32 matrices on one thread, GFLOP/s: what can be had at best."""
    import torch

    torch.set_num_threads(1)

    side = 256 if quick else GEMM_SIDE
    left, right = torch.rand(side, side), torch.rand(side, side)
    torch.mm(left, right)
    best = min(_seconds(lambda: torch.mm(left, right)) for _ in range(GEMM_TRIES))
    return 2 * side**3 / max(best, 1e-9) / 1e9


def _seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start
