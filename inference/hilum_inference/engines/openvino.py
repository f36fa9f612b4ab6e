"""The embedded engine: OpenVINO on the CPU, in the precision that was asked for and no other."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from hilum_inference.engines import Batch, Output
from hilum_inference.errors import EngineError, OutOfMemoryError

if TYPE_CHECKING:
    from hilum_inference.repository import Model


class OpenVinoEngine:
    """A network compiled for this CPU. Shapes are fixed for each batch size, one compiled network for each output.

    OpenVINO would choose bf16 on many CPUs by itself, which changes masks: the precision is always set.

    Args:
        model: what to run; ``model.network`` is an ONNX file.
        precision: ``f32``, ``bf16`` or ``f16``.
        threads: of the CPU; None: all.
    """

    def __init__(self, model: Model, precision: str = "f32", threads: int | None = None) -> None:
        import openvino

        self.precision = precision
        self._model = model
        self._core = openvino.Core()
        self._config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        }
        if threads is not None:
            self._config["INFERENCE_NUM_THREADS"] = threads
        self._lock = threading.Lock()
        self._compiled: dict[tuple[Output, int], Any] = {}
        self._idle: dict[tuple[Output, int], list[Any]] = {}
        self._output: Output = "features" if model.manifest.blends_features else "logits"
        self._request(self._output, model.manifest.windows.batch, keep=True)

    def run(self, batch: Batch, output: Output = "logits", out: Batch | None = None) -> Batch:
        """(N, C, D, H, W) float32 windows to (N, K or F, D, H, W)."""
        import openvino

        shape = self._expected(batch, output)
        if out is None:
            out = np.empty(shape, np.float32)
        elif out.shape != shape:
            raise ValueError(f"out has shape {out.shape}, the answer has {shape}")
        request = self._request(output, len(batch))
        request.set_input_tensor(openvino.Tensor(np.ascontiguousarray(batch, np.float32), shared_memory=True))
        request.set_output_tensor(openvino.Tensor(out, shared_memory=True))
        try:
            request.infer()
        except RuntimeError as error:
            raise _translated(error) from error
        self._idle[output, len(batch)].append(request)
        return out

    def ready(self) -> bool:
        """Whether the network is compiled."""
        return bool(self._compiled)

    def close(self) -> None:
        """Forget the compiled networks."""
        self._compiled.clear()
        self._idle.clear()

    def _expected(self, batch: Batch, output: Output) -> tuple[int, ...]:
        manifest = self._model.manifest
        size = manifest.windows.size
        if batch.ndim != 5 or batch.shape[1:] != (len(manifest.channels), *size):
            raise ValueError(f"the network takes (N, {len(manifest.channels)}, {size}), got {batch.shape}")
        if output == "features" and manifest.head is None:
            raise ValueError(f"the model {manifest.name} gives no features")
        channels = manifest.head.features if output == "features" and manifest.head else manifest.classes
        return len(batch), channels, *size

    def _request(self, output: Output, count: int, keep: bool = False) -> Any:
        with self._lock:
            key = (output, count)
            if key not in self._compiled:
                self._compiled[key] = self._compile(output, count)
                self._idle[key] = []
            idle = self._idle[key]
            request = idle.pop() if idle else self._compiled[key].create_infer_request()
            if keep:
                idle.append(request)
            return request

    def _compile(self, output: Output, count: int) -> Any:
        import openvino

        manifest = self._model.manifest
        names = manifest.tensors
        wanted = names.features if output == "features" else names.logits
        try:
            network = self._core.read_model(self._model.network)
            kept = [port for port in network.outputs if wanted in port.get_names()]
            if not kept or not any(names.image in port.get_names() for port in network.inputs):
                raise EngineError(f"The network of {manifest.name} has no tensors {names.image!r} and {wanted!r}.")
            network = openvino.Model([kept[0].node], network.get_parameters(), manifest.name)
            network.reshape({names.image: [count, len(manifest.channels), *manifest.windows.size]})
            return self._core.compile_model(network, "CPU", self._config)
        except RuntimeError as error:
            raise _translated(error) from error


def _translated(error: RuntimeError) -> EngineError:
    text = str(error).lower()
    if "bad_alloc" in text or "out of memory" in text or "not enough memory" in text:
        return OutOfMemoryError("The engine ran out of memory: free some or use a model with smaller windows.")
    return EngineError(f"OpenVINO refused the network or the window: {str(error).splitlines()[0][:200]}")
