"""What sliding windows cost beside the network: time, memory, and whether the labels stay the same.

The network is one convolution, so nearly all is blending, head and argmax. Its body is timed inside each job, on the
thread that runs it, and subtracted on every side. Windows stand at the same positions everywhere.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilum_benchmark.figures import Figure, Measured, Metric, Rounds, at_least, at_most, times_less
from hilum_benchmark.process import MIB, Meter, Stopwatch, resident_mib
from hilum_benchmark.row import Contender, Context, Row

if TYPE_CHECKING:
    import torch

    from hilum_inference.engines import Batch, Engine, Output, Weighted

HERE = "hilum_benchmark.rows.blending"
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Job:
    """Sizes of a job: window, features C, classes K, volume."""

    window: int = 96
    features: int = 32
    classes: int = 105
    shape: Shape = (256, 192, 256)

    @property
    def voxels(self) -> int:
        """Of the volume."""
        return self.shape[0] * self.shape[1] * self.shape[2]


SHARE_ROUNDS = 8
JOB, QUICK = Job(), Job(16, 4, 9, (40, 24, 40))
LENGTHS = {"once": (256, 256, 512), "twice": (256, 256, 1024)}
QUICK_LENGTHS = {"once": (24, 24, 48), "twice": (24, 24, 96)}
HUGE_SHAPE, QUICK_HUGE_SHAPE = (512, 512, 1024), (40, 40, 80)


def job(context: Context) -> Job:
    """The sizes that a context asks for."""
    return QUICK if context.quick else JOB


class TimedEngine:
    """An engine that adds up the CPU seconds of the thread while it runs: with one thread, those of the network."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.precision = engine.precision
        self.seconds = 0.0

    def run(self, batch: Batch, output: Output = "logits") -> Batch:
        """As the engine."""
        start = time.thread_time()
        answer = self._engine.run(batch, output)
        self.seconds += time.thread_time() - start
        return answer

    def run_weighted(self, batch: Batch, output: Output = "logits", out: Weighted | None = None) -> Weighted:
        """As the engine."""
        start = time.thread_time()
        answer = self._engine.run_weighted(batch, output, out)
        self.seconds += time.thread_time() - start
        return answer

    def ready(self) -> bool:
        """As the engine."""
        return self._engine.ready()

    def close(self) -> None:
        """As the engine."""
        self._engine.close()

    def plain_share(self, batch: Batch, output: Output) -> float:
        """What the network alone costs of a weighted run, 1 at most: weighting is no part of the network's body."""
        out = self._engine.run_weighted(batch, output)
        self._engine.run(batch, output)
        plain = weighted = 0.0
        for _ in range(SHARE_ROUNDS):
            start = time.thread_time()
            self._engine.run_weighted(batch, output, out)
            middle = time.thread_time()
            self._engine.run(batch, output)
            weighted += middle - start
            plain += time.thread_time() - middle
        return min(1.0, plain / weighted)


def prepare(context: Context) -> Measured:
    """Export the network into a repository."""
    from hilum_benchmark.networks import manifest, plain, publish

    sizes = job(context)
    described = manifest("plain", sizes.window, sizes.classes)
    publish(context.folder / "models", described, plain(sizes.features, sizes.classes))
    return {}


def ours(context: Context) -> Measured:
    """The heart, from stored voxels to labels."""
    import numpy as np

    labels, measured = _segment(context, job(context).shape)
    np.save(context.folder / "ours.npy", labels)
    return measured


def _segment(context: Context, shape: Shape) -> tuple[Any, dict[str, float]]:
    import numpy as np
    import openvino  # noqa: F401 - what imports cost is not asked here

    from hilum_benchmark.volumes import ct
    from hilum_inference.engines import EngineSettings, open_engine
    from hilum_inference.pipeline import Segmenter
    from hilum_inference.repository import Repository
    from hilum_inference.volume import Volume

    volume = Volume.from_array(ct(shape))
    model = Repository([context.folder / "models"]).model()
    with Meter() as memory:
        engine = TimedEngine(open_engine(model, EngineSettings(threads=1)))
        with Stopwatch() as meter:
            done = Segmenter(model, engine).segment(volume)
    window = np.full((1, 1, *model.manifest.windows.size), 0.5, np.float32)
    share = engine.plain_share(window, "features")
    return done.labels, _result(meter, memory, engine.seconds * share) | {"plain_share": share}


def monai(context: Context) -> Measured:
    """MONAI's sliding_window_inference, then argmax."""
    import numpy as np
    import torch
    from monai.inferers import sliding_window_inference

    sizes = job(context)
    image, network = _torch_side(context, sizes.shape)
    predictor = TimedBody(network)
    roi = (sizes.window,) * 3
    with torch.inference_mode(), Meter() as memory, Stopwatch() as meter:
        logits = sliding_window_inference(image, roi, 1, predictor, overlap=0.5, mode="gaussian")
        labels = logits.argmax(1)
    np.save(context.folder / "monai.npy", labels[0].numpy().astype(np.uint8))
    return _result(meter, memory, predictor.seconds)


def nnunet(context: Context) -> Measured:
    """nnU-Net's predict_sliding_window_return_logits without mirroring, then argmax."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    sizes = job(context)
    image, network = _torch_side(context, sizes.shape)
    timed = TimedBody(network)

    class Module(torch.nn.Module):
        def forward(self, window: torch.Tensor) -> torch.Tensor:
            return timed(window)

    predictor = nnUNetPredictor(
        0.5, True, False, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.network = Module()
    predictor.configuration_manager = type("Plan", (), {"patch_size": (sizes.window,) * 3})()
    predictor.label_manager = type("Labels", (), {"num_segmentation_heads": sizes.classes})()
    with torch.inference_mode(), Meter() as memory, Stopwatch() as meter:
        logits = predictor.predict_sliding_window_return_logits(image[0])
        logits.argmax(0)
    return _result(meter, memory, timed.seconds)


class TimedBody:
    """A torch network whose body is timed and whose head is not."""

    def __init__(self, network: Any) -> None:
        self._network = network
        self.seconds = 0.0

    def __call__(self, window: torch.Tensor) -> torch.Tensor:
        """Logits of windows (N, 1, D, H, W)."""
        start = time.thread_time()
        features = self._network.body(window)
        self.seconds += time.thread_time() - start
        logits: torch.Tensor = self._network.head(features)
        return logits


def _torch_side(context: Context, shape: Shape) -> tuple[torch.Tensor, Any]:
    """The normalised image (1, 1, I, J, K), made beforehand and so for nothing, and the network."""
    import torch

    from hilum_benchmark.networks import plain
    from hilum_benchmark.volumes import ct

    torch.set_num_threads(1)
    image = torch.from_numpy(ct(shape)).float().contiguous()
    image = image.add_(1000.0).div_(2000.0).clamp_(0.0, 1.0)[None, None]
    return image, plain(job(context).features, job(context).classes)


def agreement(context: Context) -> Measured:
    """Share of voxels with equal labels."""
    import numpy as np

    ours, reference = (np.load(context.folder / f"{name}.npy") for name in ("ours", "monai"))
    return {"equal_percent": 100.0 * float((ours == reference).mean()), "labels": float(len(np.unique(reference)))}


def length(context: Context) -> Measured:
    """The same job over a scan of one length and of twice that."""
    shape = (QUICK_LENGTHS if context.quick else LENGTHS)[context.argument]
    _, measured = _segment(context, shape)
    return measured | {"voxels": float(shape[0] * shape[1] * shape[2])}


def prepare_huge(context: Context) -> Measured:
    """The network, and the scan as a file."""
    from hilum_benchmark.volumes import write_ct

    prepare(context)
    write_ct(context.folder / "huge.nii", QUICK_HUGE_SHAPE if context.quick else HUGE_SHAPE, (0.8, 0.8, 1.0))
    return {}


def huge(context: Context) -> Measured:
    """File to file."""
    from hilum_inference.local import LocalClient

    client = LocalClient([context.folder / "models"], threads=1)
    with Meter() as meter:
        client.segment(context.folder / "huge.nii", out=context.folder / "huge_mask.nii")
    return {"total_s": meter.cpu_s, "peak_mib": resident_mib("VmHWM")}


def huge_agreement(context: Context) -> Measured:
    """The corner that the first three windows of each axis decide alone, against MONAI's logits of that corner."""
    import numpy as np
    import torch
    from monai.inferers import sliding_window_inference

    from hilum_inference.io import read_volume

    sizes = job(context)
    near, sure = 2 * sizes.window, 3 * sizes.window // 2
    _, network = _torch_side(context, (1, 1, 1))
    part = _corner(context.folder / "huge.nii", near)
    image = torch.from_numpy(part).add(1000.0).div(2000.0).clamp(0.0, 1.0)[None, None]
    with torch.inference_mode():
        logits = sliding_window_inference(image, (sizes.window,) * 3, 1, network, overlap=0.5, mode="gaussian")
        expected = logits.argmax(1)[0, :sure, :sure, :sure].numpy()
    mask = read_volume(context.folder / "huge_mask.nii").array[0]
    got = mask[::-1, ::-1][:sure, :sure, :sure]
    return {"equal_percent": 100.0 * float((got == expected).mean()), "labels": float(len(np.unique(expected)))}


def _corner(path: Path, size: int) -> Any:
    """The first ``size`` voxels of each axis towards right, anterior, superior, float32."""
    import numpy as np

    from hilum_inference.io import read_volume

    stored = read_volume(path).array[0][::-1, ::-1]
    return np.ascontiguousarray(stored[:size, :size, :size], np.float32)


def _result(meter: Stopwatch, memory: Meter, body: float) -> dict[str, float]:
    return {
        "total_s": meter.cpu_s,
        "body_s": body,
        "rest_s": meter.cpu_s - body,
        "added_mib": memory.added_mib,
        "peak_mib": memory.peak_mib,
    }


def _figures(rounds: Rounds) -> list[Figure]:
    rest, added = Metric("hilum", "rest_s"), Metric("hilum", "added_mib")
    return [
        *times_less(rounds, "CPU outside the network's body", rest, Metric("monai", "rest_s"), 8),
        *times_less(rounds, "CPU outside the network's body", rest, Metric("nnunet", "rest_s"), 15),
        *times_less(rounds, "added peak memory", added, Metric("monai", "added_mib"), 8),
        *times_less(rounds, "added peak memory", added, Metric("nnunet", "added_mib"), 10),
        *at_least(Metric("labels", "equal_percent").values(rounds), "labels equal to MONAI's", 99.999, "%"),
    ]


def _length_figures(rounds: Rounds) -> list[Figure]:
    peaks = zip(rounds["once"], rounds["twice"], strict=False)
    added = [(b["peak_mib"] - a["peak_mib"]) * MIB / (b["voxels"] - a["voxels"]) for a, b in peaks]
    return at_most(added, "twice the length adds, input included", 4.0, "bytes a voxel")


def _huge_figures(rounds: Rounds) -> list[Figure]:
    peaks = [peak / 1024 for peak in Metric("hilum", "peak_mib").values(rounds)]
    return [
        *at_most(peaks, "512x512x1024, 105 classes, whole job, peak memory", 4.0, "GiB"),
        *at_least(
            Metric("labels", "equal_percent").values(rounds), "its labels equal to MONAI's (a corner)", 99.999, "%"
        ),
    ]


ROW = Row(
    "blending",
    "CPU and memory outside the network's body",
    {
        "hilum": Contender(f"{HERE}:ours"),
        "monai": Contender(f"{HERE}:monai"),
        "nnunet": Contender(f"{HERE}:nnunet"),
        "labels": Contender(f"{HERE}:agreement"),
    },
    _figures,
    prepare=f"{HERE}:prepare",
    note="32 features, 105 classes, 256x192x256 voxels, windows of 96, overlap 0.5; the peers get the normalised "
    "float image for nothing, ours makes it from the stored voxels inside the measured time.",
)
LENGTH = Row(
    "length",
    "Twice the scan length",
    {"once": Contender(f"{HERE}:length", "once"), "twice": Contender(f"{HERE}:length", "twice")},
    _length_figures,
    prepare=f"{HERE}:prepare",
    note="256x256x512 against 256x256x1024 voxels, same network as in the row blending.",
)
HUGE = Row(
    "huge",
    "A scan of 512x512x1024",
    {"hilum": Contender(f"{HERE}:huge"), "labels": Contender(f"{HERE}:huge_agreement")},
    _huge_figures,
    prepare=f"{HERE}:prepare_huge",
    rounds=1,
    by_default=False,
    note="File to file, run once. MONAI's accumulators alone would take 114 GB.",
)
