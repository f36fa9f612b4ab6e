"""A published model is checked again: as it is, changed, and of other makers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from hilum_export.cli import verify_app
from hilum_export.errors import ExportError
from hilum_export.export import Wishes, export
from hilum_export.repository import config
from hilum_export.runtimes import RUNTIMES, Outputs, Windows, openvino
from hilum_export.verify import verify
from hilum_inference.errors import ModelError
from hilum_inference.manifest import Manifest
from hilum_inference.repository import publish, shipped_repository


@pytest.fixture
def model(run: Path, tmp_path: Path) -> Path:
    return export(run, tmp_path / "models", wishes=Wishes(("fp16",), dice_gate=False)).folder.parent


def test_what_was_exported_passes_again_and_so_does_its_report(model: Path) -> None:
    done = verify(model)
    assert done.passed and [file.why for file in done.files] == ["", ""]
    told, kept = json.loads(done.report), json.loads((model / "1" / "gates.json").read_text())
    assert told["passed"] and kept["passed"]
    for precision in ("fp32", "fp16"):
        again, first = told["networks"][precision], kept["networks"][precision]
        not_there_yet = {
            "variants of another network or manifest than their names say",
            "configurations that Triton reads and the version does not have so",
        }
        needs_the_network = {
            "sides of the window that the stride does not divide",
            "largest value inside the network",
            "answers that are no number in FP16",
            "answered otherwise where every value is rounded to FP16",
        }
        assert [gate["name"] for gate in again["gates"] if gate["name"] not in not_there_yet] == [
            gate["name"] for gate in first["gates"] if gate["name"] not in needs_the_network
        ]
        assert (again["sha256"], again["file"]) == (first["sha256"], first["file"])
    assert told["networks"]["fp32"]["sha256"] == done.model.manifest.digests.weights
    assert kept["networks"]["fp32"]["audit"]["initialisers"]["FLOAT"] > 3
    assert set(kept["software"]) >= {"hilum", "onnxruntime", "openvino", "torch"}


def test_a_changed_network_is_refused(model: Path) -> None:
    path = model / "1" / "model.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ModelError, match="changed since export"):
        verify(model)


def test_a_runtime_that_answers_otherwise_fails_and_the_layer_is_named(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(path: Path, windows: Windows) -> Outputs:
        return {name: np.asarray(value * 1.002) for name, value in openvino(path, windows).items()}

    monkeypatch.setitem(RUNTIMES, "openvino", wrong)
    done = verify(model)
    full, half = done.files
    assert [gate.name for gate in full.gates if not gate.passed] == ["openvino logits", "openvino features"]
    assert json.loads(done.report)["passed"] is False
    assert half.passed  # 0.2 % is within what FP16 may differ by
    assert full.why.startswith("The first layer to differ is ")
    assert json.loads(done.report)["networks"]["fp32"]["first_difference"] == full.why
    said = CliRunner().invoke(verify_app, [str(model)])
    assert said.exit_code == 1
    assert "FAILED openvino logits" in said.output and "not to be used" in said.output


def test_the_shipped_model_passes() -> None:
    said = CliRunner().invoke(verify_app, [str(shipped_repository() / "abdomen-ct-demo")])
    assert said.exit_code == 0, said.output
    heads = [line.split()[0] for line in said.output.splitlines() if line.endswith(".onnx")]
    assert heads == ["FP32", "FP16", "INT8"]
    assert "FAILED" not in said.output and said.output.count("onnxruntime logits") == 3
    assert "every check passed" in said.output


def published(folder: Path, described: Manifest, sizes: list[object], output: str) -> Path:
    """A model that somebody else made: other names, no features, perhaps a batch of one."""
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name in ("scan", output)]
    graph = helper.make_graph([helper.make_node("Relu", ["scan"], [output])], "g", tensors[:1], tensors[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    publish(folder, described.name, config(described, 1), {"model.onnx": model.SerializeToString()})
    return folder / described.name


def described(output: str = "scores") -> Manifest:
    fields = {
        "name": "theirs",
        "channels": [{"name": "a"}, {"name": "b"}],
        "labels": [{"name": "lesion", "id": 1}],
        "intensity": {"steps": [[]]},
        "windows": {"size": (8, 8, 8)},
        "tensors": {"image": "scan", "logits": output},
    }
    return Manifest.model_validate(fields)


@pytest.mark.parametrize("batch", ["batch", 1])
def test_a_model_of_other_makers_with_other_names_and_no_features(tmp_path: Path, batch: object) -> None:
    done = verify(published(tmp_path, described(), [batch, 2, 8, 8, 8], "scores"))
    assert done.passed
    (file,) = done.files
    assert [gate.name for gate in file.gates][6:8] == ["onnxruntime scores", "openvino scores"]


def test_a_network_that_its_manifest_does_not_describe(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no output 'logits'"):
        verify(published(tmp_path / "names", described("logits"), ["batch", 2, 8, 8, 8], "scores"))
    with pytest.raises(ExportError, match="cannot run theirs on windows of its manifest"):
        verify(published(tmp_path / "sizes", described(), ["batch", 2, 16, 8, 8], "scores"))


FILES = ("model_fp16.onnx", "model.onnx")


def test_a_configuration_that_triton_reads_otherwise(model: Path) -> None:
    path = model / "configs" / "onnxruntime-fp16.pbtxt"
    path.write_text(path.read_text().replace("max_batch_size: 4", "max_batch_size: 8"))
    (failed,) = [gate for gate in verify(model).files[0].gates if not gate.passed]
    assert (failed.name, failed.value) == ("configurations that Triton reads and the version does not have so", 1)


def test_a_variant_that_runs_another_file_than_its_name_says(model: Path) -> None:
    path = model / "1" / "configs" / "onnxruntime-fp16.pbtxt"
    half, full = (hashlib.sha256((model / "1" / name).read_bytes()).hexdigest() for name in FILES)
    changed = path.read_text().replace("model_fp16.onnx", "model.onnx").replace(half, full)
    path.write_text(changed)
    (model / "configs" / path.name).write_text(changed)
    failed = [gate for gate in verify(model).files[0].gates if not gate.passed]
    assert [(gate.name, gate.value) for gate in failed] == [
        ("variants of another network or manifest than their names say", 1)
    ]


def test_an_imported_model_has_no_cases_to_be_judged_on(model: Path, tmp_path: Path) -> None:
    record = model / "1" / "training.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"imported": {"from": "elsewhere"}}))
    with pytest.raises(ExportError, match="was imported: its record holds no cases"):
        verify(model, data=tmp_path)


def test_json_is_the_report(model: Path) -> None:
    said = CliRunner().invoke(verify_app, [str(model), "--json"])
    assert json.loads(said.output)["format"] == "hilum.gates/2"


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no model"):
        verify(tmp_path)
