"""Which plan may be loaded where: only that of this network, on a GPU and a TensorRT that it was built for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hilum_export.engine_manifest import (
    EngineManifest,
    Here,
    check_engine,
    digest,
    manifest_file,
    now,
    read_manifest,
    write_manifest,
)
from hilum_export.errors import EngineBuildError
from hilum_export.gpu import Gpu
from hilum_export.repository import Profile

A10 = Gpu("NVIDIA A10", "8.6", "CUDA 12.4")
HERE = Here("10.13.2", A10)


@pytest.fixture
def onnx(tmp_path: Path) -> Path:
    (tmp_path / "model_fp16.onnx").write_bytes(b"network")
    return tmp_path / "model_fp16.onnx"


@pytest.fixture
def plan(onnx: Path) -> Path:
    path = onnx.with_name("model_8.6.plan")
    path.write_bytes(b"plan")
    record(path, onnx)
    return path


def record(plan: Path, onnx: Path, compatibility: str = "none", version_compatible: bool = False) -> EngineManifest:
    made = EngineManifest(
        onnx=onnx.name,
        onnx_sha256=digest(onnx),
        plan_sha256=digest(plan),
        tensorrt="10.13.2",
        gpu=A10,
        profile=Profile(1, 2, 4),
        window=(1, 96, 96, 16),
        flags=("STRONGLY_TYPED",),
        compatibility=compatibility,
        version_compatible=version_compatible,
        created=now(),
    )
    write_manifest(plan, made)
    return made


def test_it_is_read_as_it_was_written(plan: Path, onnx: Path) -> None:
    assert check_engine(plan, onnx, HERE) == record(plan, onnx) == read_manifest(plan)
    assert check_engine(plan, onnx)


def test_a_plan_of_another_network_or_a_changed_plan(plan: Path, onnx: Path) -> None:
    onnx.write_bytes(b"retrained")
    with pytest.raises(EngineBuildError, match=r"built from another network than model_fp16\.onnx; build it again"):
        check_engine(plan, onnx)
    plan.write_bytes(b"planted")
    with pytest.raises(EngineBuildError, match=r"model_8\.6\.plan was changed since it was built"):
        check_engine(plan, onnx)
    plan.unlink()
    with pytest.raises(EngineBuildError, match=r"no plan model_8\.6\.plan"):
        check_engine(plan, onnx)


@pytest.mark.parametrize(
    ("version", "version_compatible", "fits"),
    [
        ("10.13.2", False, True),
        ("10.14.0", False, False),
        ("11.4.0.106", False, False),
        ("10.14.0", True, True),
        ("10.12.0", True, False),
        ("11.4.0.106", True, False),
        ("unknown", True, False),
    ],
)
def test_versions_of_tensorrt(plan: Path, onnx: Path, version: str, version_compatible: bool, fits: bool) -> None:
    record(plan, onnx, version_compatible=version_compatible)
    if fits:
        assert check_engine(plan, onnx, replace(HERE, tensorrt=version))
    else:
        with pytest.raises(
            EngineBuildError, match=rf"built with TensorRT 10\.13\.2, here is {version}; build it again"
        ):
            check_engine(plan, onnx, replace(HERE, tensorrt=version))


@pytest.mark.parametrize(
    ("name", "capability", "compatibility", "fits"),
    [
        ("NVIDIA A10", "8.6", "none", True),
        ("NVIDIA RTX A4000", "8.6", "none", False),
        ("NVIDIA RTX A4000", "8.6", "same-cc", True),
        ("NVIDIA L4", "8.9", "same-cc", False),
        ("NVIDIA L4", "8.9", "ampere+", True),
        ("NVIDIA H100", "9.0", "ampere+", True),
        ("NVIDIA B200", "10.0", "ampere+", True),
        ("Tesla T4", "7.5", "ampere+", False),
        ("NVIDIA A10", "8.6", "whatever", False),
    ],
)
def test_gpus(plan: Path, onnx: Path, name: str, capability: str, compatibility: str, fits: bool) -> None:
    record(plan, onnx, compatibility)
    here = Here("10.13.2", Gpu(name, capability, "CUDA 13.0"))  # a newer driver runs older plans
    if fits:
        assert check_engine(plan, onnx, here)
    else:
        with pytest.raises(EngineBuildError, match=r"built for NVIDIA A10 \(8\.6\), here is .*; build it again here"):
            check_engine(plan, onnx, here)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"format": "hilum.engine/2"}', b'{"format": "hilum.engine/1"}', b"\xff\xfe\0"]
)
def test_a_record_that_is_none(plan: Path, onnx: Path, content: bytes) -> None:
    manifest_file(plan).write_bytes(content)
    with pytest.raises(EngineBuildError, match=r"model_8\.6\.plan\.json is no record of a plan"):
        check_engine(plan, onnx)
    manifest_file(plan).unlink()
    with pytest.raises(EngineBuildError, match=r"has no record model_8\.6\.plan\.json"):
        check_engine(plan, onnx)


def test_fields_of_another_type_are_refused(plan: Path, onnx: Path) -> None:
    fields = json.loads(manifest_file(plan).read_bytes())
    for wrong in (
        {"gpu": "A10"},
        {"profile": [1, 2, 4]},
        {"window": 3},
        {"tensorrt": 10},
        {"flags": None},
    ):
        manifest_file(plan).write_text(json.dumps(fields | wrong))
        with pytest.raises(EngineBuildError, match="no record of a plan"):
            check_engine(plan, onnx, HERE)
