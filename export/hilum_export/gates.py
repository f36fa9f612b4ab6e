"""What an exported file must prove before it is published: the runtimes agree with torch on it.

Every bound is a share of the largest absolute logit, so that it means the same for every network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hilum_export.errors import GateError
from hilum_search.network import Network

ONNXRUNTIME_BOUND = 1e-4
OPENVINO_BOUND = 5e-4
HEAD_BOUND = 1e-4

Windows = NDArray[np.float32]  # (N, C, D, H, W)
Outputs = dict[str, Windows]  # "logits" (N, K, D, H, W) and "features" (N, F, D, H, W)
Runtime = Callable[[Path, Windows], Outputs]


@dataclass(frozen=True)
class Gate:
    """One check: what was compared, the largest difference as a share of the largest |logit|, and its bound."""

    name: str
    difference: float
    bound: float

    @property
    def passed(self) -> bool:
        """Whether the difference is a number within the bound."""
        return bool(self.difference <= self.bound)  # False for NaN


def check(network: Network, path: Path, windows: Windows) -> tuple[Gate, ...]:
    """Compare the file with the network on ``windows``.

    Raises:
        GateError: a runtime differs by more than its bound, or answers a value that is not finite.
    """
    truth = torch_outputs(network, windows)
    found = {"onnxruntime": onnxruntime_outputs(path, windows), "openvino": openvino_outputs(path, windows)}
    bounds = {"onnxruntime": ONNXRUNTIME_BOUND, "openvino": OPENVINO_BOUND}
    gates = [
        Gate(f"{runtime} {output}", difference(answer[output], truth[output], truth["logits"]), bounds[runtime])
        for runtime, answer in found.items()
        for output in ("logits", "features")
    ]
    heads = apply_head(network, found["onnxruntime"]["features"])
    gates.append(Gate("head(features) = logits", difference(heads, found["onnxruntime"]["logits"], heads), HEAD_BOUND))
    for gate in gates:
        if not gate.passed:
            raise GateError(
                f"The exported file differs from the network: {gate.name} by {gate.difference:.2g} of the largest "
                f"logit, allowed is {gate.bound:.0e}; nothing was published."
            )
    return tuple(gates)


def difference(answer: Windows, truth: Windows, logits: Windows) -> float:
    """Largest |answer - truth| as a share of the largest |logit|."""
    return float(np.abs(answer - truth).max() / np.abs(logits).max())


def apply_head(network: Network, features: Windows) -> Windows:
    """Logits from features by the head's weights, in numpy: (N, F, D, H, W) to (N, K, D, H, W)."""
    weight, bias = head_arrays(network)
    return np.asarray(np.einsum("kf,nfdhw->nkdhw", weight, features) + bias[:, None, None, None], dtype=np.float32)


def head_arrays(network: Network) -> tuple[Windows, NDArray[np.float32]]:
    """Weight (K, F) and bias (K,) of the network's last layer."""
    weight = network.head.weight.detach().numpy()[:, :, 0, 0, 0]
    if network.head.bias is None:
        return weight, np.zeros(len(weight), np.float32)
    return weight, network.head.bias.detach().numpy()


def torch_outputs(network: Network, windows: Windows) -> Outputs:
    """What the network itself answers."""
    import torch

    with torch.inference_mode():
        features = network.body(torch.from_numpy(windows))
        return {"features": features.numpy(), "logits": network.head(features).numpy()}


def onnxruntime_outputs(path: Path, windows: Windows) -> Outputs:
    """What onnxruntime answers on the CPU."""
    import onnxruntime as ort

    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": windows}), strict=True))


def openvino_outputs(path: Path, windows: Windows) -> Outputs:
    """What OpenVINO answers on the CPU in float32."""
    from hilum_inference.engines.runtime import openvino

    compiled = openvino().Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    answer = compiled({"image": windows})
    return {output.get_any_name(): np.asarray(answer[output]) for output in compiled.outputs}
