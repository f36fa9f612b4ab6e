"""What an exported file must prove before it is published, and again whenever somebody asks: it is whole, within the
limits of the runtimes, and they agree on it.

Bounds of parity are shares of the largest absolute logit, so that they mean the same for every network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hilum_export.precision import Precision
from hilum_export.runtimes import RUNTIMES, Outputs, Windows
from hilum_inference.manifest import Tensors
from hilum_search.network import Network

BOUNDS: Final[dict[Precision, dict[str, float]]] = {
    "fp32": {"onnxruntime": 1e-4, "openvino": 5e-4},
    "fp16": {"onnxruntime": 2e-2, "openvino": 2e-2},
    "int8": {"onnxruntime": math.inf, "openvino": math.inf},
}
"""Largest difference from the network, by what the file is in and what runs it. INT8 is judged by its Dice."""
HEAD_BOUND: Final[dict[Precision, float]] = {"fp32": 1e-4, "fp16": 1e-2, "int8": math.inf}
SHARE: Final = "of the largest logit"
_FIGURES: Final = ("value", "bound")


@dataclass(frozen=True)
class Gate:
    """One check.

    Attributes:
        name: what was checked.
        value: what was found, such as the largest difference.
        bound: the largest value that passes; infinite: it is only told.
        unit: of both.
    """

    name: str
    value: float
    bound: float
    unit: str = SHARE

    @property
    def passed(self) -> bool:
        """Whether the value is a number within the bound."""
        return bool(self.value <= self.bound)  # False for NaN

    def __str__(self) -> str:
        allowed = "" if self.bound == math.inf else f", allowed is {self.bound:.2g}"
        return f"{self.name}: {self.value:.2g} {self.unit}{allowed}"

    def fields(self) -> dict[str, Any]:
        """As the report has it; JSON knows neither infinity nor NaN."""
        plain = {name: getattr(self, name) if math.isfinite(getattr(self, name)) else None for name in _FIGURES}
        return asdict(self) | plain | {"passed": self.passed}


def answers(path: Path, windows: Windows) -> dict[str, Outputs]:
    """What each runtime answers, by its name."""
    return {name: run(path, windows) for name, run in RUNTIMES.items()}


def parity(
    found: Mapping[str, Outputs], truth: Outputs, tensors: Tensors, precision: Precision = "fp32"
) -> tuple[Gate, ...]:
    """How far each runtime's logits, and features where there are any, lie from the truth.

    Args:
        found: ``answers`` of a file.
        truth: of the network.
        tensors: their names.
        precision: of the file.
    """
    gates = []
    logits = truth[tensors.logits]
    for runtime, answer in found.items():
        for name in (tensors.logits, tensors.features):
            if name is not None:
                off = difference(answer[name], truth[name], logits)
                gates.append(Gate(f"{runtime} {name}", off, BOUNDS[precision][runtime]))
    return tuple(gates)


def head_gate(
    outputs: tuple[Windows, Windows], head: tuple[Windows, NDArray[np.float32]], precision: Precision = "fp32"
) -> Gate:
    """Whether the manifest's head on the features gives the logits, as the pipeline computes them.

    Args:
        outputs: features (N, F, D, H, W) and logits (N, K, D, H, W).
        head: weight (K, F) and bias (K,).
        precision: of the file that gave the outputs.
    """
    (features, logits), (weight, bias) = outputs, head
    found = np.einsum("kf,nfdhw->nkdhw", weight, features) + bias[:, None, None, None]
    return Gate("head(features) = logits", difference(found, logits, logits), HEAD_BOUND[precision])


def difference(answer: Windows, truth: Windows, logits: Windows) -> float:
    """Largest |answer - truth| as a share of the largest |logit|."""
    return float(np.abs(answer - truth).max() / np.abs(logits).max())


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
