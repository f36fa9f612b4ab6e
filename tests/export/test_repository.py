from __future__ import annotations

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from hilum_export.export import complete
from hilum_export.repository import config
from hilum_inference.manifest import PARAMETER, parse_manifest
from hilum_inference.pbtxt import parse_pbtxt
from hilum_search.trained import Trained


def test_triton_and_the_heart_read_the_same_configuration(trained: Trained) -> None:
    manifest = complete(trained, "0" * 64)
    text = config(manifest, features=3, max_batch=4)
    theirs = text_format.Parse(text, triton.ModelConfig())
    ours = parse_pbtxt(text)
    assert theirs.name == ours["name"][0] == "tiny"
    assert theirs.backend == "onnxruntime"
    assert theirs.max_batch_size == 4
    assert theirs.default_model_filename == "model.onnx"
    assert theirs.HasField("dynamic_batching")
    assert [(t.name, list(t.dims), t.data_type) for t in theirs.input] == [("image", [2, 16, 16, 8], triton.TYPE_FP32)]
    assert [(t.name, list(t.dims)) for t in theirs.output] == [
        ("logits", [2, 16, 16, 8]),
        ("features", [3, 16, 16, 8]),
    ]
    assert parse_manifest(theirs.parameters[PARAMETER].string_value) == manifest
    assert parse_manifest(ours["parameters"][0]["value"][0]["string_value"][0]) == manifest
