"""The SDK's verbs in this process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hilum_testing import SIZE, Tiny, config_text, manifest, onnx_bytes, phantom

from hilum_inference.errors import ModelError
from hilum_inference.local import LocalClient
from hilum_inference.repository import publish
from hilum_inference.volume import Volume


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A model whose variant ``python-int8`` runs another network."""
    plain, other = onnx_bytes(Tiny(), SIZE), onnx_bytes(Tiny(features=2), SIZE)
    described = manifest(provenance={"dice_gate": "skipped"})
    variant = config_text(described, "python-int8", "other.onnx", other)
    files = {"model.onnx": plain, "other.onnx": other}
    publish(
        tmp_path, "tiny", config_text(described, "onnxruntime-fp32", weights=plain), files, {"python-int8": variant}
    )
    return tmp_path


def test_a_variant_is_run_and_named(models: Path) -> None:
    volume = Volume.from_array(phantom((20, 18, 17)))
    found = {}
    for variant in (None, "python-int8"):
        client = LocalClient([models], threads=1, variant=variant)
        (told,) = client.models()
        assert (told["variants"], told["dice_gate"]) == (("python-int8",), "skipped")
        found[variant] = client.segment(volume)
        assert found[variant].report["variant"] == told["variant"] == (variant or "onnxruntime-fp32")
        client.close()
    plain, other = found.values()
    assert np.any(plain.segmentation.labels != other.segmentation.labels)
    assert plain.report["digest"] != other.report["digest"]


def test_a_version_that_is_not_served_any_more(models: Path) -> None:
    volume, network = Volume.from_array(phantom((20, 18, 17))), onnx_bytes(Tiny(features=2), SIZE)
    client = LocalClient([models], threads=1)
    first = client.segment(volume)
    described = config_text(manifest(), "onnxruntime-fp32", weights=network)
    publish(models, "tiny", described, {"model.onnx": network})
    pinned, served = client.segment(volume, model="tiny", version=1), client.segment(volume)
    assert [each.version for each in (first, pinned, served)] == [1, 1, 2]
    assert first.report["digest"] == pinned.report["digest"] != served.report["digest"]
    client.close()


def test_a_variant_that_is_not_there_is_refused(models: Path) -> None:
    client = LocalClient([models], variant="tensorrt-fp16")
    assert client.models() == []
    assert client.refused() == {"tiny": "Version 1 of tiny has no variant 'tensorrt-fp16'; it has python-int8."}
    with pytest.raises(ModelError, match="it has python-int8"):
        client.segment(Volume.from_array(phantom((20, 18, 17))), model="tiny")
