"""Building a plan, as far as it goes without a GPU: the real builder (TensorRT-RTX), a made-up driver, real files.

What only a GPU shows is marked ``gpu`` and says so when it is skipped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from google.protobuf import text_format
from hilum_gpu import HAS_GPU, MadeUpTensorRT, driver
from hilum_testing import Tiny, manifest, onnx_bytes
from tritonclient.grpc import model_config_pb2 as triton
from typer.testing import CliRunner

from hilum_client.cli import VERBS, Verb, main
from hilum_export import tensorrt as module
from hilum_export.engine_cli import NO_GPU_EXIT, build_engine_app
from hilum_export.engine_manifest import check_engine, digest, read_manifest, write_manifest
from hilum_export.errors import EngineBuildError, ExportError, NoGpuError
from hilum_export.gpu import Cuda
from hilum_export.noise import noise
from hilum_export.precision import Precision, to_half
from hilum_export.repository import Profile, config, configs
from hilum_export.tensorrt import Host, build_engine, find_model, host, plan_file
from hilum_export.tensorrt_api import TensorRT, member
from hilum_export.tensorrt_build import COMPATIBILITY, Options
from hilum_export.tensorrt_engine import TensorRTEngine, engine_gates
from hilum_inference.errors import EngineError, ModelError, OutOfMemoryError
from hilum_inference.manifest import Digests, Head
from hilum_inference.repository import publish

rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: no plan is built")

pytestmark = pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")  # timing caches

GPU = pytest.mark.gpu


def published(folder: Path, half: bool = True, other: bytes | None = None) -> Path:
    """A model with two networks that answer alike; the second stands for FP16."""
    net = Tiny()
    single = onnx_bytes(net, (16, 16, 16))
    model = onnx.load_from_string(single)
    model.graph.doc_string = "the other precision"
    other = other or model.SerializeToString()
    head = Head.from_arrays(net.head.weight.detach().numpy()[:, :, 0, 0, 0], net.state_dict()["head.bias"].numpy())
    described = manifest(head=head.model_dump(), tensors={"features": "features"})
    fields = {"weights": digest_of(single), "preprocessing": described.preprocessing_digest()}
    described = described.model_copy(update={"digests": Digests(**fields)})
    networks: dict[Precision, str] = {"fp32": digest_of(single)}
    files: dict[str, bytes | Path] = {"model.onnx": single, "model.py": b""}
    if half:
        files["model_fp16.onnx"], networks["fp16"] = other, digest_of(other)
    publish(folder, described.name, config(described, 4), files, configs(described, 4, networks))
    return folder / described.name


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> Cuda:
    return Cuda([str(driver(tmp_path_factory.mktemp("driver")))])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return published(tmp_path / "models")


def machine(gpu: Cuda, model: Path, **changes: Any) -> Host:
    return Host(cast(TensorRT, MadeUpTensorRT(rtx, model / "1" / "model_fp16.onnx", **changes)), gpu)


def plans(path: Path) -> dict[str, str]:
    parsed = text_format.Parse(path.read_text(), triton.ModelConfig())
    return dict(parsed.cc_model_filenames)


def test_a_plan_with_its_record_and_its_measurements(model: Path, gpu: Cuda) -> None:
    done = build_engine(machine(gpu, model), find_model(model, None), usual=2, options=Options(workspace=2**28))
    assert done.plan == model.resolve() / "1" / "model_8.6.plan"
    record = read_manifest(done.plan)
    assert record == done.manifest == check_engine(done.plan, model / "1" / "model_fp16.onnx")
    assert record.profile == Profile(1, 2, 4)
    assert record.window == (1, 16, 16, 16)
    assert (record.tensorrt, record.gpu.name, record.gpu.driver) == ("10.13.2", "Made Up GPU", "CUDA 12.4")
    assert record.plan_sha256 == digest(done.plan) and record.onnx == "model_fp16.onnx"
    assert "STRONGLY_TYPED" in record.flags
    assert json.loads((model / "1" / "model_8.6.plan.json").read_text())["format"] == "hilum.engine/1"
    assert (model / "1" / "model_8.6.timing").stat().st_size > 0
    assert not list(model.rglob("*.part"))
    for home in (model, model / "1"):
        assert plans(home / "configs" / "tensorrt-fp16.pbtxt")["8.6"] == "model_8.6.plan"


def test_a_gpu_that_export_did_not_know_is_named_in_the_configurations(model: Path, gpu: Cuda) -> None:
    module.name_plan(model, 1, "13.7")
    before = (model / "configs" / "python-fp32.pbtxt").read_bytes()
    for home in (model, model / "1"):
        assert plans(home / "configs" / "tensorrt-fp16.pbtxt")["13.7"] == "model_13.7.plan"
    (model / "1" / "model.sig").write_text("signed")
    signed = (model / "1" / "configs" / "tensorrt-fp16.pbtxt").read_bytes()
    module.name_plan(model, 1, "13.8")
    assert "13.8" in plans(model / "configs" / "tensorrt-fp16.pbtxt")
    assert (model / "1" / "configs" / "tensorrt-fp16.pbtxt").read_bytes() == signed
    assert (model / "configs" / "python-fp32.pbtxt").read_bytes() == before
    assert find_model(model, 1).variant == "tensorrt-fp16"


def test_what_it_is_built_with_is_written_down(model: Path, gpu: Cuda) -> None:
    found = find_model(model, 1)
    done = build_engine(machine(gpu, model), found, options=Options(compatibility="same-cc"))
    assert done.manifest.flags == ("STRONGLY_TYPED", "SAME_COMPUTE_CAPABILITY")
    assert done.manifest.compatibility == "same-cc" and not done.manifest.version_compatible


def test_measurements_of_another_gpu_are_no_obstacle(model: Path, gpu: Cuda, tmp_path: Path) -> None:
    cache = tmp_path / "shared.timing"
    cache.write_bytes(b"of something else")
    build_engine(machine(gpu, model), find_model(model, 1), timing_cache=cache)
    assert cache.read_bytes() != b"of something else"
    assert not (model / "1" / "model_8.6.timing").exists()


@pytest.mark.parametrize(
    ("usual", "most", "said"),
    [(None, 2, "Triton may put 4 windows together"), (9, None, "1 to 4 windows cannot be tuned for 9")],
)
def test_batches_that_triton_could_not_use(model: Path, gpu: Cuda, usual: int, most: int, said: str) -> None:
    with pytest.raises(EngineBuildError, match=said):
        build_engine(machine(gpu, model), find_model(model, 1), usual, most)
    assert not plan_file(model, 1, "8.6").exists()


def test_a_plan_that_does_not_load_is_not_kept(model: Path, gpu: Cuda) -> None:
    with pytest.raises(EngineBuildError, match=r"TensorRT 10\.13\.2 cannot load the plan"):
        build_engine(machine(gpu, model, loads=False), find_model(model, 1))
    assert not list(model.rglob("*.plan*"))


def test_the_real_runtime_does_not_pretend(model: Path, gpu: Cuda) -> None:
    if HAS_GPU:
        pytest.skip("there is a GPU here")
    with pytest.raises(EngineBuildError, match="cannot load the plan"):
        build_engine(Host(rtx, gpu), find_model(model, 1))
    assert not list(model.rglob("*.plan*"))


def test_a_model_without_fp16_and_a_changed_one(tmp_path: Path) -> None:
    model = published(tmp_path / "single", half=False)
    with pytest.raises(ExportError, match=r"published without model_fp16\.onnx"):
        find_model(model, None)
    with pytest.raises(ExportError, match="no model in"):
        find_model(tmp_path, None)
    changed = published(tmp_path / "changed")
    (changed / "1" / "model_fp16.onnx").write_bytes(b"\0")
    with pytest.raises(ModelError, match=r"model_fp16\.onnx of version 1 was changed"):
        find_model(changed, None)


def test_the_plan_runs_as_every_other_engine(model: Path, gpu: Cuda) -> None:
    here = machine(gpu, model)
    found = find_model(model, 1)
    plan = build_engine(here, found).plan
    engine = TensorRTEngine(found, plan, here)
    windows = noise(1, (16, 16, 16), 6)  # more than the plan takes at once
    with torch.inference_mode():
        expected = Tiny()(torch.from_numpy(windows)).numpy()
    assert engine.ready() and engine.precision == "f16"
    np.testing.assert_allclose(engine.run(windows), expected, atol=1e-4)
    features = engine.run(windows[:1], "features")
    assert features.shape == (1, 4, 16, 16, 16) and features.flags.writeable
    weighted = engine.run_weighted(windows[:2])
    assert weighted.shape == (2, 16, 16, 16, 3)
    with pytest.raises(ValueError, match="the network takes"):
        engine.run(windows[:, :, :8])
    engine.close()
    assert not engine.ready()


def test_a_plan_with_half_at_its_door_takes_and_gives_float32_all_the_same(tmp_path: Path, gpu: Cuda) -> None:
    single, half = tmp_path / "single.onnx", tmp_path / "half.onnx"
    single.write_bytes(onnx_bytes(Tiny(), (16, 16, 16)))
    to_half(single, half, "fp16")
    model = published(tmp_path / "models", other=half.read_bytes())
    here, found = machine(gpu, model), find_model(model, 1)
    done = build_engine(here, found)
    assert done.manifest.wire == read_manifest(done.plan).wire == "fp16"
    engine = TensorRTEngine(found, done.plan, here)
    windows = noise(1, (16, 16, 16), 6)
    with torch.inference_mode():
        expected = Tiny()(torch.from_numpy(windows)).numpy()
    answer = engine.run(windows)
    assert answer.dtype == np.float32
    assert 0 < np.abs(answer - expected).max() < 1e-2 * np.abs(expected).max()
    with pytest.raises(EngineError, match="in FP16, which cannot hold"):
        engine.run(np.full_like(windows, 1e6))
    engine.close()
    assert all(gate.passed for gate in engine_gates(model, None, windows, here))
    write_manifest(done.plan, dataclasses.replace(done.manifest, wire="fp32"))
    with pytest.raises(EngineBuildError, match="does not take and give FP32, as its record says"):
        TensorRTEngine(found, done.plan, here)


def test_a_record_of_a_plan_that_says_nothing_of_its_door_means_fp32(model: Path, gpu: Cuda) -> None:
    plan = build_engine(machine(gpu, model), find_model(model, 1)).plan
    path = plan.with_name(f"{plan.name}.json")
    fields = json.loads(path.read_text())
    assert fields.pop("wire") == "fp32"
    path.write_text(json.dumps(fields))
    TensorRTEngine(find_model(model, 1), plan, machine(gpu, model)).close()


def test_a_plan_passes_the_gates_and_a_wrong_one_does_not(model: Path, gpu: Cuda) -> None:
    here = machine(gpu, model)
    build_engine(here, find_model(model, 1))
    windows = noise(1, (16, 16, 16))
    gates = engine_gates(model, None, windows, here)
    assert [gate.name for gate in gates] == [
        "TensorRT against FP16: logits",
        "TensorRT against FP16: features",
        "TensorRT against FP16: labels",
        "TensorRT against FP32: logits",
        "TensorRT against FP32: features",
        "TensorRT against FP32: labels",
        "TensorRT head(features) = logits",
    ]
    assert all(gate.passed for gate in gates)
    wrong = engine_gates(model, None, windows, machine(gpu, model, gain=1.05))
    assert {gate.name for gate in wrong if not gate.passed} >= {gates[0].name, gates[3].name}
    assert {gate.bound for gate in engine_gates(model, 1, windows, here, real=True)} == {2e-2, 2e-3, 1e-2}
    negative = engine_gates(model, None, windows, machine(gpu, model, gain=-1.0))
    assert "TensorRT against FP32: labels" in {gate.name for gate in negative if not gate.passed}
    silent = engine_gates(model, None, windows, machine(gpu, model, gain=float("nan")))
    assert not any(gate.passed for gate in silent if "labels" not in gate.name)


def test_no_plan_for_this_gpu(model: Path, gpu: Cuda) -> None:
    with pytest.raises(EngineBuildError, match=r"no plan model_8\.6\.plan; build it"):
        engine_gates(model, None, noise(1, (16, 16, 16)), machine(gpu, model))


def test_a_plan_with_other_tensors_than_the_manifests(model: Path, gpu: Cuda, tmp_path: Path) -> None:
    here = machine(gpu, model)
    plan = build_engine(here, find_model(model, 1)).plan
    other = tmp_path / "other.onnx"
    other.write_bytes(onnx_bytes(Tiny(classes=2), (16, 16, 16)))
    with pytest.raises(EngineBuildError, match="the manifest promises"):
        TensorRTEngine(find_model(model, 1), plan, Host(cast(TensorRT, MadeUpTensorRT(rtx, other)), gpu))


def test_a_gpu_that_is_full(model: Path, gpu: Cuda, tmp_path: Path) -> None:
    small = Cuda([str(driver(tmp_path, limit=1000))])
    plan = build_engine(machine(gpu, model), find_model(model, 1)).plan
    engine = TensorRTEngine(find_model(model, 1), plan, machine(small, model))
    with pytest.raises(OutOfMemoryError, match="GPU ran out of memory"):
        engine.run(noise(1, (16, 16, 16)))


def test_no_driver_and_no_gpu(tmp_path: Path) -> None:
    with pytest.raises(NoGpuError, match="no NVIDIA GPU with its driver"):
        Cuda(["libcuda-that-is-not-there.so.1"])
    with pytest.raises(NoGpuError, match="no NVIDIA GPU with its driver"):
        Cuda([str(driver(tmp_path, init=100))])


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU here")
def test_without_a_gpu_the_command_says_what_to_do_and_ends_with_3(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VERBS, "build-engine", Verb("hilum_export.engine_cli:build_engine_app", "export", ""))
    assert main(["build-engine", str(model)]) == NO_GPU_EXIT == 3
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith("hilum: Here is no NVIDIA GPU") and "run the same command there" in said.err
    assert main(["build-engine", str(model.parent)]) == 1  # a fault of the caller is told first


def test_without_tensorrt(monkeypatch: pytest.MonkeyPatch, gpu: Cuda) -> None:
    monkeypatch.setattr(module, "Cuda", lambda: gpu)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(NoGpuError, match="TensorRT's Python package is not installed here"):
        host()
    monkeypatch.setitem(sys.modules, "tensorrt", MadeUpTensorRT(rtx, Path()))
    assert host().here.tensorrt == "10.13.2"
    monkeypatch.setattr(MadeUpTensorRT, "__version__", "10.9.0")
    with pytest.raises(EngineBuildError, match=r"strongly typed plans need 10\.12"):
        host()


def test_the_command_builds(model: Path, gpu: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "host", lambda: machine(gpu, model))
    words = [str(model), "--opt-batch", "2", "--workspace", "0.5", "--hardware-compatibility", "ampere+"]
    said = CliRunner().invoke(build_engine_app, words)
    assert said.exit_code == 0, said.output
    assert "1 to 4 windows, tuned for 2" in said.output and "Made Up GPU (8.6), TensorRT 10.13.2" in said.output
    assert read_manifest(model / "1" / "model_8.6.plan").compatibility == "ampere+"
    assert "signed" not in said.output
    (model / "1" / "model.sig").write_text("signed")
    said = CliRunner().invoke(build_engine_app, [str(model)])
    assert said.exit_code == 0 and "hilum sign covers the plan, too" in said.output


def test_a_plan_that_answers_otherwise_is_removed(model: Path, gpu: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "host", lambda: machine(gpu, model, gain=1.05))
    said = CliRunner().invoke(build_engine_app, [str(model)])
    assert said.exit_code == 1 and "The plan was removed" in said.output
    assert not list((model / "1").glob("*.plan*"))


def test_every_name_that_is_asked_for_is_in_tensorrt_11() -> None:
    lean = pytest.importorskip(
        "tensorrt_lean", reason="tensorrt_lean is not installed: TensorRT 11's names are unchecked"
    )
    assert lean.__version__.split(".")[0] == "11"
    wanted = [("BuilderFlag", "VERSION_COMPATIBLE"), ("MemoryPoolType", "WORKSPACE"), ("DataType", "FLOAT")]
    wanted += [("DataType", "HALF")]
    wanted += [("HardwareCompatibilityLevel", name) for name in COMPATIBILITY.values()]
    assert [pair for pair in wanted if member(lean, *pair) is None] == []
    assert member(lean, "BuilderFlag", "FP16") is None  # halves must stand in the graph
    assert {"num_io_tensors", "get_tensor_name", "get_tensor_shape", "get_tensor_dtype"} <= set(dir(lean.ICudaEngine))
    assert "create_execution_context" in dir(lean.ICudaEngine)
    assert {"set_input_shape", "set_tensor_address", "execute_async_v3"} <= set(dir(lean.IExecutionContext))
    assert "engine_host_code_allowed" in dir(lean.Runtime)
    assert {"log"} <= set(dir(lean.ILogger)) and "deserialize_cuda_engine" in dir(lean.Runtime)


class Watched(MadeUpTensorRT):
    """Remembers what its builder was asked for."""

    def Builder(self, logger: Any) -> Any:  # noqa: N802
        self.flags: list[int] = []
        self.configs: list[Any] = []
        self.real = self._rtx.Builder(logger)
        return self

    def create_network(self, flags: int) -> Any:
        self.flags.append(flags)
        return self.real.create_network(flags)

    def create_builder_config(self) -> Any:
        self.configs.append(self.real.create_builder_config())
        return self.configs[-1]

    def create_optimization_profile(self) -> Any:
        return self.real.create_optimization_profile()

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        return self.real.build_serialized_network(network, config)


class WithoutFlags(Watched):
    NetworkDefinitionCreationFlag = None


@pytest.mark.parametrize("kind", [Watched, WithoutFlags])
def test_what_tensorrt_is_asked_for(kind: type[Watched], model: Path, gpu: Cuda) -> None:
    library = kind(rtx, model / "1" / "model_fp16.onnx")
    options = Options(workspace=2**27, compatibility="ampere+")
    done = build_engine(Host(cast(TensorRT, library), gpu), find_model(model, 1), 2, 8, options)
    assert (done.manifest.profile, done.manifest.flags[1:]) == (Profile(1, 2, 8), ("AMPERE_PLUS",))
    typed = 1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert library.flags == [typed if kind is Watched else 0]  # TensorRT 11 may drop the flag: all is strongly typed
    (config,) = library.configs
    assert config.get_memory_pool_limit(rtx.MemoryPoolType.WORKSPACE) == 2**27
    assert config.num_optimization_profiles == 1
    assert not config.get_flag(rtx.BuilderFlag.VERSION_COMPATIBLE)


def test_an_option_that_this_tensorrt_lacks(model: Path, gpu: Cuda) -> None:
    class Older(MadeUpTensorRT):
        HardwareCompatibilityLevel = type("Levels", (), {"NONE": 0})

    here = Host(cast(TensorRT, Older(rtx, model / "1" / "model_fp16.onnx")), gpu)
    with pytest.raises(EngineBuildError, match=r"no HardwareCompatibilityLevel\.SAME_COMPUTE_CAPABILITY"):
        build_engine(here, find_model(model, 1), options=Options(compatibility="same-cc"))


@GPU
@pytest.mark.skipif(not HAS_GPU, reason="no GPU: no real plan is built, loaded or run here")
def test_on_a_gpu_a_real_plan_is_built_loaded_and_agrees(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt", reason="no TensorRT: no real plan is built, loaded or run here")
    single, half = tmp_path / "single.onnx", tmp_path / "half.onnx"
    single.write_bytes(onnx_bytes(Tiny(), (16, 16, 16)))
    to_half(single, half)
    model = published(tmp_path / "models", other=half.read_bytes())
    build_engine(host(), find_model(model, None))
    gates = engine_gates(model, None, noise(1, (16, 16, 16), 4))
    assert all(gate.passed for gate in gates), [str(gate) for gate in gates]
