from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from hilum_export.cli import export_app
from hilum_search.errors import DataError


def test_export_reports_its_gates(run: Path, tmp_path: Path) -> None:
    words = [str(run), "--repository", str(tmp_path / "models"), "--no-dice-gate"]
    done = CliRunner().invoke(export_app, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert "FP32 " in done.output and "FP16 " in done.output and "checks passed" in done.output
    assert "No case was segmented with it" in done.output
    assert (tmp_path / "models" / "tiny" / "1" / "model.onnx").is_file()


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"architecture\.json"):
        CliRunner().invoke(export_app, [str(tmp_path), "-r", str(tmp_path / "models")], catch_exceptions=False)
    assert not (tmp_path / "models").exists()


def test_help_shows_an_example() -> None:
    assert "hilum export runs/abdomen" in " ".join(CliRunner().invoke(export_app, ["--help"]).output.split())
