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


def onnxruntime(path: Path, windows: Windows) -> Outputs:
    """What ONNX Runtime answers on the CPU."""
    import onnxruntime as ort

    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names, (image,) = [output.name for output in session.get_outputs()], session.get_inputs()
    return dict(zip(names, session.run(names, {image.name: windows}), strict=True))


def openvino(path: Path, windows: Windows) -> Outputs:
    """What OpenVINO answers on the CPU in float32, as the embedded engine runs it."""
    from hilum_inference.engines.runtime import openvino as library

    compiled = library().Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    answer = compiled([windows])
    return {output.get_any_name(): np.asarray(answer[output]) for output in compiled.outputs}


RUNTIMES: Final[dict[str, Runtime]] = {"onnxruntime": onnxruntime, "openvino": openvino}
