"""``model.py`` of the python variants: runs a version's ONNX file on the CPU inside Triton's python back-end.

It is copied beside the network and stands alone there: nothing of Hilum is installed on the server. Parameters of the
configuration: ``hilum_network`` (a file of the version's folder), ``hilum_runtime`` (``openvino`` or ``onnxruntime``),
``hilum_threads`` (all cores where left out), ``hilum_manifest`` (its ``digests.weights`` is the file's SHA-256).

Triton may hand over several requests at once. Their windows run one by one all the same: on a CPU a batch is no faster,
and with several threads it moves the last bits of the answer, so that a mask would depend on who else asked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    import triton_python_backend_utils as pb
except ModuleNotFoundError:  # only a Triton has it
    pb = None

Windows = NDArray[np.float32]  # (N, C, D, H, W)
Run = Callable[[Windows, str, Windows], None]
"""One window (1, C, D, H, W), the name of an output, and where its values go."""

NETWORK = "model.onnx"
RUNTIME = "openvino"


@dataclass(frozen=True)
class Network:
    """What is to be run.

    Attributes:
        path: the ONNX file.
        image: name of its input.
        size: (C, D, H, W) of one window.
        outputs: their names, and (K or F, D, H, W) of each.
        threads: None: all cores.
    """

    path: Path
    image: str
    size: tuple[int, ...]
    outputs: dict[str, tuple[int, ...]]
    threads: int | None


def openvino(network: Network) -> Run:
    """By OpenVINO in f32, compiled for one window and one output at a time, as Hilum's embedded engine does it."""
    import openvino as library

    core = library.Core()
    whole = core.read_model(network.path)
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    if network.threads is not None:
        settings["INFERENCE_NUM_THREADS"] = network.threads
    requests = {}
    for name in network.outputs:
        port = next(port for port in whole.outputs if name in port.get_names())
        part = library.Model([port.node.input_value(0)], whole.get_parameters(), name)
        part.reshape({network.image: [1, *network.size]})
        requests[name] = core.compile_model(part, "CPU", settings).create_infer_request()

    def run(window: Windows, name: str, out: Windows) -> None:
        requests[name].set_input_tensor(library.Tensor(window, shared_memory=True))
        requests[name].set_output_tensor(library.Tensor(out, shared_memory=True))
        requests[name].infer()

    return run


def onnxruntime(network: Network) -> Run:
    """By ONNX Runtime."""
    import onnxruntime as library

    options = library.SessionOptions()
    if network.threads is not None:
        options.intra_op_num_threads = network.threads
    session = library.InferenceSession(str(network.path), options, providers=["CPUExecutionProvider"])

    def run(window: Windows, name: str, out: Windows) -> None:
        out[:] = session.run([name], {network.image: window})[0]

    return run


RUNTIMES: dict[str, Callable[[Network], Run]] = {"openvino": openvino, "onnxruntime": onnxruntime}


class TritonPythonModel:
    """What Triton's python back-end looks for in a ``model.py``."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the network of this version, and try it before the model is called ready.

        Raises:
            TritonModelException: wrong parameters, a file that is missing or another than the manifest was written
                for, or tensors that arrive empty.
        """
        _tensors_arrive()
        config = json.loads(args["model_config"])
        parameters = {name: each["string_value"] for name, each in config.get("parameters", {}).items()}
        path = Path(args["model_repository"]) / args["model_version"] / parameters.get("hilum_network", NETWORK)
        runtime = parameters.get("hilum_runtime", RUNTIME)
        if runtime not in RUNTIMES:
            raise pb.TritonModelException(f"hilum_runtime is {runtime!r}; it may be {' or '.join(RUNTIMES)}.")
        if not path.is_file():
            raise pb.TritonModelException(f"{path.name} is not in the folder of version {args['model_version']}.")
        _is_described(path, parameters.get("hilum_manifest", "{}"))
        threads = parameters.get("hilum_threads")
        (image,) = config["input"]
        outputs = {str(each["name"]): tuple(map(int, each["dims"])) for each in config["output"]}
        size = tuple(int(d) for d in image["dims"])
        self._network = Network(path, str(image["name"]), size, outputs, None if threads is None else int(threads))
        self._run = RUNTIMES[runtime](self._network)
        self._places: dict[tuple[int, str], Windows] = {}

    def execute(self, requests: Iterable[Any]) -> list[Any]:
        """One answer for each request, in order; a request that nobody waits for any more is not run."""
        return [
            self._cancelled() if request.is_cancelled() else self._answer(request, n)
            for n, request in enumerate(requests)
        ]

    def _answer(self, request: Any, number: int) -> Any:
        wanted = set(request.requested_output_names() or self._network.outputs)
        windows = pb.get_input_tensor_by_name(request, self._network.image).as_numpy()
        tensors = []
        try:
            for name in self._network.outputs:
                if name in wanted:
                    place = self._place(number, name, len(windows))
                    for n in range(len(windows)):
                        self._run(windows[n : n + 1], name, place[n : n + 1])
                    tensors.append(pb.Tensor(name, place))
        except Exception as error:  # noqa: BLE001 - of whatever library runs it: one request fails, not its companions
            return pb.InferenceResponse(error=pb.TritonError(f"The network failed: {error}"))
        return pb.InferenceResponse(tensors)

    def _place(self, number: int, name: str, count: int) -> Windows:
        """Memory for an answer; used again in the next call, when Triton has copied what was answered in this one."""
        known = self._places.get((number, name))
        if known is None or len(known) < count:
            known = self._places[number, name] = np.empty((count, *self._network.outputs[name]), np.float32)
        return known[:count]

    def _cancelled(self) -> Any:
        return pb.InferenceResponse(error=pb.TritonError("The request was cancelled.", pb.TritonError.CANCELLED))


def _is_described(path: Path, manifest: str) -> None:
    """Refuse a network that its manifest was not written for: the configuration is that of another version."""
    expected = json.loads(manifest).get("digests", {}).get("weights")
    if not expected:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise pb.TritonModelException(
            f"{path.name} of version {path.parent.name} is not the network that this configuration describes: it was "
            "changed, or config.pbtxt and configs are those of another version. The next hilum export or hilum models "
            "rollback in this repository puts the latter right."
        )


def _tensors_arrive() -> None:
    """Refuse a server whose tensors lose their values, without a word else: the stub of an old one under numpy 2."""
    sent = np.arange(1, 9, dtype=np.float32)
    got = pb.Tensor.from_dlpack("trial", pb.Tensor("trial", sent).to_dlpack()).as_numpy()
    if got is None or got.shape != sent.shape or not np.array_equal(got, sent):
        raise pb.TritonModelException(
            f"This Triton loses the values of tensors under numpy {np.__version__}: install numpy < 2 for its python "
            "back-end, or use a newer Triton."
        )
