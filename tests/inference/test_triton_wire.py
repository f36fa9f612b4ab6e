"""FP16 at a model's door: half of everything travels to a real Triton and back, and the masks stay the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import triton_server
from google.protobuf import text_format
from hilum_testing import SIZE, manifest, phantom, publish_tiny
from triton_relay import Relay
from tritonclient.grpc import model_config_pb2

from hilum_export.precision import Precision, Wire, to_half
from hilum_export.repository import PROGRAM, config, configs
from hilum_inference.engines import Engine, EngineSettings, Output, open_engine
from hilum_inference.engines.triton import How, TritonEngine
from hilum_inference.errors import EngineError
from hilum_inference.pipeline import Segmenter
from hilum_inference.repository import Model, Repository, publish
from hilum_inference.volume import Volume

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not triton_server.installed(), reason="no test Triton: run make triton-env"),
]

VARIANT = "onnxruntime-fp16"
WINDOWS = np.random.default_rng(0).random((2, 1, *SIZE), np.float32)
VOLUME = Volume.from_array(phantom((40, 33, 25)))
IN_HALF = """

class TritonPythonModel(TritonPythonModel):
    def _place(self, number, name, count):
        return np.empty((count, *self._network.outputs[name]), np.float16)
"""
"""The test server runs python alone, and the python variants FP32 and INT8: this one's answers are as its file's."""


def published(folder: Path, name: str, wire: Wire) -> Model:
    """A model with an FP16 file; the configuration that would serve it on a GPU serves it through python on the CPU."""
    plain, _ = publish_tiny(folder.with_name("plain"), manifest(name=name), with_head=True)
    single, half = plain.onnx(), folder.with_name(f"{name}_fp16.onnx")
    to_half(single, half, wire)
    networks: dict[Precision, str] = {"fp32": digest_of(single), "fp16": digest_of(half)}
    texts = configs(plain.manifest, 4, networks, wire=wire)
    program = triton_server.MODEL_PY.read_text() + (IN_HALF if wire == "fp16" else "")
    files: dict[str, bytes | Path] = {"model.onnx": single, "model_fp16.onnx": half, PROGRAM: program.encode()}
    publish(folder, name, config(plain.manifest, 4), files, texts | {VARIANT: by_python(texts[VARIANT])})
    return Repository([folder], VARIANT).model(name)


def by_python(text: str) -> str:
    message = text_format.Parse(text, model_config_pb2.ModelConfig())
    message.backend, message.default_model_filename = "python", PROGRAM
    message.instance_group[0].kind = message.instance_group[0].KIND_CPU
    message.parameters["hilum_threads"].string_value = "1"
    return str(text_format.MessageToString(message))


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Served:
    """The same network twice: with FP16 at its door, and with FP32."""

    def __init__(self, folder: Path) -> None:
        self.thin = published(folder / "models", "thin", "fp16")
        self.wide = published(folder / "models", "wide", "fp32")
        self.server = triton_server.triton(folder / "models", folder, f"--model-config-name={VARIANT}")
        self.address = ""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("triton"))
    with served.server as served.address:
        yield served


BOTH_WAYS = pytest.mark.parametrize("shared", [True, False], ids=["shared memory", "wire"])


@BOTH_WAYS
def test_a_mask_through_half_is_that_of_the_embedded_engine_on_the_same_file(served: Served, shared: bool) -> None:
    here = open_engine(served.thin, EngineSettings(threads=1))
    there = TritonEngine(served.thin, served.address, How(shared_memory=shared))
    for output in ("logits", "features"):
        expected, got = here.run(WINDOWS, output), there.run(WINDOWS, output)
        assert got.dtype == np.float32 and got.flags.writeable
        assert np.abs(got - expected).max() < 2e-3 * np.abs(expected).max()
        np.testing.assert_array_equal(got, got.astype(np.float16))
        weighted = there.run_weighted(WINDOWS, output)
        np.testing.assert_allclose(weighted, here.run_weighted(WINDOWS, output), atol=2e-2)
    mask = Segmenter(served.thin, there).segment(VOLUME).labels
    own = Segmenter(served.thin, here).segment(VOLUME).labels
    assert len(np.unique(own)) == 3
    assert (mask != own).mean() < 1e-3
    assert (there.shares_memory, there.precision) == (shared, VARIANT)
    there.close()


@BOTH_WAYS
@pytest.mark.parametrize("output", ["logits", "features"])
def test_half_of_the_bytes_travel_each_way(served: Served, shared: bool, output: Output) -> None:
    counted = {}
    for model in (served.thin, served.wide):
        with Relay(served.address) as relay:
            sent, answered = watched(relay)
            engine = TritonEngine(model, relay.address, How(shared_memory=shared))
            engine.run(WINDOWS, output)
            assert engine.shares_memory == shared
            engine.close()
        counted[model.name] = [sum(sent), sum(answered)]
    values = [WINDOWS.size, WINDOWS.size * (3 if output == "logits" else 4)]
    assert counted == {"thin": [2 * each for each in values], "wide": [4 * each for each in values]}


def watched(relay: Relay) -> tuple[list[int], list[int]]:
    """Bytes of windows and of answers that pass by, or that the request says to lie in shared memory."""
    sent: list[int] = []
    answered: list[int] = []

    def request(order: Any) -> None:
        sent.extend([*map(len, order.raw_input_contents), *map(shared_bytes, order.inputs)])
        answered.extend(map(shared_bytes, order.outputs))

    relay.twist = request
    relay.spoil = lambda message: answered.extend(map(len, message.raw_output_contents))
    return sent, answered


def shared_bytes(tensor: Any) -> int:
    key = "shared_memory_byte_size"
    return int(tensor.parameters[key].int64_param) if key in tensor.parameters else 0


@BOTH_WAYS
def test_a_window_beyond_half_never_travels(served: Served, shared: bool) -> None:
    engine: Engine
    wide = TritonEngine(served.wide, served.address, How(shared_memory=shared))
    thin = TritonEngine(served.thin, served.address, How(shared_memory=shared))
    large = WINDOWS.copy()
    large[1, 0, 3, 2, 1] = 7e4
    before = wide.run(WINDOWS)
    for engine in (thin, thin.for_job(True, lambda: False)):
        with pytest.raises(EngineError, match="in FP16, which cannot hold a value") as caught:
            engine.run(large)
        assert caught.value.code == "beyond_fp16"
        answer = engine.run(WINDOWS)
        assert np.abs(answer - before).max() < 1e-2 * np.abs(before).max()
    thin.close()
    wide.close()


def test_a_server_whose_type_hilum_does_not_know_is_one_clear_error(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hilum_inference.engines.triton.engine.types_of", lambda _: {"image": "BF16"})
    engine = TritonEngine(served.thin, served.address)
    with pytest.raises(EngineError, match="serves thin in BF16; Hilum sends FP32 and FP16"):
        engine.run(WINDOWS)
    engine.close()
