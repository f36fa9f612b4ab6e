from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from hilum_benchmark.cli import benchmark_app
from hilum_benchmark.row import Context
from hilum_benchmark.rows.networks import latency, names, prepare, rows
from hilum_search.architecture import NAMED

RUNNER = CliRunner()


def _quick(folder: Path, *words: str) -> Result:
    done = RUNNER.invoke(benchmark_app, ["networks", "--quick", "--rounds", "1", "--out", str(folder), *words])
    assert done.exit_code == 0, done.output
    return done


def test_every_named_network_has_its_two_rows() -> None:
    assert names() == tuple(NAMED)
    assert [row.name for row in rows("unet3d", latency=True)] == ["unet3d/size", "unet3d/latency"]
    assert [row.name for row in rows("unet3d", latency=False)] == ["unet3d/size"]


def test_what_is_counted_is_printed_kept_and_not_counted_twice(tmp_path: Path) -> None:
    counted = json.loads(_quick(tmp_path, "--only", "unet3d", "--no-latency", "--json").stdout)
    assert list(counted["rows"]) == ["unet3d/size"]
    assert counted["rows"]["unet3d/size"]["medians"]["size"]["parameters"] == 16_320_708
    again = _quick(tmp_path, "--only", "unet3d", "--no-latency")
    assert "| unet3d | 16.321 |" in again.stdout
    assert again.stderr.count("kept, measured before") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"networks-quick.{suffix}" for suffix in ("csv", "json", "md", "png")
    ]


def test_engine_and_torch_are_timed_on_the_same_network(tmp_path: Path) -> None:
    prepare(Context(tmp_path, "unet3d/latency", True))
    measured = latency(Context(tmp_path, "unet3d", True))
    assert min(measured["hilum_s"], measured["torch_s"], measured["gemm_gflops"]) > 0
    assert measured["equal_percent"] > 99


@pytest.mark.slow
def test_from_the_command_to_the_seconds(tmp_path: Path) -> None:
    _quick(tmp_path, "--only", "segresnet", "--no-latency")
    text = _quick(tmp_path, "--only", "segresnet").stdout
    assert "| segresnet | 18.799 |" in text
    assert "one thread, one round, on" in text
    found = json.loads((tmp_path / "networks-quick.json").read_text())["rows"]
    assert list(found) == ["segresnet/size", "segresnet/latency"]


def test_unknown_networks_are_refused_with_the_known_ones() -> None:
    done = RUNNER.invoke(benchmark_app, ["networks", "--only", "resnet"])
    assert done.exit_code == 2
    assert "There is no network 'resnet'" in done.output
    assert "c2fnas-panc" in done.output
