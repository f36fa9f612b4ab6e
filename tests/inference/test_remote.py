"""What a Triton's configuration of a model tells, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from hilum_testing import config_text, manifest
from tritonclient.grpc import model_config_pb2 as triton

from hilum_inference.engines.triton.engine import _check_same
from hilum_inference.errors import ModelError, UnknownModelError
from hilum_inference.remote import _agreed, _described
from hilum_inference.repository import Repository, publish


def config(variant: str = "", weights: bytes = b"weights") -> Any:
    text = config_text(manifest(), variant, "model.onnx", weights)
    return text_format.Parse(text, triton.ModelConfig())


def test_the_variant_that_is_served_is_known() -> None:
    model = _described(config("python-int8"), "tiny", 3)
    assert (model.variant, model.version, model.folder, model.network) == ("python-int8", 3, None, None)
    assert _described(config("python-int8"), "tiny", 3, "python-int8") == model
    assert _described(config(), "tiny", 3).variant == ""


@pytest.mark.parametrize(
    ("served", "said"),
    [("python-fp32", "serves the variant python-fp32 of tiny, not python-int8"), ("", "without a variant's name")],
)
def test_another_variant_than_was_asked_for_is_refused(served: str, said: str) -> None:
    with pytest.raises(UnknownModelError, match=said) as caught:
        _described(config(served), "tiny", 3, "python-int8")
    assert caught.value.code == "unknown_variant"


def test_a_model_of_somebody_else_is_refused() -> None:
    with pytest.raises(ModelError, match="has no parameter hilum_manifest"):
        _described(triton.ModelConfig(name="tiny"), "tiny", 1)


def test_a_network_that_triton_does_not_load_is_refused() -> None:
    served = config("onnxruntime-fp32")
    served.default_model_filename = "other.onnx"
    with pytest.raises(ModelError, match=r"has Triton load other\.onnx, but names model\.onnx") as caught:
        _described(served, "tiny", 1)
    assert caught.value.code == "bad_config"
    served.default_model_filename = "model.onnx"
    assert _described(served, "tiny", 1).name == "tiny"
    served.cc_model_filenames["8.9"] = "other.onnx"
    with pytest.raises(ModelError, match=r"has Triton load other\.onnx"):
        _described(served, "tiny", 1)
    served.backend = "python"
    assert _described(served, "tiny", 1).name == "tiny"


def test_a_folder_that_holds_what_is_served_in_that_variant_gives_the_files(tmp_path: Path) -> None:
    text = config_text(manifest(), "python-fp32", "model.onnx", b"weights")
    default = config_text(manifest(), weights=b"weights")
    publish(tmp_path, "tiny", default, {"model.onnx": b"weights"}, {"python-fp32": text})
    local = Repository([tmp_path])
    held = _agreed(_described(config("python-fp32"), "tiny", 1), local)
    assert (held.variant, held.folder) == ("python-fp32", tmp_path / "tiny")
    assert _agreed(_described(config(), "tiny", 1), local) == local.model()
    with pytest.raises(UnknownModelError, match="has no variant 'tensorrt-fp16'") as caught:
        _agreed(_described(config("tensorrt-fp16"), "tiny", 1), local)
    assert caught.value.code == "unknown_variant"
    with pytest.raises(ModelError, match="serves another tiny 1 than the repository holds") as other:
        _agreed(_described(config("python-fp32", b"others"), "tiny", 1), local)
    assert other.value.code == "model_changed"


def test_an_engine_refuses_a_server_that_runs_something_else() -> None:
    model = replace(_described(config("python-fp32"), "tiny", 1), variant="")
    _check_same(config("python-fp32"), model)
    _check_same(config("python-fp32"), replace(model, variant="python-fp32"))
    wrong = {
        "another tiny 1": (config("python-fp32", b"others"), model),
        "does not say which tiny 1": (triton.ModelConfig(name="tiny"), model),
        "as python-fp32, not python-int8": (config("python-fp32"), replace(model, variant="python-int8")),
        "as no variant, not python-int8": (config(), replace(model, variant="python-int8")),
    }
    for said, (served, expected) in wrong.items():
        with pytest.raises(ModelError, match=said) as caught:
            _check_same(served, expected)
        assert caught.value.code == "model_changed"
