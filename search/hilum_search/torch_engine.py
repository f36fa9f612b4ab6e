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
    """Runs a network in float32.

    Args:
        manifest: of the model; its window rule gives the weights.
        network: the weights; set to evaluation mode.
        device: where the network lies; None: the CPU.
    """

    precision = "f32"

    def __init__(self, manifest: Manifest, network: Network, device: torch.device | None = None) -> None:
        self._device = device or torch.device("cpu")
        self._network = network.eval()
        self._weights = weight_map(manifest.windows.size, manifest.windows.weights)

    def run(self, batch: Batch, output: Output = "logits") -> Batch:
        """(N, C, D, H, W) windows to (N, K or F, D, H, W).

        Raises:
            EngineError: a value that is not finite.
        """
        with torch.inference_mode():
            image = torch.from_numpy(np.ascontiguousarray(batch, np.float32)).to(self._device)
            features = self._network.body(image)
            answer: Batch = (features if output == "features" else self._network.head(features)).cpu().numpy()
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
