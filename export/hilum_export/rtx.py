"""Whether TensorRT will take a network, found out where there is no GPU.

TensorRT-RTX has TensorRT's own parser and typing, and builds for GPUs that are not there. What it does not show: the
numbers, and whether the other TensorRT finds a kernel for every layer on its GPU; ``hilum build-engine`` and
``hilum verify --engine`` show those.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import cast

from hilum_export.errors import EngineBuildError
from hilum_export.gates import Gate
from hilum_export.repository import Profile
from hilum_export.tensorrt_api import TensorRT
from hilum_export.tensorrt_build import build

NAME = "strongly typed TensorRT-RTX build"


def rtx() -> TensorRT | None:
    """The module, where it is installed and can be loaded."""
    try:
        return cast(TensorRT, import_module("tensorrt_rtx"))
    except (ImportError, OSError):  # its libraries are for some systems only
        return None


def rtx_gate(path: Path, channels: int, window: tuple[int, int, int], largest_batch: int) -> Gate | None:
    """Errors of a strongly typed build of this file, with the batches that the plan will take.

    The first error stands in the gate's unit, so that it reaches whoever reads the gate.

    Args:
        path: an ONNX file.
        channels, window: of the manifest.
        largest_batch: that Triton may put together.

    Returns:
        None where TensorRT-RTX is not installed.
    """
    library = rtx()
    if library is None:
        return None
    try:
        build(library, path, (channels, *window), Profile(1, largest_batch, largest_batch))
    except EngineBuildError as error:
        return Gate(NAME, max(len(error.reasons), 1), 0, f"errors ({error.message.rstrip('.')})")
    return Gate(NAME, 0, 0, "errors")
