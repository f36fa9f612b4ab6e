"""The ``model.py`` of python variants, with a stand-in for Triton's part of it; a real one is in tests/inference."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hilum_testing import SIZE, manifest, publish_tiny

import hilum_export.triton_model as program
from hilum_inference.engines import EngineSettings, open_engine
from hilum_inference.repository import Model

WINDOWS = np.random.default_rng(0).random((2, 1, *SIZE), np.float32)


class Tensor:
    """Triton's tensor; ``loses`` stands for an old server under numpy 2."""

    loses = False

    def __init__(self, name: str, values: Any) -> None:
        self._name, self._values = name, values

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Any:
        return self._values

    def to_dlpack(self) -> Any:
        return np.zeros_like(self._values) if self.loses else self._values

    @classmethod
    def from_dlpack(cls, name: str, capsule: Any) -> Tensor:
        return cls(name, capsule)


class RefusedError(Exception):
    """Triton's exception."""


class Failure:
    """Triton's error of one request."""

    CANCELLED = 7

    def __init__(self, text: str, code: int = 0) -> None:
        self.text, self.code = text, code


class Response:
    """Triton's answer to one request."""

    def __init__(self, tensors: Any = (), error: Failure | None = None) -> None:
        self.values = {tensor.name(): tensor.as_numpy() for tensor in tensors}
        self.error = error


class Request:
    """Triton's request."""

    def __init__(self, windows: Any, *names: str, cancelled: bool = False) -> None:
        self.windows, self._names, self._cancelled = windows, names, cancelled

    def requested_output_names(self) -> tuple[str, ...]:
        return self._names

    def is_cancelled(self) -> bool:
        return self._cancelled


@pytest.fixture(autouse=True)
def backend(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = SimpleNamespace(
        Tensor=Tensor,
        TritonModelException=RefusedError,
        TritonError=Failure,
        InferenceResponse=Response,
        get_input_tensor_by_name=lambda request, name: Tensor(name, request.windows),
    )
    monkeypatch.setattr(program, "pb", stand_in)
    monkeypatch.setattr(Tensor, "loses", False)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return publish_tiny(tmp_path / "models", manifest(), features=2, with_head=True)[0]


def loaded(model: Model, **parameters: str) -> program.TritonPythonModel:
    assert model.folder is not None
    config = {
        "input": [{"name": "image", "dims": [1, *SIZE]}],
        "output": [{"name": "logits", "dims": [3, *SIZE]}, {"name": "features", "dims": [2, *SIZE]}],
        "parameters": {f"hilum_{name}": {"string_value": value} for name, value in parameters.items()},
    }
    made = program.TritonPythonModel()
    made.initialize({"model_config": json.dumps(config), "model_repository": str(model.folder), "model_version": "1"})
    return made


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_each_runtime_answers_what_was_asked_and_no_more(model: Model, runtime: str) -> None:
    served = loaded(model, runtime=runtime, network="model.onnx", threads="1")
    engine = open_engine(model, EngineSettings(threads=1))
    for names in (("logits",), ("features",), ("logits", "features")):
        (answer,) = served.execute([Request(WINDOWS, *names)])
        assert set(answer.values) == set(names)
        for name in names:
            expected = engine.run(WINDOWS, name)  # type: ignore[arg-type]
            assert np.abs(answer.values[name] - expected).max() <= (0 if runtime == "openvino" else 1e-4)


def test_requests_of_one_call_get_their_own_answers_in_order(model: Model) -> None:
    served = loaded(model, threads="1")
    requests = [Request(WINDOWS * n, "logits") for n in range(3)]
    requests.insert(1, Request(WINDOWS, "logits", cancelled=True))
    together = served.execute(requests)
    assert together[1].error is not None and together[1].error.code == Failure.CANCELLED
    for n, answer in enumerate(answer for answer in together if answer.error is None):
        (alone,) = loaded(model, threads="1").execute([Request(WINDOWS * n, "logits")])
        np.testing.assert_array_equal(answer.values["logits"], alone.values["logits"])


def test_a_window_that_fails_takes_no_other_with_it(model: Model) -> None:
    served = loaded(model, threads="1")
    bad, good = served.execute([Request(WINDOWS[..., :8].copy(), "logits"), Request(WINDOWS, "logits")])
    assert bad.error is not None and "The network failed" in bad.error.text
    assert good.error is None


def test_a_server_that_loses_tensors_is_refused(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "loses", True)
    with pytest.raises(RefusedError, match=r"loses the values of tensors under numpy .*install numpy < 2"):
        loaded(model)


def test_wrong_parameters_are_refused(model: Model) -> None:
    with pytest.raises(RefusedError, match="hilum_runtime is 'tensorflow'; it may be openvino or onnxruntime"):
        loaded(model, runtime="tensorflow")
    with pytest.raises(RefusedError, match=r"model_int8\.onnx is not in the folder of version 1"):
        loaded(model, network="model_int8.onnx")


def test_a_network_that_the_configuration_was_not_written_for_is_refused(model: Model) -> None:
    described = model.manifest.model_dump_json()
    assert model.manifest.digests.weights in described
    loaded(model, manifest=described)
    loaded(model, manifest="{}")
    with model.onnx().open("ab") as file:
        file.write(b" ")
    with pytest.raises(RefusedError, match=r"model\.onnx of version 1 is not the network that this configuration"):
        loaded(model, manifest=described)


def test_it_stands_alone() -> None:
    """Nothing of ours; of others only what Triton's python back-end has, and the runtimes."""
    tree = ast.parse(Path(program.__file__).read_text())
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    found |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    others = {name for name in found if name.partition(".")[0] not in sys.stdlib_module_names}
    assert others == {"numpy", "numpy.typing", "onnxruntime", "openvino", "triton_python_backend_utils"}
