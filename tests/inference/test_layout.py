"""Where files lie and what a configuration says of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from hilum_inference.errors import ModelError, UnknownModelError
from hilum_inference.layout import (
    checked_variant,
    config_file,
    is_plain,
    is_variant,
    network_name,
    numbers,
    variants,
    versions,
)
from hilum_inference.pbtxt import parse_pbtxt


def test_withdrawn_numbers_are_known_but_not_served(tmp_path: Path) -> None:
    for name in ("1", "3", "10", "12.withdrawn", "withdrawn-13", "02", "notes", "4.part"):
        (tmp_path / name).mkdir()
    assert versions(tmp_path) == [1, 3, 10]
    assert numbers(tmp_path) == [1, 2, 3, 10, 12, 13]
    assert numbers(tmp_path / "none") == []


def test_a_version_keeps_its_own_variants(tmp_path: Path) -> None:
    for name in ("configs/b.pbtxt", "1/config.pbtxt", "1/configs/python-int8.pbtxt", "1/configs/Notes.pbtxt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "2").mkdir()
    assert variants(tmp_path, 1) == ("python-int8",)
    assert variants(tmp_path, 2) == ("b",)  # made by hand: the model's own are the only ones
    assert config_file(tmp_path, 1, "python-int8") == tmp_path / "1" / "configs" / "python-int8.pbtxt"
    assert config_file(tmp_path, 1, None) == tmp_path / "1" / "config.pbtxt"
    with pytest.raises(UnknownModelError, match=r"has no variant '\.\./\.\./b'; it has python-int8\.") as caught:
        config_file(tmp_path, 1, "../../b")
    assert caught.value.code == "unknown_variant"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "/a", "c:a", "a\0"])
def test_names_that_leave_their_folder(name: str) -> None:
    assert not is_plain(name)


def test_plain_names() -> None:
    assert is_plain("model.onnx") and is_plain(".hidden")
    assert is_variant("onnxruntime-trt-fp16") and not is_variant("../a") and not is_variant("A") and not is_variant("")


def test_the_network_behind_a_configuration() -> None:
    def config(text: str) -> str:
        return network_name(parse_pbtxt(text), "tiny")

    named = 'parameters { key: "hilum_network" value { string_value: "%s" } }'
    assert config("") == "model.onnx"
    assert config('default_model_filename: "a.onnx"') == "a.onnx"
    for made in ('backend: "tensorrt" default_model_filename: "model.plan" ', 'backend: "python" '):
        assert config(made + named % "b.onnx") == "b.onnx"
    assert config('default_model_filename: "b.onnx" ' + named % "b.onnx") == "b.onnx"
    on_a_gpu = 'default_model_filename: "b.onnx" cc_model_filenames { key: "8.9" value: "a.onnx" } '
    assert config('backend: "tensorrt" ' + on_a_gpu + named % "b.onnx") == "b.onnx"
    for loads in ('default_model_filename: "a.onnx" ', 'backend: "onnxruntime" ', on_a_gpu):
        with pytest.raises(ModelError, match=r"Triton load (a|model)\.onnx, but names b\.onnx") as caught:
            config(loads + named % "b.onnx")
        assert caught.value.code == "bad_config"
    for name in ("../b.onnx", "/b.onnx", "2/b.onnx", ".."):
        with pytest.raises(ModelError, match="must be a file of the version's folder") as caught:
            config('backend: "python" ' + named % name)
        assert caught.value.code == "bad_config"


def test_a_variant_that_calls_itself_otherwise_is_refused() -> None:
    config = parse_pbtxt('parameters { key: "hilum_variant" value { string_value: "a" } }')
    assert checked_variant(config, "tiny", None) == checked_variant(config, "tiny", "a") == "a"
    assert checked_variant({}, "tiny", None) == "" and checked_variant({}, "tiny", "a") == "a"
    with pytest.raises(ModelError, match="The variant b of tiny calls itself 'a'"):
        checked_variant(config, "tiny", "b")
