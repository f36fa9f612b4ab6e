"""Every row runs with tiny sizes: its contenders measure, agree with each other, and give the figures of the table."""

from __future__ import annotations

from pathlib import Path

import pytest
import triton_server

from hilum_benchmark.report import Report
from hilum_benchmark.rows import EXPORT_ROWS, TRAINING_ROWS, VOLUME_ROWS
from hilum_benchmark.session import Choice, run


def _quick(name: str, folder: Path) -> Report:
    said: list[str] = []
    result = run("volume", [(VOLUME_ROWS | EXPORT_ROWS)[name]], folder, Choice(rounds=1, quick=True), said.append)
    assert result.rows[name]["failed"] == {}, said
    return result


def _rounds(result: Report, row: str, contender: str) -> dict[str, float]:
    [measured] = result.rows[row]["rounds"][contender]
    return dict(measured)


def test_blending_gives_monais_labels_and_five_figures(tmp_path: Path) -> None:
    pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")
    result = _quick("blending", tmp_path)
    assert _rounds(result, "blending", "labels")["equal_percent"] > 99.99
    assert _rounds(result, "blending", "labels")["labels"] >= 3
    assert len(result.figures()) == 5
    ours = _rounds(result, "blending", "hilum")
    assert 0 < ours["body_s"] < ours["total_s"]


def test_huge_runs_from_file_to_file_when_named(tmp_path: Path) -> None:
    result = _quick("huge", tmp_path)
    assert _rounds(result, "huge", "labels")["equal_percent"] > 99.9
    assert VOLUME_ROWS["huge"].by_default is False


def test_io_brings_labels_back_as_simpleitk_does(tmp_path: Path) -> None:
    result = _quick("io", tmp_path)
    assert _rounds(result, "io", "labels")["equal_percent"] == 100.0
    assert len(result.figures()) == 4


@pytest.mark.triton
@pytest.mark.skipif(not triton_server.installed(), reason="no test Triton: run make triton-env")
def test_a_volume_through_triton_gives_the_embedded_engines_mask(tmp_path: Path) -> None:
    result = _quick("triton", tmp_path)
    measured = _rounds(result, "triton", "volume")
    assert measured["shared memory differs"] == measured["wire differs"] == 0
    assert measured["wire wall_s"] > 0
    assert len(result.figures()) == 6


@pytest.mark.slow
def test_an_export_is_timed_with_all_its_checks(tmp_path: Path) -> None:
    result = _quick("exporting", tmp_path)
    measured = _rounds(result, "exporting", "export")
    assert measured["withheld"] == 0 and measured["fp16_share"] < 0.52 and measured["int8_share"] < 0.3
    assert len(result.figures()) == 5


@pytest.mark.slow
def test_windows_in_int8(tmp_path: Path) -> None:
    result = _quick("int8", tmp_path)
    assert len(result.figures()) == 9
    assert all(measured[0]["int8"] > 0 for measured in result.rows["int8"]["rounds"].values())


@pytest.mark.slow
def test_windows_agree_with_torch(tmp_path: Path) -> None:
    result = _quick("window", tmp_path)
    for rounds in result.rows["window"]["rounds"].values():
        assert rounds[0]["equal_percent"] > 99
    assert [figure.what for _, figure in result.figures() if "mean" in figure.what] == [
        "one window, geometric mean of 4 networks"
    ] * 2


def test_startup_and_upload_and_gateway_run(tmp_path: Path) -> None:
    assert len(_quick("startup", tmp_path / "startup").figures()) == 2
    assert len(_quick("upload", tmp_path / "upload").figures()) == 2
    result = _quick("gateway", tmp_path / "gateway")
    assert _rounds(result, "gateway", "job")["windows"] >= 1
    assert len(result.figures()) == 6


@pytest.mark.slow
def test_whole_jobs_agree_with_their_peers(tmp_path: Path) -> None:
    pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")
    said: list[str] = []
    result = run("volume", [VOLUME_ROWS["whole"]], tmp_path, Choice(rounds=1, quick=True), said.append)
    failed = {name for name in result.rows["whole"]["failed"] if not name.endswith("series")}
    assert failed == set(), said
    assert _rounds(result, "whole", "labels monai/synthetic")["equal_percent"] > 99.9
    assert _rounds(result, "whole", "labels nnunet/synthetic")["equal_percent"] > 50


def test_every_row_has_a_title_and_its_own_name() -> None:
    assert all(name == row.name and row.title for name, row in (VOLUME_ROWS | EXPORT_ROWS).items())


def test_a_training_step_takes_turns_with_the_bare_network_and_nnunets_trainer(tmp_path: Path) -> None:
    pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")
    said: list[str] = []
    rows = list(TRAINING_ROWS.values())
    result = run("training", rows, tmp_path, Choice(rounds=1, quick=True), said.append)
    assert all(row["failed"] == {} for row in result.rows.values()), said
    for side in ("hilum", "bare", "nnunet"):
        assert _rounds(result, "training-step", side)["s"] > 0
    assert _rounds(result, "training-epoch", "no")["s"] > _rounds(result, "training-epoch", "memory")["s"]
    assert len(result.figures()) == 4


def test_what_is_called_the_model_as_published_is_what_its_manifest_says() -> None:
    from hilum_benchmark.rows.best import AS_PUBLISHED, SETTINGS
    from hilum_inference.repository import Repository, shipped_repository

    manifest = Repository([shipped_repository()]).model("abdomen-ct-demo").manifest
    found = SETTINGS[AS_PUBLISHED].of(manifest)
    assert (found.crop, found.windows) == (manifest.crop, manifest.windows)
