"""Back-ends that run a network on a batch of windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from hilum_inference.errors import EngineError

if TYPE_CHECKING:
    from hilum_inference.repository import Model

Batch = NDArray[np.float32]  # (N, C, D, H, W)
Weighted = NDArray[np.float32]  # (N, D, H, W, C)
Output = Literal["logits", "features"]


BEYOND_HALF = 65520.0
"""The smallest value that FP16 takes for infinite."""


class Engine(Protocol):
    """One network, ready to run; safe to call from several threads."""

    precision: str
    """What it computes in (``f32``...); named in every result."""

    def run(self, batch: Batch, output: Output = "logits") -> Batch:
        """(N, C, D, H, W) windows to (N, K or F, D, H, W) float32; the answer may be written to.

        Raises:
            EngineError: the back-end failed, or answered another shape or type than the model promises.
        """
        ...

    def run_weighted(self, batch: Batch, output: Output = "logits", out: Weighted | None = None) -> Weighted:
        """The same answers as a Blender adds them: times the manifest's window weights, channels last.

        (N, C, D, H, W) windows to (N, D, H, W, K or F), into ``out`` where given.
        """
        ...

    def ready(self) -> bool:
        """Whether the network can run now."""
        ...

    def close(self) -> None:
        """Free what the network holds."""
        ...


def in_flight(engine: Engine) -> int:
    """Batches that an engine wants to have under way at a time; one, where it does not say."""
    return int(getattr(engine, "in_flight", 1))


def for_job(engine: Engine, urgent: bool, cancelled: Callable[[], bool]) -> Engine:
    """The engine as one job sees it, where that makes a difference: its priority, and how to call its windows back."""
    make = getattr(engine, "for_job", None)
    return engine if make is None else cast(Engine, make(urgent, cancelled))


def check_fits_half(batch: Batch) -> None:
    """Refuse windows that would not be the same ones in FP16.

    Raises:
        EngineError: a value is too large for FP16, or no number.
    """
    if not np.maximum(batch.max(initial=0), -batch.min(initial=0)) < BEYOND_HALF:
        raise EngineError(
            "The model takes windows in FP16, which cannot hold a value of this one: use a variant with FP32 inputs.",
            code="beyond_fp16",
        )


def settle(engine: Engine) -> None:
    """After a job's last window: one last look, where the network may have been exchanged meanwhile.

    Raises:
        ModelError: it was; what the job computed must not be used.
    """
    look = getattr(engine, "settle", None)
    if look is not None:
        look()


@dataclass(frozen=True)
class EngineSettings:
    """How engines run.

    Attributes:
        threads: of the embedded engine; None: one for each core.
        triton: ``host:port`` of a Triton's gRPC endpoint; None: the embedded engine.
        timeout: seconds without an answer after which a remote engine counts as hanging.
        patience: seconds for which a remote engine tries one window again before it gives up.
        record: file that keeps which precision was chosen on this machine; None: f32 where the
            manifest allows it.
    """

    threads: int | None = None
    triton: str | None = None
    timeout: float = 120.0
    record: Path | None = None
    patience: float = 30.0


def open_engine(model: Model, settings: EngineSettings | None = None) -> Engine:
    """The engine that serves ``model``, compiled and ready.

    Raises:
        EngineError: the back-end cannot be reached or refuses the network.
    """
    settings = settings or EngineSettings()
    if settings.triton is not None:
        from hilum_inference.engines.triton import How, TritonEngine

        return TritonEngine(model, settings.triton, How(settings.timeout, settings.patience))
    from hilum_inference.engines.openvino import OpenVinoEngine
    from hilum_inference.engines.precision import chosen_precision

    return OpenVinoEngine(model, chosen_precision(model, settings), settings.threads)
