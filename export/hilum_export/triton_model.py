"""``model.py`` of the python variants: runs a version's ONNX file on the CPU inside Triton's python back-end.

It is copied beside the network and stands alone there: nothing of Hilum is installed on the server. Parameters of the
configuration: ``hilum_network`` (a file of the version's folder), ``hilum_runtime`` (``openvino`` or ``onnxruntime``),
``hilum_threads`` (all cores where left out).

Triton may hand over several requests at once. Their windows run one by one all the same: on a CPU a batch is no faster,
and with several threads it moves the last bits of the answer, so that a mask would depend on who else asked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    import triton_python_backend_utils as pb
except ModuleNotFoundError:  # only a Triton has it
    pb = None

Windows = NDArray[np.float32]  # (N, C, D, H, W)
Run = Callable[[Windows, Sequence[str]], list[Windows]]

NETWORK = "model.onnx"
RUNTIME = "openvino"


def openvino(path: Path, image: str, threads: int | None) -> Run:
    """The network by OpenVINO in f32, compiled for one window; once more for each set of outputs that is asked for."""
    import openvino as library

    core = library.Core()
    network = core.read_model(path)
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    compiled: dict[tuple[str, ...], Any] = {}

    def compile_for(names: tuple[str, ...], size: tuple[int, ...]) -> Any:
        kept = [next(port for port in network.outputs if name in port.get_names()) for name in names]
        part = library.Model([port.node.input_value(0) for port in kept], network.get_parameters(), "part")
        part.reshape({image: [1, *size]})
        return core.compile_model(part, "CPU", settings).create_infer_request()

    def run(windows: Windows, names: Sequence[str]) -> list[Windows]:
        key = (*names, *map(str, windows.shape[1:]))
        if key not in compiled:
            compiled[key] = compile_for(tuple(names), windows.shape[1:])
        answers: list[list[Windows]] = []
        for window in windows:
            compiled[key].infer([np.ascontiguousarray(window[None])], share_inputs=True)
            answers.append([np.array(compiled[key].get_output_tensor(n).data) for n in range(len(names))])
        return [np.concatenate(each) for each in zip(*answers)]  # noqa: B905 - equal by construction

    return run


def onnxruntime(path: Path, image: str, threads: int | None) -> Run:
    """The network by ONNX Runtime."""
    import onnxruntime as library

    options = library.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    session = library.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(windows: Windows, names: Sequence[str]) -> list[Windows]:
        answers = [session.run(list(names), {image: window[None]}) for window in windows]
        return [np.concatenate(each) for each in zip(*answers)]  # noqa: B905 - equal by construction

    return run


RUNTIMES: dict[str, Callable[[Path, str, int | None], Run]] = {"openvino": openvino, "onnxruntime": onnxruntime}


class TritonPythonModel:
    """What Triton's python back-end looks for in a ``model.py``."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the network of this version, and try it before the model is called ready.

        Raises:
            TritonModelException: wrong parameters, a file that is missing, or tensors that arrive empty.
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
        threads = parameters.get("hilum_threads")
        self._image = str(config["input"][0]["name"])
        self._outputs = [str(each["name"]) for each in config["output"]]
        self._run = RUNTIMES[runtime](path, self._image, None if threads is None else int(threads))
        self._warm_up([int(d) for d in config["input"][0]["dims"]])

    def execute(self, requests: Iterable[Any]) -> list[Any]:
        """One answer for each request, in order; a request that nobody waits for any more is not run."""
        return [self._cancelled() if request.is_cancelled() else self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        wanted = set(request.requested_output_names() or self._outputs)
        names = [name for name in self._outputs if name in wanted]
        windows = pb.get_input_tensor_by_name(request, self._image).as_numpy()
        try:
            answers = self._run(windows, names)
        except Exception as error:  # noqa: BLE001 - of whatever library runs it: one request fails, not its companions
            return pb.InferenceResponse(error=pb.TritonError(f"The network failed: {error}"))
        tensors = [pb.Tensor(name, answer) for name, answer in zip(names, answers)]  # noqa: B905
        return pb.InferenceResponse(tensors)

    def _cancelled(self) -> Any:
        return pb.InferenceResponse(error=pb.TritonError("The request was cancelled.", pb.TritonError.CANCELLED))

    def _warm_up(self, dims: Sequence[int]) -> None:
        """Compile what is asked for most, so that the first request does not wait for it."""
        if all(d > 0 for d in dims):
            for name in self._outputs:
                self._run(np.zeros((1, *dims), np.float32), [name])


def _tensors_arrive() -> None:
    """Refuse a server whose tensors lose their values, without a word else: the stub of an old one under numpy 2."""
    sent = np.arange(1, 9, dtype=np.float32)
    got = pb.Tensor.from_dlpack("trial", pb.Tensor("trial", sent).to_dlpack()).as_numpy()
    if got is None or got.shape != sent.shape or not np.array_equal(got, sent):
        raise pb.TritonModelException(
            f"This Triton loses the values of tensors under numpy {np.__version__}: install numpy < 2 for its python "
            "back-end, or use a newer Triton."
        )
