"""Back-ends that run a network on a batch of windows."""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Batch = NDArray[np.float32]  # (N, C, D, H, W)
Output = Literal["logits", "features"]


class Engine(Protocol):
    """One network, ready to run; safe to call from several threads.

    ``run`` raises EngineError where the back-end fails or answers with a wrong shape, type or a value that is not finite.
    """

    def run(self, batch: Batch, output: Output = "logits") -> Batch:
        """(N, C, D, H, W) windows to (N, K or F, D, H, W) float32."""
        ...

    def ready(self) -> bool:
        """Whether the network can run now."""
        ...

    def close(self) -> None:
        """Free what the network holds."""
        ...
