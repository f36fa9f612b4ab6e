from __future__ import annotations

import json
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner

from hilum_export import checks
from hilum_export import export as module
from hilum_export.checks import Checked, Subject
from hilum_export.cli import export_app
from hilum_export.errors import ExportError, GateError
from hilum_export.export import Wishes, export
from hilum_export.gates import Gate
from hilum_export.precision import Precision
from hilum_export.verify import verify
from hilum_inference.engines import EngineSettings, open_engine
from hilum_inference.errors import ModelError
from hilum_inference.manifest import Manifest
from hilum_inference.repository import Repository
from hilum_inference.volume import Volume
from hilum_search.architecture import parse_architecture
from hilum_search.errors import DataError
from hilum_search.evaluate import open_trained
from hilum_search.network import build
from hilum_search.trained import Trained, write_ensemble, write_trained

PLAIN = Wishes((), dice_gate=False)
"""FP32 alone, no cases."""


def test_the_published_model_answers_as_the_network(run: Path, trained: Trained, tmp_path: Path) -> None:
    done = export(run, tmp_path / "models", wishes=PLAIN)
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
    folder = export(run, tmp_path / "models", wishes=PLAIN).folder
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
    done = export(tmp_path / "run", tmp_path / "models", wishes=PLAIN)
    assert (done.manifest.folds, done.manifest.head is not None) == (2, True)
    engine = open_engine(Repository([tmp_path / "models"]).model(), EngineSettings())
    answer = engine.run(image.numpy(), "logits")
    engine.close()
    mean = (answers[0] + answers[1]) / 2
    assert np.abs(answer - mean).max() < 5e-4 * np.abs(mean).max()


def test_the_head_in_the_manifest_is_the_networks_last_layer(run: Path, trained: Trained, tmp_path: Path) -> None:
    manifest = export(run, tmp_path / "models", wishes=PLAIN).manifest
    assert manifest.head is not None
    weight, bias = manifest.head.arrays()
    np.testing.assert_array_equal(weight, trained.network.head.weight.detach().numpy()[:, :, 0, 0, 0])
    assert trained.network.head.bias is not None
    np.testing.assert_array_equal(bias, trained.network.head.bias.detach().numpy())
    assert manifest.digests.preprocessing == manifest.preprocessing_digest()
    assert len(manifest.digests.weights) == 64


def test_a_second_export_is_the_next_version(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "models", wishes=PLAIN)
    assert export(run, tmp_path / "models", wishes=PLAIN).folder.name == "2"


def test_nothing_is_published_when_a_gate_fails(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = checks.check

    def fail(subject: Subject, precision: Precision, path: Path, full: Path) -> Checked:
        return real(subject, precision, path, full).with_gates([Gate("made to fail", 2, 1, "of 1")])

    monkeypatch.setattr(module, "check", fail)
    with pytest.raises(GateError, match=r"made to fail: 2 of 1, allowed is 1\. Nothing was published\."):
        export(run, tmp_path / "models", wishes=PLAIN)
    assert not (tmp_path / "models").exists()


def test_half_precision_that_fails_is_withheld_and_the_report_says_why(trained: Trained, tmp_path: Path) -> None:
    """A norm takes a factor out again: FP32 does not notice, FP16 overflows."""
    stem = trained.network.body.get_submodule("stem")
    with torch.no_grad():
        stem[0].weight.mul_(4e5)  # type: ignore[index]
    write_trained(tmp_path / "run", trained)
    done = export(tmp_path / "run", tmp_path / "models", wishes=Wishes(("fp16",), dice_gate=False))
    assert [file.precision for file in done.files] == ["fp32"]
    (half,) = done.withheld
    assert half.failure.startswith("largest value inside the network: ") and "in body.stem.0" in half.failure
    assert not (done.folder / "model_fp16.onnx").exists()
    assert [path.stem for path in (done.folder / "configs").iterdir() if "fp16" in path.stem] == []
    told = json.loads((done.folder / "gates.json").read_text())
    assert (told["passed"], told["networks"]["fp16"]["passed"]) == (True, False)


def test_half_at_the_door_is_published_checked_again_and_run(run: Path, trained: Trained, tmp_path: Path) -> None:
    done = export(run, tmp_path / "models", wishes=Wishes(("fp16",), dice_gate=False, wire="fp16"))
    assert [file.precision for file in done.files] == ["fp32", "fp16"] and not done.withheld
    assert {each.passed for each in done.files} == {True}
    checked = {gate.name for gate in done.files[1].gates}
    assert "inputs and outputs that are not FP16" in checked
    for variant, kind in (("onnxruntime-fp16", "FP16"), ("python-fp32", "FP32")):
        text = (done.folder / "configs" / f"{variant}.pbtxt").read_text()
        assert set(re.findall(r"data_type: TYPE_(\w+)", text)) == {kind}
    assert verify(done.folder.parent).passed
    windows = np.random.default_rng(0).normal(0, 1, (2, 2, 16, 16, 8)).astype(np.float32)
    with torch.inference_mode():
        truth = trained.network(torch.from_numpy(windows)).numpy()
    engine = open_engine(Repository([tmp_path / "models"], "onnxruntime-fp16").model(), EngineSettings())
    answer = engine.run(windows)
    engine.close()
    assert answer.dtype == np.float32
    assert 0 < np.abs(answer - truth).max() < 2e-2 * np.abs(truth).max()
    for home in (done.folder.parent, done.folder):  # a client would send what the network does not take
        path = home / "configs" / "onnxruntime-fp16.pbtxt"
        path.write_text(path.read_text().replace("TYPE_FP16", "TYPE_FP32"))
    again = verify(done.folder.parent).files[1]
    assert again.failure.startswith("inputs and outputs that are not FP32: 3 tensors")


def test_half_at_the_door_without_an_fp16_file_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="publish FP16, too"):
        export(run, tmp_path / "models", wishes=Wishes((), dice_gate=False, wire="fp16"))
    words = [str(run), "-r", str(tmp_path / "models"), "--no-dice-gate", "--no-fp16", "--wire", "fp16"]
    with pytest.raises(ExportError, match="publish FP16, too"):
        CliRunner().invoke(export_app, words, catch_exceptions=False)
    assert not (tmp_path / "models").exists()


def test_each_precision_has_variants_of_its_own(run: Path, tmp_path: Path) -> None:
    done = export(run, tmp_path / "models", wishes=Wishes(("fp16",), dice_gate=False))
    assert [file.precision for file in done.files] == ["fp32", "fp16"]
    plain = Repository([tmp_path / "models"]).model()
    half = Repository([tmp_path / "models"], "onnxruntime-fp16").model()
    assert (plain.onnx().name, half.onnx().name) == ("model.onnx", "model_fp16.onnx")
    assert plain.manifest.provenance.dice_gate == half.manifest.provenance.dice_gate == "skipped"
    assert plain.digest != half.digest
    assert {file.sha256 for file in done.files} == {plain.manifest.digests.weights, half.manifest.digests.weights}
    told = json.loads((done.folder / "gates.json").read_text())
    assert {name: network["file"] for name, network in told["networks"].items()} == {
        "fp32": "model.onnx",
        "fp16": "model_fp16.onnx",
    }
    assert told["cases"] is None and (done.folder / "model.py").is_file()


def test_without_cases_nothing_is_published_unless_that_is_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"--data DIR.*--no-dice-gate") as caught:
        export(run, tmp_path / "models")
    assert caught.value.code == "no_dice_gate"
    for data in (None, tmp_path):  # nothing else than its Dice can stop it
        with pytest.raises(ExportError, match="INT8 reads its ranges from real cases"):
            export(run, tmp_path / "models", wishes=Wishes(("int8",), data, dice_gate=False))
    assert not (tmp_path / "models").exists()


def test_a_network_that_was_never_trained_is_refused(trained: Trained, tmp_path: Path) -> None:
    for parameter in trained.network.head.parameters():
        torch.nn.init.zeros_(parameter)
    write_trained(tmp_path / "zero", trained)
    with pytest.raises(ExportError, match="zeros only"):
        export(tmp_path / "zero", tmp_path / "models", wishes=PLAIN)


def test_a_published_model_is_scored_by_its_own_ids(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "models", wishes=PLAIN)
    segmenter, labels = open_trained(tmp_path / "models" / "tiny")
    assert [(label.name, label.from_ids) for label in labels] == [("lesion", (1,))]
    volume = Volume.from_array(np.random.default_rng(0).normal(0, 1, (2, 16, 16, 8)).astype(np.float32))
    assert segmenter.segment(volume).labels.shape == (16, 16, 8)


@pytest.mark.parametrize("name", ["architecture.json", "weights.safetensors", "manifest.json", "training.json"])
def test_a_run_that_lacks_a_file(run: Path, tmp_path: Path, name: str) -> None:
    (run / name).unlink()
    with pytest.raises(DataError, match=f"{re.escape(name)} is missing"):
        export(run, tmp_path / "models", wishes=PLAIN)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_a_damaged_record(run: Path, tmp_path: Path, text: str) -> None:
    (run / "training.json").write_text(text)
    with pytest.raises((DataError, ExportError), match=r"is damaged|holds no recipe"):
        export(run, tmp_path / "models", wishes=PLAIN)
    assert not (tmp_path / "models").exists()


def test_places_that_cannot_be_written_to_are_known_before_anything_takes_time(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="is no folder"):
        export(run, tmp_path / "file", wishes=PLAIN)
    for bundle, said in (
        (tmp_path / "models" / "tiny", "in the model repository"),
        (tmp_path / "no" / "b", "no folder"),
    ):
        with pytest.raises(ExportError, match=said):
            export(run, tmp_path / "models", wishes=replace(PLAIN, bundle=bundle))


def test_a_pickle_in_place_of_weights_is_not_run(run: Path, tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "harm",))

    (run / "weights.safetensors").write_bytes(pickle.dumps({"head.weight": Harm()}))
    with pytest.raises(DataError, match=r"weights\.safetensors in .* is damaged"):
        export(run, tmp_path / "models", wishes=PLAIN)
    assert not (tmp_path / "harm").exists() and not (tmp_path / "models").exists()


def test_weights_of_another_number_of_classes(run: Path, trained: Trained, tmp_path: Path) -> None:
    labels = [*trained.manifest.model_dump()["labels"], {"name": "edema", "id": 2}]
    manifest = Manifest.model_validate(trained.manifest.model_dump() | {"labels": labels})
    (run / "manifest.json").write_text(manifest.to_json())
    with pytest.raises(
        DataError, match=r"do not fit its architecture\.json and manifest\.json: size mism.* \(and 1 more\)"
    ):
        export(run, tmp_path / "models", wishes=PLAIN)
    assert not (tmp_path / "models").exists()


def test_a_signed_version_and_a_bundle(run: Path, tmp_path: Path) -> None:
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    key = ec.generate_private_key(ec.SECP256R1())
    plain = serialization.NoEncryption()
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    shown = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, shown))
    words = [str(run), "-r", str(tmp_path / "models"), "--no-dice-gate", "--no-fp16", "--sign", str(private)]
    said = CliRunner().invoke(export_app, [*words, "--bundle", str(tmp_path / "bundle")], catch_exceptions=False)
    assert said.exit_code == 0, said.output
    assert Repository([tmp_path / "models"], signed_by=public).model().name == "tiny"
    assert (tmp_path / "bundle" / "models" / "model.ts").is_file()
    with pytest.raises(ExportError, match="is there already"):
        export(run, tmp_path / "models", wishes=replace(PLAIN, bundle=tmp_path / "bundle"))
    private.write_text("no key")
    with pytest.raises(ModelError, match="is no private key"):
        CliRunner().invoke(export_app, words, catch_exceptions=False)
    assert [path.name for path in (tmp_path / "models" / "tiny").iterdir() if path.name.isdigit()] == ["1"]
