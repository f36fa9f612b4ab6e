"""A TensorRT plan behind the same protocol as every other engine, and the checks that it must pass before it serves."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hilum_export.engine_manifest import check_engine
from hilum_export.errors import EngineBuildError
from hilum_export.gates import Gate, difference
from hilum_export.precision import Wire
from hilum_export.repository import NETWORK, plan_name
from hilum_export.runtimes import Outputs, Windows, onnxruntime
from hilum_export.tensorrt import Host, find_model, host, network_of
from hilum_export.tensorrt_api import load, member
from hilum_inference.blend import weigh
from hilum_inference.engines import Batch, Output, Weighted, check_fits_half
from hilum_inference.errors import EngineError
from hilum_inference.manifest import Manifest
from hilum_inference.repository import Model
from hilum_inference.windows import weight_map

PLAN_BOUND: Final = 2e-2
"""Largest difference from ONNX Runtime, as a share of the largest logit: what a chain of FP16 convolutions may lose.
Arithmetic in real halves was measured at 5e-3 on U-Nets of this size."""
PLAN_HEAD_BOUND: Final = 1e-2
"""Of head(features) from the logits: one layer in FP16."""
DISAGREEMENT: Final = 2e-3
"""Share of a real case's voxels whose label may differ; 2e-4 were measured in real halves."""
CHANCE_DISAGREEMENT: Final = 2e-2
"""Likewise of made-up windows, whose labels hang by a thread: 1e-2 were seen where every value is rounded to FP16."""


_TYPES: Final[dict[Wire, tuple[str, type[np.float32] | type[np.float16]]]] = {
    "fp32": ("FLOAT", np.float32),
    "fp16": ("HALF", np.float16),
}
"""What a plan takes and gives -> TensorRT's name for it, and numpy's."""


class TensorRTEngine:
    """A plan on this machine's GPU.

    Args:
        model: of ``find_model``; its manifest says what goes in and out.
        plan: to run, with its record beside it; it may have FP16 at its door.
        machine: None: this machine's GPU and TensorRT.

    Raises:
        NoGpuError: there are none.
        EngineBuildError: the plan is not of this network, GPU and TensorRT, or its tensors are not the manifest's.
    """

    precision = "f16"

    def __init__(self, model: Model, plan: Path, machine: Host | None = None) -> None:
        self.path = plan
        self._machine = machine or host()
        self._manifest = model.manifest
        record = check_engine(plan, network_of(model), self._machine.here)
        self._most = record.profile.most
        self._least = record.profile.least
        self._weights = weight_map(self._manifest.windows.size, self._manifest.windows.weights)
        self._lock = threading.Lock()
        self._machine.cuda.use()
        self._engine: Any = load(self._machine.library, plan.read_bytes(), record.version_compatible)
        self._type = _TYPES[record.wire][1]
        self._names = self._checked_tensors(plan, record.wire)
        self._context: Any = self._engine.create_execution_context()
        if self._context is None:
            raise EngineBuildError(f"{plan.name} was loaded but cannot run: the GPU has no room for it.")
        self._room: dict[str, int] = {}

    def run(self, batch: Batch, output: Output = "logits") -> Batch:
        """(N, C, D, H, W) float32 windows to (N, K or F, D, H, W)."""
        name = self._manifest.tensors.features if output == "features" else self._manifest.tensors.logits
        if name is None:
            raise ValueError(f"the model {self._manifest.name} gives no features")
        return self.outputs(batch)[name]

    def run_weighted(self, batch: Batch, output: Output = "logits", out: Weighted | None = None) -> Weighted:
        """(N, C, D, H, W) windows to (N, D, H, W, K or F), weighted here."""
        return weigh(self.run(batch, output), self._weights, out)

    def outputs(self, batch: Batch) -> Outputs:
        """Every tensor that the manifest names, for any number of windows."""
        sample = (len(self._manifest.channels), *self._manifest.windows.size)
        if batch.ndim != 5 or batch.shape[1:] != sample or not len(batch):
            raise ValueError(f"the network takes (N, {', '.join(map(str, sample))}), got {batch.shape}")
        parts = [self._part(batch[first : first + self._most]) for first in range(0, len(batch), self._most)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def ready(self) -> bool:
        """Whether the plan is loaded."""
        return self._context is not None

    def close(self) -> None:
        """Free the GPU."""
        with self._lock:
            self._machine.cuda.use()
            self._context = self._engine = None
            for address in self._room.values():
                self._machine.cuda.free(address)
            self._room.clear()

    def _part(self, batch: Batch) -> Outputs:
        """At most as many windows as the plan takes; filled up where it takes more than those."""
        count = len(batch)
        if count < self._least:
            batch = np.concatenate([batch, np.zeros((self._least - count, *batch.shape[1:]), np.float32)])
        with self._lock:
            return {name: answer[:count] for name, answer in self._infer(self._encoded(batch)).items()}

    def _encoded(self, batch: Batch) -> NDArray[Any]:
        """As the plan takes it."""
        if self._type is np.float16:
            check_fits_half(batch)
        return np.ascontiguousarray(batch, self._type)

    def _infer(self, batch: NDArray[Any]) -> Outputs:
        if self._context is None:
            raise EngineError("The plan was closed.")
        cuda = self._machine.cuda
        cuda.use()
        image = self._manifest.tensors.image
        if not self._context.set_input_shape(image, batch.shape):
            raise EngineError(f"The plan does not take windows {batch.shape}.")
        shapes = {name: (len(batch), *size) for name, size in self._names.items()}
        for name, shape in shapes.items():
            self._context.set_tensor_address(name, self._address(name, shape))
        cuda.send(batch, self._room[image])
        if not self._context.execute_async_v3(cuda.stream):
            raise EngineError("TensorRT could not run the plan.")
        cuda.wait()
        answers = {name: np.empty(shape, self._type) for name, shape in shapes.items() if name != image}
        for name, answer in answers.items():
            cuda.fetch(self._room[name], answer)
        return {name: answer.astype(np.float32, copy=False) for name, answer in answers.items()}

    def _address(self, name: str, shape: tuple[int, ...]) -> int:
        """Room for the largest batch of a tensor, taken once."""
        if name not in self._room:
            size = np.dtype(self._type).itemsize
            self._room[name] = self._machine.cuda.room(size * self._most * int(np.prod(shape[1:])))
        return self._room[name]

    def _checked_tensors(self, plan: Path, wire: Wire) -> dict[str, tuple[int, ...]]:
        """Sizes of one window's input and outputs by name: of the record's type, and no others than the manifest's."""
        manifest, engine, library = self._manifest, self._engine, self._machine.library
        expected = {manifest.tensors.image: (len(manifest.channels), *manifest.windows.size)}
        expected[manifest.tensors.logits] = (manifest.classes, *manifest.windows.size)
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        found = {name: tuple(engine.get_tensor_shape(name))[1:] for name in names}
        features = manifest.tensors.features
        if features is not None and features in found:
            expected[features] = found[features]
        if found != expected:
            raise EngineBuildError(f"{plan.name} has the tensors {found}, the manifest promises {expected}.")
        kind = member(library, "DataType", _TYPES[wire][0])
        if any(engine.get_tensor_dtype(name) != kind for name in names):
            raise EngineBuildError(f"{plan.name} does not take and give {wire.upper()}, as its record says.")
        return found


def open_plan(model: Model, machine: Host | None = None) -> TensorRTEngine:
    """The engine of a model's plan for this machine's GPU.

    Args:
        model: of ``find_model``.
        machine: None: this machine's GPU and TensorRT.

    Raises:
        NoGpuError: there are none.
        EngineBuildError: no plan for this GPU, or it must not be used.
    """
    machine = machine or host()
    plan = network_of(model).with_name(plan_name(machine.cuda.gpu.capability))
    return TensorRTEngine(model, plan, machine)


@dataclass(frozen=True)
class Answers:
    """What a plan answered, and what ONNX Runtime answered from the FP16 and the FP32 file."""

    plan: Outputs
    half: Outputs
    single: Outputs


def engine_gates(
    folder: Path, version: int | None, windows: Windows, machine: Host | None = None, *, real: bool = False
) -> tuple[Gate, ...]:
    """Whether a plan computes what the published networks compute; to be asked before Triton loads it.

    Args:
        folder: of the model.
        version: None: the one that is served.
        windows: (N, C, D, H, W).
        machine: None: this machine's GPU and TensorRT.
        real: whether the windows are of real cases.

    Raises:
        NoGpuError: there are none.
        EngineBuildError: no plan for this GPU, or it must not be used.
        ModelError: the model was changed since its export.
    """
    model = find_model(folder, version)
    engine = open_plan(model, machine)
    try:
        found = engine.outputs(windows)
    finally:
        engine.close()
    half = network_of(model)
    answers = Answers(found, onnxruntime(half, windows), onnxruntime(half.with_name(NETWORK), windows))
    return plan_gates(model.manifest, answers, real)


def plan_gates(manifest: Manifest, answers: Answers, real: bool = False) -> tuple[Gate, ...]:
    """The checks of a plan's answers."""
    gates = []
    allowed = DISAGREEMENT if real else CHANCE_DISAGREEMENT
    for precision, truth in (("FP16", answers.half), ("FP32", answers.single)):
        name = f"TensorRT against {precision}"
        gates += _parity(manifest, answers.plan, truth, name)
        otherwise = _disagreement(manifest, answers.plan, truth)
        gates.append(Gate(f"{name}: labels", otherwise, allowed, "of all voxels differ"))
    logits, features = manifest.tensors.logits, manifest.tensors.features
    if manifest.head is not None and features is not None and features in answers.plan:
        weight, bias = manifest.head.arrays()
        head = np.einsum("kf,nfdhw->nkdhw", weight, answers.plan[features]) + bias[:, None, None, None]
        off = difference(head, answers.plan[logits], answers.plan[logits])
        gates.append(Gate("TensorRT head(features) = logits", off, PLAN_HEAD_BOUND))
    return tuple(gates)


def _parity(manifest: Manifest, found: Mapping[str, Windows], truth: Outputs, name: str) -> list[Gate]:
    logits = truth[manifest.tensors.logits]
    names = [
        each for each in (manifest.tensors.logits, manifest.tensors.features) if each is not None and each in found
    ]
    return [Gate(f"{name}: {each}", difference(found[each], truth[each], logits), PLAN_BOUND) for each in names]


def _disagreement(manifest: Manifest, found: Mapping[str, Windows], truth: Outputs) -> float:
    labels, right = (_labels(manifest, each[manifest.tensors.logits]) for each in (found, truth))
    return float((labels != right).mean())


def _labels(manifest: Manifest, logits: Windows) -> Any:
    """What would be decided of each voxel."""
    return logits > 0 if manifest.output == "sigmoid-regions" else logits.argmax(1)
