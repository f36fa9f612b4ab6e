"""The runtimes that serve an exported file, each behind one call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

Windows = NDArray[np.float32]
"""(N, C, D, H, W)."""
Outputs = dict[str, Windows]
"""By the tensor's name: ``logits`` (N, K, D, H, W), ``features`` (N, F, D, H, W), and what else a graph gives out."""
Runtime = Callable[[Path, Windows], Outputs]
"""From float32 to float32, whatever the file has at its door."""


def onnxruntime(path: Path, windows: Windows) -> Outputs:
    """What ONNX Runtime answers on the CPU."""
    import onnxruntime as ort

    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names, (image,) = [output.name for output in session.get_outputs()], session.get_inputs()
    taken = _rounded(windows) if image.type == "tensor(float16)" else windows
    return dict(zip(names, map(_single, session.run(names, {image.name: taken})), strict=True))


def openvino(path: Path, windows: Windows) -> Outputs:
    """What OpenVINO answers on the CPU in float32, as the embedded engine runs it."""
    from hilum_inference.engines.runtime import openvino as library

    compiled = library().Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    half = compiled.inputs[0].get_element_type().to_dtype() == np.float16
    answer = compiled([_rounded(windows) if half else windows])
    return {output.get_any_name(): _single(answer[output]) for output in compiled.outputs}


def _rounded(windows: Windows) -> NDArray[np.float16]:
    """As a file with FP16 at its door takes them; what is too large becomes infinite, and a check finds it."""
    with np.errstate(over="ignore"):
        return windows.astype(np.float16)


def _single(answer: NDArray[np.generic]) -> Windows:
    return np.asarray(answer).astype(np.float32, copy=False)


RUNTIMES: Final[dict[str, Runtime]] = {"onnxruntime": onnxruntime, "openvino": openvino}
