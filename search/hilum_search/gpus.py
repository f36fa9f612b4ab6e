"""How long a training would take on a GPU: an estimate from counted arithmetic and declared rates, nothing measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hilum_search.recipe import Training

PASSES: Final = 3
"""A step costs about three forward passes: one forward, two backward (gradients of the input and of the weights)."""
OPERATIONS: Final = 2
"""Of a multiply-accumulate: peaks count both."""
TALK_HOURS: Final = 30.0
"""GPU hours of one network on a 16 GB V100 in the C2FNAS talk's coarse stage; its settings are not known."""


@dataclass(frozen=True)
class Rate:
    """What a GPU is assumed to keep up in 3D convolutions of few channels.

    Attributes:
        gpu: its name.
        precisions: of a recipe for which the rate holds.
        peak: TFLOP/s as its maker gives them, without sparsity.
        share: of the peak that is assumed to be sustained; assumed by us, measured by nobody.
        unit: that does the arithmetic.
    """

    gpu: str
    precisions: tuple[str, ...]
    peak: float
    share: float
    unit: str

    @property
    def sustained(self) -> float:
        """FLOP/s.

        >>> Rate("V100 16 GB", ("f32",), 15.7, 0.25, "f32").sustained
        3925000000000.0
        """
        return self.peak * self.share * 1e12


RATES: Final = (
    Rate("V100 16 GB", ("f32",), 15.7, 0.25, "f32"),
    Rate("V100 16 GB", ("fp16",), 125.0, 0.08, "tensor cores, fp16"),
    Rate("A100", ("f32",), 156.0, 0.06, "tensor cores, TF32"),
    Rate("A100", ("fp16", "bf16"), 312.0, 0.06, "tensor cores, 16 bits"),
    Rate("H100", ("f32",), 495.0, 0.04, "tensor cores, TF32"),
    Rate("H100", ("fp16", "bf16"), 989.0, 0.04, "tensor cores, 16 bits"),
)
"""Shares are small where the peak is tensor cores': convolutions of few channels wait for memory more than they count.

A recipe's ``f32`` is TF32 in convolutions on A100 and H100, torch's default there. A V100 has no bf16.
"""


@dataclass(frozen=True)
class Hours:
    """GPU hours of one fold on one kind of GPU, all its GPUs together, and the rate that was assumed."""

    rate: Rate
    hours: float


def expected_hours(training: Training, macs: int) -> tuple[Hours, ...]:
    """GPU hours of one fold on each GPU that has the recipe's precision.

    Steps, times windows in a step, times PASSES, times the operations of a window's ``macs``, by the sustained rate.
    Reading, augmentation and scoring are not counted. A network that computes little for each value it stores, such as
    V-NAS's, waits for memory and takes longer than this.
    """
    operations = training.steps * training.batch * PASSES * OPERATIONS * macs
    return tuple(
        Hours(rate, operations / rate.sustained / 3600) for rate in RATES if training.precision in rate.precisions
    )
