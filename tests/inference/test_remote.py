"""What a Triton's configuration of a model tells, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import text_format
from hilum_testing import config_text, manifest
from tritonclient.grpc import model_config_pb2 as triton

from hilum_inference.errors import ModelError, UnknownModelError
from hilum_inference.remote import _described


def config(variant: str = "") -> Any:
    text = config_text(manifest(), variant, "model.onnx", b"weights")
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
