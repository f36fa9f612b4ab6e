"""A network still in torch behind the heart's engine seam: it is scored by the code that will serve it."""

from __future__ import annotations

import numpy as np
import torch

from hilum_inference.engines import Batch, Output
from hilum_inference.errors import EngineError
from hilum_search.network import Network


class TorchEngine:
    """Runs a network on the CPU in float32."""

    precision = "f32"

    def __init__(self, network: Network) -> None:
        self._network = network.eval()

    def run(self, batch: Batch, output: Output = "logits", out: Batch | None = None) -> Batch:
        """(N, C, D, H, W) windows to (N, K or F, D, H, W).

        Raises:
            EngineError: a value that is not finite.
        """
        with torch.inference_mode():
            features = self._network.body(torch.from_numpy(np.ascontiguousarray(batch, np.float32)))
            answer: Batch = (features if output == "features" else self._network.head(features)).numpy()
        if not np.isfinite(answer).all():
            raise EngineError("The network answered values that are not finite.")
        if out is None:
            return answer
        out[...] = answer
        return out

    def ready(self) -> bool:
        """Always: the weights are in memory."""
        return True

    def close(self) -> None:
        """Nothing to free."""
