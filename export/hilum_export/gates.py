"""What an exported file must prove before it is published, and again whenever somebody asks: it is whole, within the
limits of the runtimes, and they agree on it.

Bounds of parity are shares of the largest absolute logit, so that they mean the same for every network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilum_export.errors import GateError
from hilum_export.runtimes import RUNTIMES, Outputs, Windows
from hilum_inference.manifest import Tensors
from hilum_search.network import Network

BOUNDS = {"onnxruntime": 1e-4, "openvino": 5e-4}
HEAD_BOUND = 1e-4
SHARE = "of the largest logit"


@dataclass(frozen=True)
class Gate:
    """One check.

    Attributes:
        name: what was checked.
        value: what was found, such as the largest difference.
        bound: the largest value that passes.
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
        return f"{self.name}: {self.value:.2g} {self.unit}, allowed is {self.bound:.2g}"

    def fields(self) -> dict[str, Any]:
        """As the report has it."""
        return asdict(self) | {"passed": self.passed}


def parity(path: Path, windows: Windows, truth: Outputs, tensors: Tensors) -> tuple[Gate, ...]:
    """How far each runtime's logits, and features where there are any, lie from the truth."""
    gates = []
    logits = truth[tensors.logits]
    for runtime, run in RUNTIMES.items():
        answer = run(path, windows)
        for name in (tensors.logits, tensors.features):
            if name is not None:
                off = difference(answer[name], truth[name], logits)
                gates.append(Gate(f"{runtime} {name}", off, BOUNDS[runtime]))
    return tuple(gates)


def head_gate(features: Windows, logits: Windows, weight: Windows, bias: NDArray[np.float32]) -> Gate:
    """Whether head and features give the logits, as the pipeline computes them."""
    found = np.einsum("kf,nfdhw->nkdhw", weight, features) + bias[:, None, None, None]
    return Gate("head(features) = logits", difference(found, logits, logits), HEAD_BOUND)


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


def require(gates: Sequence[Gate], why: str = "") -> None:
    """Refuse where one did not pass.

    Args:
        gates: all that were checked.
        why: more about it, a sentence.

    Raises:
        GateError: the first that did not.
    """
    for gate in gates:
        if not gate.passed:
            raise GateError(f"The exported file failed a check: {gate}; nothing was published.{why and ' ' + why}")
