"""Configurations: whole, alike at the door, read alike by Triton's classes and by ours, and taken by a real Triton."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import triton_server
from google.protobuf import text_format
from hilum_testing import SIZE, Tiny, manifest, onnx_bytes
from tritonclient.grpc import model_config_pb2 as triton

from hilum_export.errors import ExportError
from hilum_export.export import complete
from hilum_export.repository import LARGEST_BATCH, NETWORKS, PROGRAM, VARIANTS, Profile, config, configs
from hilum_inference.manifest import PARAMETER, Manifest, parse_manifest
from hilum_inference.pbtxt import parse_pbtxt
from hilum_inference.repository import Repository, publish
from hilum_search.trained import Trained

SHA256 = {precision: digit * 64 for precision, digit in zip(NETWORKS, "123", strict=True)}


def parsed(text: str) -> triton.ModelConfig:
    return text_format.Parse(text, triton.ModelConfig())


@pytest.fixture
def described(trained: Trained) -> Manifest:
    return complete(trained, "0" * 64)


@pytest.fixture
def texts(described: Manifest) -> dict[str, str]:
    return configs(described, 3, SHA256)


def test_triton_and_the_heart_read_the_same_configuration(described: Manifest) -> None:
    text = config(described, features=3, max_batch=4)
    theirs = parsed(text)
    ours = parse_pbtxt(text)
    assert theirs.name == ours["name"][0] == "tiny"
    assert theirs.backend == "onnxruntime"
    assert theirs.max_batch_size == 4
    assert theirs.default_model_filename == "model.onnx"
    assert [(t.name, list(t.dims), t.data_type) for t in theirs.input] == [("image", [2, 16, 16, 8], triton.TYPE_FP32)]
    assert [(t.name, list(t.dims)) for t in theirs.output] == [
        ("logits", [2, 16, 16, 8]),
        ("features", [3, 16, 16, 8]),
    ]
    assert parse_manifest(theirs.parameters[PARAMETER].string_value) == described
    inside = {each["key"][0]: each["value"][0]["string_value"][0] for each in ours["parameters"]}
    assert parse_manifest(inside[PARAMETER]) == described


def test_all_variants_are_alike_at_the_door(texts: dict[str, str]) -> None:
    assert list(texts) == list(VARIANTS)
    first = parsed(texts["onnxruntime-fp32"])
    for name, text in texts.items():
        theirs, ours = parsed(text), parse_pbtxt(text)
        assert (theirs.name, list(theirs.input), list(theirs.output)) == (
            first.name,
            list(first.input),
            list(first.output),
        )
        assert theirs.max_batch_size == LARGEST_BATCH == ours["max_batch_size"][0]
        assert theirs.parameters["hilum_variant"].string_value == name
        assert theirs.dynamic_batching == first.dynamic_batching and theirs.model_warmup == first.model_warmup
        assert theirs.version_policy.latest.num_versions == 1


def test_what_runs_the_fp16_file_says_fp16_where_that_was_chosen(described: Manifest, texts: dict[str, str]) -> None:
    thin = configs(described, 3, SHA256, wire="fp16")
    halves = ("onnxruntime-fp16", "onnxruntime-trt-fp16", "tensorrt-fp16")
    for name, text in thin.items():
        theirs = parsed(text)
        warmed = [each.inputs["image"] for each in theirs.model_warmup]
        kinds = {each.data_type for each in (*theirs.input, *theirs.output, *warmed)}
        assert kinds == {triton.TYPE_FP16 if name in halves else triton.TYPE_FP32}
        assert text.replace("TYPE_FP16", "TYPE_FP32") == texts[name]


def test_each_variant_names_its_network_and_carries_its_digest(texts: dict[str, str]) -> None:
    for name, text in texts.items():
        precision = VARIANTS[name].precision
        assert name.endswith(f"-{precision}")
        parameters = parsed(text).parameters
        assert parameters["hilum_network"].string_value == NETWORKS[precision]
        assert parse_manifest(parameters[PARAMETER].string_value).digests.weights == SHA256[precision]


def test_who_runs_a_variant_and_where(texts: dict[str, str]) -> None:
    place = triton.ModelInstanceGroup
    expected = {
        "onnxruntime-fp32": ("onnxruntime", "model.onnx", place.KIND_AUTO),
        "onnxruntime-fp16": ("onnxruntime", "model_fp16.onnx", place.KIND_GPU),
        "onnxruntime-trt-fp16": ("onnxruntime", "model_fp16.onnx", place.KIND_GPU),
        "tensorrt-fp16": ("tensorrt", "model.plan", place.KIND_GPU),
        "python-fp32": ("python", "model.py", place.KIND_CPU),
        "python-int8": ("python", "model.py", place.KIND_CPU),
    }
    found = {}
    for name, text in texts.items():
        theirs = parsed(text)
        (group,) = theirs.instance_group
        found[name] = (theirs.backend, theirs.default_model_filename, group.kind)
        assert group.count == 1
        assert list(group.profile) == (["0"] if theirs.backend == "tensorrt" else [])
        assert ("hilum_runtime" in theirs.parameters) == (theirs.backend == "python")
    assert found == expected
    plans = parsed(texts["tensorrt-fp16"]).cc_model_filenames  # one for each kind of GPU, built there
    assert plans["8.6"] == "model_8.6.plan" and len(set(plans.values())) == len(plans) > 8
    assert not parsed(texts["onnxruntime-fp16"]).cc_model_filenames


def test_clicks_go_before_the_night_and_neither_queue_grows_without_end(texts: dict[str, str]) -> None:
    batching = parsed(texts["onnxruntime-fp32"]).dynamic_batching
    assert (batching.priority_levels, batching.default_priority_level) == (2, 2)
    assert batching.default_queue_policy == batching.priority_queue_policy[2]
    for level in (1, 2):
        policy = batching.priority_queue_policy[level]
        assert policy.timeout_action == triton.ModelQueuePolicy.REJECT and policy.allow_timeout_override
        assert policy.default_timeout_microseconds > 0 and policy.max_queue_size > 0
    assert batching.priority_queue_policy[1].default_timeout_microseconds < (
        batching.priority_queue_policy[2].default_timeout_microseconds
    )


def test_the_smallest_and_the_largest_batch_are_warmed_up(described: Manifest) -> None:
    def sizes(profile: Profile) -> list[int]:
        warmup = parsed(configs(described, 3, SHA256, profile)["python-int8"]).model_warmup
        assert all(list(each.inputs["image"].dims) == [2, 16, 16, 8] for each in warmup)
        assert all(each.inputs["image"].zero_data for each in warmup)
        return [each.batch_size for each in warmup]

    assert sizes(Profile(1, 2, 8)) == [1, 8]
    assert sizes(Profile(1, 1, 1)) == [1]


def test_tensorrt_in_onnx_runtime_gets_the_profile_and_a_cache_of_these_weights(described: Manifest) -> None:
    def options(sha256: str) -> dict[str, str]:
        message = parsed(configs(described, 3, {"fp16": sha256}, Profile(1, 2, 8))["onnxruntime-trt-fp16"])
        (accelerator,) = message.optimization.execution_accelerators.gpu_execution_accelerator
        assert accelerator.name == "tensorrt" and list(message.dynamic_batching.preferred_batch_size) == [2]
        return dict(accelerator.parameters)

    found = options("ab" * 32)
    assert found["trt_profile_min_shapes"] == "image:1x2x16x16x8"
    assert found["trt_profile_opt_shapes"] == "image:2x2x16x16x8"
    assert found["trt_profile_max_shapes"] == "image:8x2x16x16x8"
    assert found["trt_engine_cache_enable"] == found["trt_timing_cache_enable"] == "1"
    assert "precision_mode" not in found  # FP16 is in the network
    assert not Path(found["trt_engine_cache_path"]).is_absolute()
    assert found["trt_engine_cache_path"] != options("cd" * 32)["trt_engine_cache_path"]


def test_a_precision_that_was_not_published_has_no_variants(described: Manifest) -> None:
    assert list(configs(described, 3, {"fp32": "1" * 64})) == ["onnxruntime-fp32", "python-fp32"]
    assert list(configs(described, 3, {"int8": "1" * 64})) == ["python-int8"]


@pytest.mark.parametrize("profile", [Profile(0, 1, 1), Profile(2, 1, 4), Profile(1, 5, 4), Profile(-1, 1, 4)])
def test_a_profile_upside_down_is_refused(described: Manifest, profile: Profile) -> None:
    with pytest.raises(ExportError, match="1 <= least <= usual <= most"):
        configs(described, 3, SHA256, profile)


@pytest.mark.parametrize(
    ("size", "features", "said"),
    [
        ((16, 0, 8), 3, "cannot have windows of"),
        ((16, 16, 8), 0, "0 features"),
        ((1024, 1024, 512), 3, "less than 2147483648 in one tensor"),
    ],
)
def test_windows_that_nothing_can_run_are_refused(
    described: Manifest, size: tuple[int, int, int], features: int, said: str
) -> None:
    windows = described.windows.model_copy(update={"size": size})
    with pytest.raises(ExportError, match=said):
        configs(described.model_copy(update={"windows": windows}), features, SHA256)


def test_an_unknown_precision_is_refused(described: Manifest) -> None:
    with pytest.raises(ExportError, match="no precision 'fp8'; there are fp32, fp16, int8"):
        configs(described, 3, {"fp8": "1" * 64})  # type: ignore[dict-item]


MODEL_PY = """
import json
import pathlib
import numpy as np
import triton_python_backend_utils as pb


class TritonPythonModel:
    def initialize(self, args):
        self.config = json.loads(args["model_config"])
        self.seen = pathlib.Path(args["model_repository"]).parents[1] / "seen"

    def execute(self, requests):
        answers = []
        images = [pb.get_input_tensor_by_name(request, "image").as_numpy() for request in requests]
        with self.seen.open("a") as file:
            file.write(f"{sum(map(len, images))} {max(map(np.max, images))}\\n")
        for request, image in zip(requests, images):
            names = list(request.requested_output_names())
            sizes = {output["name"]: output["dims"] for output in self.config["output"]}
            tensors = [pb.Tensor(n, np.zeros((len(image), *sizes[n]), np.float32)) for n in names]
            answers.append(pb.InferenceResponse(tensors))
        return answers
"""


@pytest.mark.triton
@pytest.mark.skipif(not triton_server.installed(), reason="no test Triton: run make triton-env")
def test_a_real_triton_takes_a_variant_by_name_with_priorities_policies_and_warm_up(tmp_path: Path) -> None:
    from tritonclient.grpc import InferenceServerClient, InferInput

    data = onnx_bytes(Tiny(), SIZE)
    described = manifest()
    texts = configs(described, 4, {"fp32": "", "int8": ""})
    files = {"model.onnx": data, "model_int8.onnx": data, PROGRAM: MODEL_PY.encode()}
    publish(tmp_path / "models", "tiny", texts["onnxruntime-fp32"], files, texts)
    assert Repository([tmp_path / "models"], "python-int8").model().onnx().name == "model_int8.onnx"
    with triton_server.triton(tmp_path / "models", tmp_path, "--model-config-name=python-int8") as address:
        client: Any = InferenceServerClient(address)
        told = client.get_model_config("tiny", as_json=True)["config"]
        assert (tmp_path / "seen").read_text().split() == ["1", "0.0", "4", "0.0"]  # before any request
        image = InferInput("image", [2, 1, *SIZE], "FP32")
        image.set_data_from_numpy(np.ones((2, 1, *SIZE), np.float32))
        for priority in (0, 1, 2):
            reply = client.infer("tiny", [image], priority=priority, timeout=5_000_000)
            assert reply.as_numpy("logits").shape == (2, 3, *SIZE)
        client.close()
    assert told["backend"] == "python" and told["max_batch_size"] == 4
    assert told["parameters"]["hilum_variant"]["string_value"] == "python-int8"
    batching = told["dynamic_batching"]
    assert (batching["priority_levels"], batching["default_priority_level"]) == ("2", "2")
    assert batching["priority_queue_policy"]["1"]["default_timeout_microseconds"] == "30000000"
    assert batching["default_queue_policy"]["max_queue_size"] == 256
    assert [group["kind"] for group in told["instance_group"]] == ["KIND_CPU"]
