"""Publishing, reading, rolling back; what is refused and what stays when a publication dies."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from google.protobuf import text_format
from hilum_testing import SIZE, Tiny, config_text, manifest, onnx_bytes, publish_tiny
from tritonclient.grpc import model_config_pb2

from hilum_inference import pbtxt
from hilum_inference.engines import EngineSettings, open_engine
from hilum_inference.errors import EngineError, ModelError, UnknownModelError
from hilum_inference.repository import Model, Repository, publish, rollback, shipped_repository


def test_a_published_model_is_read_back_and_the_next_is_another_version(tmp_path: Path) -> None:
    first, _ = publish_tiny(tmp_path, manifest())
    second, _ = publish_tiny(tmp_path, manifest(title="better"))
    assert (first.version, second.version) == (1, 2)
    assert first.digest == second.digest  # a title changes no mask
    assert Repository([tmp_path]).model().version == 2
    assert Repository([tmp_path]).model(version=1).manifest.title == ""


def test_rollback_brings_back_network_and_manifest_and_never_reuses_a_number(tmp_path: Path) -> None:
    publish_tiny(tmp_path, manifest())
    publish_tiny(tmp_path, manifest(title="worse"))
    assert rollback(tmp_path, "tiny") == 1
    model = Repository([tmp_path]).model()
    assert (model.version, model.manifest.title) == (1, "")
    assert "worse" not in (tmp_path / "tiny" / "config.pbtxt").read_text()
    assert publish_tiny(tmp_path, manifest())[0].version == 3
    rollback(tmp_path, "tiny")
    with pytest.raises(ModelError, match="no version before 1"):
        rollback(tmp_path, "tiny")


def test_a_changed_network_is_refused_and_says_why(tmp_path: Path) -> None:
    model, _ = publish_tiny(tmp_path, manifest())
    data = bytearray(model.onnx().read_bytes())
    data[-1] ^= 1
    model.onnx().write_bytes(data)
    repository = Repository([tmp_path])
    assert repository.models() == ()
    assert "changed since export" in repository.broken["tiny"]
    with pytest.raises(UnknownModelError, match="changed since export"):
        repository.model()


def test_a_changed_manifest_is_refused(tmp_path: Path) -> None:
    model, _ = publish_tiny(tmp_path, manifest())
    config = model.onnx().parents[1] / "1" / "config.pbtxt"
    config.write_text(config.read_text().replace("-200.0", "-100.0"))
    with pytest.raises(ModelError, match="manifest of version 1 was changed"):
        Repository([tmp_path]).model("tiny")


@pytest.mark.parametrize("damage", ["config.pbtxt", "1/model.onnx"])
def test_missing_files_break_one_model_and_leave_the_others(tmp_path: Path, damage: str) -> None:
    publish_tiny(tmp_path, manifest())
    other, _ = publish_tiny(tmp_path, manifest(name="other"))
    (other.onnx().parents[1] / damage).unlink()
    assert [m.name for m in Repository([tmp_path]).models()] == ["tiny"]


def test_an_interrupted_publication_leaves_nothing_that_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_tiny(tmp_path, manifest())

    def dies(self: Path, target: object) -> Path:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(ModelError, match="no room left") as caught:
        patch.setattr(Path, "replace", dies)
        publish_tiny(tmp_path, manifest())
    assert caught.value.code == "disk_full"
    assert Repository([tmp_path]).model().version == 1
    assert [f.name for f in tmp_path.iterdir()] == ["tiny"]


@pytest.mark.parametrize(
    "config",
    [
        'parameters { key: "hilum_manifest" }',
        'parameters { key: "hilum_manifest" value { } }',
        'parameters { key: "hilum_manifest" value: 3 }',
        "parameters: 7",
        'parameters { key: "hilum_manifest" value { string_value: "{}" } }',
        "default_model_filename { a: 1 }",
    ],
)
def test_a_config_of_any_wrong_shape_breaks_only_its_own_model(tmp_path: Path, config: str) -> None:
    publish_tiny(tmp_path, manifest())
    (tmp_path / "bad" / "1").mkdir(parents=True)
    (tmp_path / "bad" / "config.pbtxt").write_text(config)
    repository = Repository([tmp_path])
    assert [model.name for model in repository.models()] == ["tiny"]
    assert set(repository.broken) == {"bad"}


def test_a_broken_model_is_not_replaced_by_a_namesake_behind_it(tmp_path: Path) -> None:
    model, _ = publish_tiny(tmp_path / "a", manifest())
    publish_tiny(tmp_path / "b", manifest())
    model.onnx().write_bytes(b"changed")
    repository = Repository([tmp_path / "a", tmp_path / "b"])
    assert repository.models() == ()
    with pytest.raises(ModelError, match="changed since export"):
        repository.model("tiny")


def test_unknown_names_and_versions_say_what_there_is(tmp_path: Path) -> None:
    publish_tiny(tmp_path, manifest())
    repository = Repository([tmp_path, tmp_path / "absent"])
    with pytest.raises(UnknownModelError, match="known: tiny"):
        repository.model("spleen")
    with pytest.raises(UnknownModelError, match="no version 7; it has 1"):
        repository.model("tiny", 7)
    publish_tiny(tmp_path, manifest(name="other"))
    with pytest.raises(UnknownModelError, match="several: other, tiny"):
        repository.model()


def test_a_config_that_names_another_model_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not name"):
        publish(tmp_path, "liver", config_text(manifest()), {"model.onnx": b""})
    assert list(tmp_path.iterdir()) == []


def with_variant(folder: Path, variant: str = "python-int8", network: str = "small.onnx") -> None:
    """Publish a model of two networks, the smaller one as a variant."""
    described, small = manifest(), onnx_bytes(Tiny(features=2), SIZE)
    text = config_text(described, variant, network, small)
    data = onnx_bytes(Tiny(), SIZE)
    publish(
        folder, "tiny", config_text(described, weights=data), {"model.onnx": data, "small.onnx": small}, {variant: text}
    )


def test_a_variant_has_its_own_network_and_digest(tmp_path: Path) -> None:
    with_variant(tmp_path)
    plain, variant = Repository([tmp_path]).model(), Repository([tmp_path], "python-int8").model()
    assert (plain.variant, plain.onnx().name, plain.variants) == ("", "model.onnx", ("python-int8",))
    assert (variant.variant, variant.onnx().name, variant.backend) == ("python-int8", "small.onnx", "python")
    assert variant.variants == plain.variants
    assert variant.digest != plain.digest
    assert variant.manifest.digests.weights == hashlib.sha256(variant.onnx().read_bytes()).hexdigest()


def test_a_model_without_the_variant_is_refused_and_says_which_it_has(tmp_path: Path) -> None:
    with_variant(tmp_path)
    publish_tiny(tmp_path, manifest(name="other"))
    repository = Repository([tmp_path], "tensorrt-fp16")
    assert repository.models() == ()
    assert repository.broken == {
        "tiny": "Version 1 of tiny has no variant 'tensorrt-fp16'; it has python-int8.",
        "other": "Version 1 of other has no variant 'tensorrt-fp16'; it has none.",
    }
    with pytest.raises(UnknownModelError, match="it has python-int8") as caught:
        repository.model("tiny")
    assert caught.value.code == "unknown_variant"
    assert [model.name for model in Repository([tmp_path], "python-int8").models()] == ["tiny"]


def test_a_changed_network_of_a_variant_breaks_that_variant_alone(tmp_path: Path) -> None:
    with_variant(tmp_path)
    (tmp_path / "tiny" / "1" / "small.onnx").write_bytes(b"changed")
    assert Repository([tmp_path]).model().version == 1
    with pytest.raises(ModelError, match=r"small\.onnx of version 1 was changed since export"):
        Repository([tmp_path], "python-int8").model("tiny")


def test_a_network_outside_the_version_is_refused(tmp_path: Path) -> None:
    with_variant(tmp_path)
    config = tmp_path / "tiny" / "1" / "configs" / "python-int8.pbtxt"
    config.write_text(config.read_text().replace("small.onnx", "../../small.onnx"))
    with pytest.raises(ModelError, match="must be a file of the version's folder") as caught:
        Repository([tmp_path], "python-int8").model("tiny")
    assert caught.value.code == "bad_config"


def test_a_variant_for_tensorrt_runs_in_no_engine_of_ours(tmp_path: Path) -> None:
    with_variant(tmp_path, "tensorrt-fp16")
    model = Repository([tmp_path], "tensorrt-fp16").model()
    with pytest.raises(EngineError, match="tensorrt-fp16 of tiny runs in a Triton alone") as caught:
        open_engine(model, EngineSettings(threads=1))
    assert caught.value.code == "needs_triton"
    with pytest.raises(EngineError, match="files of tiny are not at hand"):
        open_engine(Model(model.manifest, 1, None, None, model.digest), EngineSettings(threads=1))


def test_our_reader_of_pbtxt_agrees_with_protobufs_own() -> None:
    text = """
      name: "a"  # a comment
      max_batch_size: 4
      input [ { name: "image" data_type: TYPE_FP32 dims: [ 1, 96, 96, -1 ] } ]
      output { name: "logits", dims: 3; dims: 96 }
      parameters: { key: "k" value: { string_value: "a \\"b\\" \\n\\303\\244" 'c' } }
      dynamic_batching { default_queue_policy < timeout_action: REJECT allow_timeout_override: true > }
    """
    ours = pbtxt.parse_pbtxt(text)
    theirs = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert ours["name"] == [theirs.name]
    assert ours["max_batch_size"] == [theirs.max_batch_size]
    assert ours["input"][0]["dims"] == list(theirs.input[0].dims)
    assert ours["output"][0]["dims"] == list(theirs.output[0].dims)
    assert ours["parameters"][0]["value"][0]["string_value"] == [theirs.parameters["k"].string_value]
    assert ours["dynamic_batching"][0]["default_queue_policy"][0]["allow_timeout_override"] == [True]


@pytest.mark.parametrize("text", ["name: ", "name: {", "{", "a: [1, 2", 'a: "open', "a: $", "x {" * 100])
def test_broken_pbtxt_is_one_error(text: str) -> None:
    with pytest.raises(ModelError, match=r"config\.pbtxt"):
        pbtxt.parse_pbtxt(text)


def test_the_shipped_repository_is_there() -> None:
    assert shipped_repository().is_dir()
