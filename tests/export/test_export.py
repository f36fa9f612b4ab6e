from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hilum_export import export as module
from hilum_export.errors import ExportError, GateError
from hilum_export.export import export
from hilum_export.gates import Gate
from hilum_inference.engines import EngineSettings, open_engine
from hilum_inference.repository import Repository
from hilum_inference.volume import Volume
from hilum_search.architecture import parse_architecture
from hilum_search.evaluate import open_trained
from hilum_search.network import build
from hilum_search.trained import Trained, write_ensemble, write_trained


def test_the_published_model_answers_as_the_network(run: Path, trained: Trained, tmp_path: Path) -> None:
    done = export(run, tmp_path / "models")
    model = Repository([tmp_path / "models"]).model()
    assert (model.name, model.version, model.onnx().parent) == ("tiny", 1, done.folder)
    assert model.manifest == done.manifest
    assert done.bytes == model.onnx().stat().st_size
    windows = np.random.default_rng(0).normal(0, 1, (3, 2, 16, 16, 8)).astype(np.float32)
    with torch.inference_mode():
        truth = trained.network(torch.from_numpy(windows)).numpy()
    engine = open_engine(model, EngineSettings())
    answer = engine.run(windows, "logits")
    engine.close()
    assert np.abs(answer - truth).max() < 5e-4 * np.abs(truth).max()


def test_architecture_and_record_travel_with_the_network(run: Path, trained: Trained, tmp_path: Path) -> None:
    folder = export(run, tmp_path / "models").folder
    assert json.loads((folder / "training.json").read_text()) == trained.training
    assert "family c2fnas" in (folder / "card.md").read_text()
    assert parse_architecture((folder / "architecture.json").read_bytes()) == trained.architecture


def test_an_ensemble_is_published_as_one_network(trained: Trained, tmp_path: Path) -> None:
    image = torch.rand(2, 2, 16, 16, 8)
    answers = []
    for number in range(2):
        torch.manual_seed(number)
        network = build(trained.architecture, 2, 2).eval()
        fold = Trained(trained.architecture, network, trained.manifest, trained.training)
        write_trained(tmp_path / "run" / f"fold{number}", fold)
        with torch.inference_mode():
            answers.append(network(image).numpy())
    write_ensemble(tmp_path / "run", ["fold0", "fold1"])
    done = export(tmp_path / "run", tmp_path / "models")
    assert (done.manifest.folds, done.manifest.head is not None) == (2, True)
    engine = open_engine(Repository([tmp_path / "models"]).model(), EngineSettings())
    answer = engine.run(image.numpy(), "logits")
    engine.close()
    mean = (answers[0] + answers[1]) / 2
    assert np.abs(answer - mean).max() < 5e-4 * np.abs(mean).max()


def test_the_head_in_the_manifest_is_the_networks_last_layer(run: Path, trained: Trained, tmp_path: Path) -> None:
    manifest = export(run, tmp_path / "models").manifest
    assert manifest.head is not None
    weight, bias = manifest.head.arrays()
    np.testing.assert_array_equal(weight, trained.network.head.weight.detach().numpy()[:, :, 0, 0, 0])
    assert trained.network.head.bias is not None
    np.testing.assert_array_equal(bias, trained.network.head.bias.detach().numpy())
    assert manifest.digests.preprocessing == manifest.preprocessing_digest()
    assert len(manifest.digests.weights) == 64


def test_a_second_export_is_the_next_version(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "models")
    assert export(run, tmp_path / "models").folder.name == "2"


def test_nothing_is_published_when_a_gate_fails(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> tuple[Gate, ...]:
        raise GateError("differs")

    monkeypatch.setattr(module, "check", fail)
    with pytest.raises(GateError):
        export(run, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_network_that_was_never_trained_is_refused(trained: Trained, tmp_path: Path) -> None:
    for parameter in trained.network.head.parameters():
        torch.nn.init.zeros_(parameter)
    write_trained(tmp_path / "zero", trained)
    with pytest.raises(ExportError, match="zeros only"):
        export(tmp_path / "zero", tmp_path / "models")


def test_a_published_model_is_scored_by_its_own_ids(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "models")
    segmenter, labels = open_trained(tmp_path / "models" / "tiny")
    assert [(label.name, label.from_ids) for label in labels] == [("lesion", (1,))]
    volume = Volume.from_array(np.random.default_rng(0).normal(0, 1, (2, 16, 16, 8)).astype(np.float32))
    assert segmenter.segment(volume).labels.shape == (16, 16, 8)
