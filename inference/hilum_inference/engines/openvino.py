"""The embedded engine: OpenVINO on the CPU, in the precision that was asked for and no other."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hilum_inference.engines import Batch, Output, Weighted
from hilum_inference.engines.runtime import openvino
from hilum_inference.errors import EngineError, OutOfMemoryError
from hilum_inference.windows import weight_map

if TYPE_CHECKING:
    from hilum_inference.repository import Model


@dataclass(frozen=True)
class _Kind:
    """One compiled form of the network."""

    output: Output
    batch: int
    weighted: bool


class OpenVinoEngine:
    """A network compiled for this CPU, with fixed shapes; one compiled form for each output and batch size.

    OpenVINO would choose bf16 on many CPUs by itself, which changes masks: the precision is always set.

    Args:
        model: what to run; ``model.network`` is an ONNX file.
        precision: ``f32``, ``bf16`` or ``f16``.
        threads: of the CPU; None: all.
    """

    def __init__(self, model: Model, precision: str = "f32", threads: int | None = None) -> None:
        self.precision = precision
        self._model = model
        self._core = openvino().Core()
        self._config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        }
        if threads is not None:
            self._config["INFERENCE_NUM_THREADS"] = threads
        self._lock = threading.Lock()
        self._compiled: dict[_Kind, Any] = {}
        self._idle: dict[_Kind, list[Any]] = {}
        default: Output = "features" if model.manifest.blends_features else "logits"
        self._give_back(_Kind(default, model.manifest.windows.batch, weighted=not model.manifest.flips))

    def run(self, batch: Batch, output: Output = "logits") -> Batch:
        """(N, C, D, H, W) float32 windows to (N, K or F, D, H, W)."""
        channels = self._checked(batch, output)
        out = np.empty((len(batch), channels, *batch.shape[2:]), np.float32)
        return self._infer(_Kind(output, len(batch), weighted=False), batch, out)

    def run_weighted(self, batch: Batch, output: Output = "logits", out: Weighted | None = None) -> Weighted:
        """(N, C, D, H, W) windows to (N, D, H, W, K or F): weighted by the network itself, channels last.

        Measured on several nets, the product and the order of channels cost the network nothing, or less than nothing:
        OpenVINO keeps channels last inside and saves its own reordering.
        """
        shape = (len(batch), *batch.shape[2:], self._checked(batch, output))
        if out is None:
            out = np.empty(shape, np.float32)
        elif out.shape != shape:
            raise ValueError(f"out has shape {out.shape}, the answer has {shape}")
        return self._infer(_Kind(output, len(batch), weighted=True), batch, out)

    def ready(self) -> bool:
        """Whether the network is compiled."""
        return bool(self._compiled)

    def close(self) -> None:
        """Forget the compiled networks."""
        self._compiled.clear()
        self._idle.clear()

    def _checked(self, batch: Batch, output: Output) -> int:
        """Channels of the answer."""
        manifest = self._model.manifest
        size = manifest.windows.size
        if batch.ndim != 5 or batch.shape[1:] != (len(manifest.channels), *size):
            raise ValueError(f"the network takes (N, {len(manifest.channels)}, {size}), got {batch.shape}")
        if output == "features" and manifest.head is None:
            raise ValueError(f"the model {manifest.name} gives no features")
        return manifest.head.features if output == "features" and manifest.head else manifest.classes

    def _infer(self, kind: _Kind, batch: Batch, out: NDArray[np.float32]) -> NDArray[np.float32]:
        tensor = openvino().Tensor
        request = self._request(kind)
        request.set_input_tensor(tensor(np.ascontiguousarray(batch, np.float32), shared_memory=True))
        request.set_output_tensor(tensor(out, shared_memory=True))
        try:
            request.infer()
        except RuntimeError as error:
            raise _translated(error) from error
        with self._lock:
            self._idle[kind].append(request)
        return out

    def _request(self, kind: _Kind) -> Any:
        """An idle request, or a new one: each call has its own, so that threads do not share."""
        with self._lock:
            if kind not in self._compiled:
                self._compiled[kind] = self._compile(kind)
                self._idle[kind] = []
            idle = self._idle[kind]
            return idle.pop() if idle else self._compiled[kind].create_infer_request()

    def _give_back(self, kind: _Kind) -> None:
        request = self._request(kind)
        with self._lock:
            self._idle[kind].append(request)

    def _compile(self, kind: _Kind) -> Any:
        manifest = self._model.manifest
        names = manifest.tensors
        wanted = names.features if kind.output == "features" else names.logits
        try:
            network = _single(self._core.read_model(self._model.onnx()))
            kept = [port for port in network.outputs if wanted in port.get_names()]
            if not kept or not any(names.image in port.get_names() for port in network.inputs):
                raise EngineError(f"The network of {manifest.name} has no tensors {names.image!r} and {wanted!r}.")
            answer = kept[0].node.input_value(0)
            if kind.weighted:
                answer = _weighted(answer, weight_map(manifest.windows.size, manifest.windows.weights))
            network = openvino().Model([answer], network.get_parameters(), manifest.name)
            network.reshape({names.image: [kind.batch, len(manifest.channels), *manifest.windows.size]})
            return self._core.compile_model(network, "CPU", self._config)
        except RuntimeError as error:
            raise _translated(error) from error


def _single(network: Any) -> Any:
    """The network with FP32 at its door: one that was exported with FP16 there converts inside."""
    ports = [*network.inputs, *network.outputs]
    if all(port.get_element_type().to_dtype() != np.float16 for port in ports):
        return network
    steps = openvino().preprocess.PrePostProcessor(network)
    for number in range(len(network.inputs)):
        steps.input(number).tensor().set_element_type(openvino().Type.f32)
    for number in range(len(network.outputs)):
        steps.output(number).tensor().set_element_type(openvino().Type.f32)
    return steps.build()


def _weighted(answer: Any, weights: NDArray[np.float32]) -> Any:
    """Append to the network: times the weights, channels last."""
    ops = openvino().opset15
    product = ops.multiply(answer, ops.constant(weights[None, None]))
    return ops.transpose(product, ops.constant(np.array([0, 2, 3, 4, 1]))).output(0)


def _translated(error: RuntimeError) -> EngineError:
    text = str(error).lower()
    if "bad_alloc" in text or "out of memory" in text or "not enough memory" in text:
        return OutOfMemoryError("The engine ran out of memory: free some or use a model with smaller windows.")
    return EngineError(f"OpenVINO refused the network or the window: {str(error).splitlines()[0][:200]}")
