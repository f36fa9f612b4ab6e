"""A network behind a Triton server, over gRPC. Its error text stays in the log: it may name internals."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from hilum_inference.blend import weigh
from hilum_inference.engines import Batch, Output, Weighted
from hilum_inference.errors import EngineError, OutOfMemoryError
from hilum_inference.windows import weight_map

if TYPE_CHECKING:
    from hilum_inference.repository import Model

log = logging.getLogger(__name__)


class TritonEngine:
    """One model and version of a running Triton.

    Args:
        model: what the server serves under ``model.manifest.name`` and ``model.version``.
        address: ``host:port`` of the gRPC endpoint.
        timeout: seconds for one batch.

    Raises:
        EngineError: the server does not answer, or does not serve that model.
    """

    precision = "server"

    def __init__(self, model: Model, address: str, timeout: float = 120.0) -> None:
        from tritonclient.grpc import InferenceServerClient

        self._model = model
        self._timeout = timeout
        self._weights = weight_map(model.manifest.windows.size, model.manifest.windows.weights)
        self._client: Any = InferenceServerClient(address)
        if not self.ready():
            self.close()
            raise EngineError(
                f"Triton at {address} does not serve {model.manifest.name} version {model.version}.",
                code="triton_not_ready",
            )

    def run(self, batch: Batch, output: Output = "logits") -> Batch:
        """(N, C, D, H, W) float32 windows to (N, K or F, D, H, W); the reply's shape and type are checked."""
        return np.array(self._reply(batch, output), np.float32)  # the reply is read-only, the caller may write

    def run_weighted(self, batch: Batch, output: Output = "logits", out: Weighted | None = None) -> Weighted:
        """(N, C, D, H, W) windows to (N, D, H, W, K or F), weighted here."""
        return weigh(self._reply(batch, output), self._weights, out)

    def _reply(self, batch: Batch, output: Output) -> Batch:
        from tritonclient.grpc import InferInput, InferRequestedOutput
        from tritonclient.utils import InferenceServerException

        manifest = self._model.manifest
        name = manifest.tensors.features if output == "features" else manifest.tensors.logits
        channels = manifest.head.features if output == "features" and manifest.head else manifest.classes
        image = InferInput(manifest.tensors.image, list(batch.shape), "FP32")
        image.set_data_from_numpy(np.ascontiguousarray(batch, np.float32))
        try:
            reply = self._client.infer(
                manifest.name,
                [image],
                model_version=str(self._model.version),
                outputs=[InferRequestedOutput(name)],
                client_timeout=self._timeout,
            )
        except InferenceServerException as error:
            log.error("Triton failed: %s", error)
            raise _translated(error) from error
        answer = reply.as_numpy(name)
        expected = (len(batch), channels, *batch.shape[2:])
        if answer is None or answer.shape != expected or answer.dtype.kind != "f":
            got = None if answer is None else (answer.shape, str(answer.dtype))
            raise EngineError(f"Triton answered {got}, the model promises {expected} float32.", code="bad_reply")
        return np.asarray(answer)

    def ready(self) -> bool:
        """Whether the server serves the model now."""
        from tritonclient.utils import InferenceServerException

        try:
            return bool(self._client.is_model_ready(self._model.manifest.name, str(self._model.version)))
        except InferenceServerException:
            return False

    def close(self) -> None:
        """Close the channel."""
        self._client.close()


def _translated(error: Exception) -> EngineError:
    text = str(error).lower()
    if "out of memory" in text or "alloc" in text:
        return OutOfMemoryError("The inference server ran out of memory; try again later.")
    if "deadline" in text or "unavailable" in text or "connect" in text:
        return EngineError("The inference server does not answer; try again later.", code="triton_unavailable")
    return EngineError("The inference server refused the window.", code="triton_failed")
