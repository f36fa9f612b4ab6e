"""The whole story of a segmentation: volume, windows, network, blending, labels, and back to the input's own grid."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilum_inference import blend
from hilum_inference.engines import Engine, Output, in_flight
from hilum_inference.errors import CancelledError, LimitError
from hilum_inference.geometry import ModelGrid
from hilum_inference.head import Decider, Labels
from hilum_inference.postprocess import clean
from hilum_inference.preprocess import Source, model_grid
from hilum_inference.repository import Model
from hilum_inference.sinks import ChannelSink, LabelSink
from hilum_inference.statistics import LabelStatistics, label_statistics
from hilum_inference.volume import Volume
from hilum_inference.windows import Shape, weight_map

Progress = Callable[[int, int], None]
Cancelled = Callable[[], bool]
Planned = Callable[["Plan"], None]


@dataclass(frozen=True)
class Plan:
    """What a segmentation will cost, known before it starts.

    Attributes:
        windows: how many the network will see (test-time flips not counted).
        bytes: peak of what is added to the loaded engine and the stored input.
        seconds: wall time of the network alone, where a speed was measured before; else None.
    """

    windows: int
    bytes: int
    seconds: float | None = None


@dataclass(frozen=True)
class Segmentation:
    """Labels on the input's own grid, and how they came about.

    Attributes:
        labels: (I, J, K) as stored, ids of the manifest, 0 background.
        statistics: voxels, volume and place of each label of the model.
        timings: seconds of each stage; the network runs beside the others, so they add up to more than ``total``.
        plan: what was estimated.
        model: name, version, digest, variant, precision: enough to do it again.
    """

    labels: Labels
    statistics: tuple[LabelStatistics, ...]
    timings: dict[str, float]
    plan: Plan
    model: dict[str, Any]

    def report(self) -> dict[str, Any]:
        """All but the labels, as JSON-able data."""
        return {
            **self.model,
            "labels": [statistics.as_dict() for statistics in self.statistics],
            "timings": {stage: round(seconds, 4) for stage, seconds in self.timings.items()},
            "windows": self.plan.windows,
            "planned_bytes": self.plan.bytes,
        }


@dataclass
class _Clock:
    seconds: dict[str, float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def __call__(self, stage: str, share: int = 1) -> Iterator[None]:
        """Add what the block takes; only its share where as many such blocks run side by side."""
        start = time.perf_counter()
        try:
            yield
        finally:
            taken = (time.perf_counter() - start) / share
            with self.lock:
                self.seconds[stage] = self.seconds.get(stage, 0.0) + taken


class Segmenter:
    """Segments volumes with one model on one engine.

    Args:
        model: what the network is.
        engine: what runs it.
        memory_budget: most bytes a job may add; None: no limit.
        seconds_a_window: the network's time as an earlier Segmenter of this model measured it; None: not known.

    Attributes:
        seconds_a_window: as given, or as the last segmentation measured it.
    """

    def __init__(
        self, model: Model, engine: Engine, memory_budget: int | None = None, seconds_a_window: float | None = None
    ) -> None:
        self._model = model
        self._engine = engine
        self._memory_budget = memory_budget
        self.seconds_a_window = seconds_a_window

    def plan(self, volume: Volume) -> Plan:
        """What ``segment`` will cost.

        Raises:
            MismatchError: the volume has other channels than the model.
            GeometryError: the grid is sheared.
            LimitError: more memory than the budget.
        """
        return self._plan(volume, model_grid(volume, self._model.manifest))

    def segment(
        self,
        volume: Volume,
        progress: Progress | None = None,
        cancelled: Cancelled | None = None,
        planned: Planned | None = None,
    ) -> Segmentation:
        """Segment a volume; ``progress(done, all)`` and ``cancelled()`` are called at every window.

        ``planned(plan)`` is called once, before the first window.

        Raises:
            InputError: as ``plan``.
            EngineError: the back-end failed; nothing is returned.
            CancelledError: ``cancelled`` said so.
        """
        manifest = self._model.manifest
        clock = _Clock()
        with clock("total"):
            with clock("plan"):
                grid = model_grid(volume, manifest)
                plan = self._plan(volume, grid)
                source = Source(volume, grid, manifest)
            if planned is not None:
                planned(plan)
            decider = Decider(manifest, manifest.blends_features)
            sink_type: type[LabelSink | ChannelSink] = LabelSink if manifest.way_back == "labels" else ChannelSink
            sink = sink_type(source, grid, decider, volume.array)
            weights = weight_map(manifest.windows.size, manifest.windows.weights)
            blender = blend.Blender(source.layout, self._channels, weights)
            done = 0
            for starts, answers in self._answers(source, clock, cancelled):
                for start, answer in zip(starts, answers, strict=True):
                    with clock("blend"):
                        blocks = blender.add(start, answer)
                    with clock("decide"):
                        for block in blocks:
                            sink.take(block)
                    done += 1
                    if progress is not None:
                        progress(done, plan.windows)
            with clock("restore"):
                if isinstance(sink, LabelSink):
                    clean(sink.labels, manifest, _voxel_ml(grid))
                labels = sink.finish()
                if isinstance(sink, ChannelSink):
                    clean(labels, manifest, volume.grid.voxel_ml)
            with clock("statistics"):
                statistics = label_statistics(labels, volume.grid, manifest.labels)
        self.seconds_a_window = clock.seconds["network"] / plan.windows
        return Segmentation(labels, statistics, clock.seconds, plan, self._identity())

    def _answers(
        self, source: Source, clock: _Clock, cancelled: Cancelled | None
    ) -> Iterator[tuple[list[Shape], NDArray[np.float32]]]:
        """Batches of windows through the network; the next ones run while one is blended."""
        places = list(source.layout)
        batch = self._model.manifest.windows.batch
        groups = [places[n : n + batch] for n in range(0, len(places), batch)]
        ahead = self._ahead
        spare: list[NDArray[np.float32]] = []
        waiting: deque[tuple[list[Shape], Future[NDArray[np.float32]]]] = deque()
        with ThreadPoolExecutor(ahead, thread_name_prefix="network") as pool:
            for n in range(len(groups) + ahead):
                if cancelled is not None and cancelled():
                    raise CancelledError("The segmentation was cancelled.")
                if n < len(groups):
                    with clock("preprocess"):
                        windows = np.stack([source.window(start) for start in groups[n]])
                    out = spare.pop() if spare and len(groups[n]) == batch else None
                    waiting.append((groups[n], pool.submit(self._run, windows, out, clock)))
                if n >= ahead and waiting:
                    group, running = waiting.popleft()
                    answers = running.result()
                    yield group, answers
                    if len(group) == batch:
                        spare.append(answers)

    def _run(self, windows: NDArray[np.float32], out: NDArray[np.float32] | None, clock: _Clock) -> NDArray[np.float32]:
        """One batch, (N, D, H, W, C) weighted; test-time flips are undone and averaged before the weights."""
        windowing = self._model.manifest.windows
        flips = self._model.manifest.flips
        with clock("network", self._ahead):
            if not flips:
                return self._engine.run_weighted(windows, self._output, out)
            answer = self._engine.run(windows, self._output)
            for flip in flips:
                axes = tuple(axis + 2 for axis in flip)
                answer += np.flip(self._engine.run(np.ascontiguousarray(np.flip(windows, axes)), self._output), axes)
            answer /= np.float32(1 + len(flips))
            return blend.weigh(answer, weight_map(windowing.size, windowing.weights), out)

    @property
    def _ahead(self) -> int:
        """Batches under way while one is blended."""
        return in_flight(self._engine)

    @property
    def _output(self) -> Output:
        return "features" if self._model.manifest.blends_features else "logits"

    @property
    def _channels(self) -> int:
        manifest = self._model.manifest
        return manifest.head.features if manifest.head is not None and manifest.blends_features else manifest.classes

    def _plan(self, volume: Volume, grid: ModelGrid) -> Plan:
        manifest = self._model.manifest
        source = Source(volume, grid, manifest)
        layout = source.layout
        window = int(np.prod(layout.size)) * manifest.windows.batch
        face = int(np.prod(layout.shape)) // layout.shape[layout.sweep[0]]
        slab = 4 * len(manifest.channels) * face * layout.depth
        carried = blend.peak_bytes(layout, self._channels) * (1 if manifest.way_back == "labels" else 2)
        voxels = int(np.prod(volume.grid.shape)) + int(np.prod(grid.shape))
        carried += voxels * any(manifest.intensity.is_filled(n) for n in range(len(manifest.intensity.steps)))
        label_bytes = 1 if max(label.id for label in manifest.labels) < 256 else 2
        ahead = self._ahead
        batches = 4 * window * ((ahead + 1) * self._channels + (ahead + 2) * len(manifest.channels))
        needed = carried + slab + batches + label_bytes * voxels
        seconds = None if self.seconds_a_window is None else self.seconds_a_window * layout.count
        if self._memory_budget is not None and needed > self._memory_budget:
            raise LimitError(
                f"Segmenting {' x '.join(map(str, volume.grid.shape))} voxels needs {_size(needed)}, the budget "
                f"is {_size(self._memory_budget)}; crop the volume or raise the budget.",
                code="over_memory_budget",
            )
        return Plan(layout.count, needed, seconds)

    def _identity(self) -> dict[str, Any]:
        return {
            "model": self._model.name,
            "version": self._model.version,
            "digest": self._model.digest,
            "variant": self._model.variant,
            "precision": self._engine.precision,
        }


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _voxel_ml(grid: ModelGrid) -> float:
    """Millilitres of one voxel of the model's grid."""
    steps = [mapping.step for mapping in grid.maps]
    return grid.stored.voxel_ml * float(np.prod(steps))
