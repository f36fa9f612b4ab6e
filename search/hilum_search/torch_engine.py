"""A network still in torch behind the heart's engine seam: it is scored by the code that will serve it."""

from __future__ import annotations

import numpy as np
import torch

from hilum_inference.blend import weigh
from hilum_inference.engines import Batch, Output, Weighted
from hilum_inference.errors import EngineError
from hilum_inference.manifest import Manifest
from hilum_inference.windows import weight_map
from hilum_search.network import Network


class TorchEngine:
    """Runs a network on the CPU in float32.

    Args:
        manifest: of the model; its window rule gives the weights.
        network: the weights; set to evaluation mode.
    """

    precision = "f32"

    def __init__(self, manifest: Manifest, network: Network) -> None:
        self._network = network.eval()
        self._weights = weight_map(manifest.windows.size, manifest.windows.weights)

    def run(self, batch: Batch, output: Output = "logits") -> Batch:
        """(N, C, D, H, W) windows to (N, K or F, D, H, W).

        Raises:
            EngineError: a value that is not finite.
        """
        with torch.inference_mode():
            features = self._network.body(torch.from_numpy(np.ascontiguousarray(batch, np.float32)))
            answer: Batch = (features if output == "features" else self._network.head(features)).numpy()
        if not np.isfinite(answer).all():
            raise EngineError("The network answered values that are not finite.")
        return answer

    def run_weighted(self, batch: Batch, output: Output = "logits", out: Weighted | None = None) -> Weighted:
        """(N, C, D, H, W) windows to (N, D, H, W, K or F), as a Blender adds them."""
        return weigh(self.run(batch, output), self._weights, out)

    def ready(self) -> bool:
        """Always: the weights are in memory."""
        return True

    def close(self) -> None:
        """Nothing to free."""
