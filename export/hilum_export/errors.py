"""What can go wrong while a trained network is exported.

HilumError
└── ExportError
    ├── GateError   the exported file does not compute what the network computes; nothing was published
    └── EngineBuildError   TensorRT refused the network, or its plan
        └── NoGpuError     here is no NVIDIA GPU, or no TensorRT; the same command works where they are
"""

from __future__ import annotations

from collections.abc import Sequence

from hilum_inference.errors import HilumError


class ExportError(HilumError):
    """Base of the errors of export."""

    code = "export_failed"


class GateError(ExportError):
    """The exported file failed a check."""

    code = "export_gate"


class EngineBuildError(ExportError):
    """TensorRT refused a network or a plan.

    Attributes:
        reasons: what it said, first things first.
    """

    code = "engine_build"

    def __init__(self, message: str, reasons: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.reasons = tuple(reasons)


class NoGpuError(EngineBuildError):
    """Nothing is wrong with the model; this machine lacks what TensorRT needs."""

    code = "no_gpu"
