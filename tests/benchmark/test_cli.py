from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from hilum_benchmark.cli import benchmark_app


def test_unknown_rows_are_refused_with_the_known_ones() -> None:
    done = CliRunner().invoke(benchmark_app, ["volume", "--only", "nonsense"])
    assert done.exit_code == 2
    assert "There is no row 'nonsense'" in done.output
    assert "blending" in done.output


def test_one_quick_row_leaves_json_table_and_plot(tmp_path: Path) -> None:
    words = ["volume", "--quick", "--rounds", "1", "--only", "length", "--out", str(tmp_path)]
    done = CliRunner().invoke(benchmark_app, words)
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "volume-quick.json",
        "volume-quick.md",
        "volume-quick.png",
    ]
    assert "twice the length adds" in done.output
