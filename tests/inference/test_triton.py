"""The Triton engine against a real Triton server."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import triton_server
from hilum_testing import manifest, phantom, publish_tiny

from hilum_inference.engines import EngineSettings, open_engine
from hilum_inference.errors import EngineError
from hilum_inference.pipeline import Segmenter
from hilum_inference.repository import Repository, shipped_repository
from hilum_inference.volume import Volume

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not triton_server.installed(), reason="no test Triton: run make triton-env"),
]


@pytest.mark.parametrize("with_head", [False, True], ids=["logits", "features"])
def test_a_volume_through_triton_gets_the_embedded_engines_labels(tmp_path: Path, with_head: bool) -> None:
    model, _ = publish_tiny(tmp_path / "models", manifest(), features=2, with_head=with_head)
    triton_server.python_backed(tmp_path / "models", tmp_path / "served")
    volume = Volume.from_array(phantom((40, 33, 25)))
    here = Segmenter(model, open_engine(model, EngineSettings(threads=1))).segment(volume)
    with triton_server.triton(tmp_path / "served", tmp_path) as address:
        engine = open_engine(model, EngineSettings(triton=address, patience=0.5))
        there = Segmenter(model, engine).segment(volume)
        assert (there.labels != here.labels).sum() <= 1
        assert there.model["precision"] == "python-fp32"
    with pytest.raises(EngineError, match="does not answer") as caught:
        engine.run(np.zeros((1, 1, 16, 16, 16), np.float32))
    assert caught.value.code == "triton_unavailable"
    assert not engine.ready()
    engine.close()


def test_a_model_that_triton_does_not_have_is_named(tmp_path: Path) -> None:
    publish_tiny(tmp_path / "models", manifest())
    triton_server.python_backed(tmp_path / "models", tmp_path / "served")
    other, _ = publish_tiny(tmp_path / "others", manifest(name="other"))
    with (
        triton_server.triton(tmp_path / "served", tmp_path) as address,
        pytest.raises(EngineError, match="does not serve other version 1"),
        warnings.catch_warnings(),
    ):
        open_engine(other, EngineSettings(triton=address))


def test_the_shipped_model_is_accepted_by_triton_and_answers_as_the_embedded_engine(tmp_path: Path) -> None:
    model = Repository([shipped_repository()], "python-fp32").model()
    batch = np.random.default_rng(0).random((2, 1, *model.manifest.windows.size), np.float32)
    embedded = open_engine(model, EngineSettings(threads=1))
    with triton_server.triton(shipped_repository(), tmp_path) as address:
        engine = open_engine(model, EngineSettings(triton=address))
        for output in ("logits", "features"):
            here, there = embedded.run(batch, output), engine.run(batch, output)
            assert np.abs(here - there).max() <= 5e-4 * np.abs(here).max()
        engine.close()
