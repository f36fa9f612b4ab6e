from __future__ import annotations

import csv
from pathlib import Path

import pytest

from hilum_benchmark import networks_table
from hilum_benchmark.report import Report, read

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("vnas-2d", "unet3d", "vnet", "nnunet")


@pytest.fixture
def report() -> Report:
    result = Report("networks", False, {"cpu": "C"})
    counted = {"parameters": 16_320_708.0, "gmac": 801.33, "peak_mib": 1417.5, "sum_mib": 3531.9}
    seconds = [
        {"hilum_s": s, "torch_s": 3 * s, "gemm_gflops": 160.0, "equal_percent": 100.0} for s in (10.0, 20.0, 12.0)
    ]
    median = {"hilum_s": 12.0, "torch_s": 36.0, "gemm_gflops": 160.0, "equal_percent": 100.0}
    result.rows = {
        "unet3d/size": {"cpu": "C", "medians": {"size": counted}, "rounds": {"size": [counted]}},
        "unet3d/latency": {"cpu": "C", "medians": {"latency": median}, "rounds": {"latency": seconds}},
        "vnas-2d/size": {"cpu": "C", "medians": {"size": counted}, "rounds": {"size": [counted]}},
        "nnunet/size": {"cpu": "C", "medians": {}, "rounds": {"size": []}, "failed": {"size": "x\nno library"}},
    }
    return result


def test_a_line_for_each_measured_network_in_the_order_of_the_names(report: Report) -> None:
    searched, unet, failed = networks_table.lines(report, NAMES)
    assert [line.network for line in (searched, unet, failed)] == ["vnas-2d", "unet3d", "nnunet"]
    assert (unet.parameters, unet.hilum_s, unet.hilum_least_s, unet.torch_most_s) == (16_320_708, 12.0, 10.0, 60.0)
    assert (unet.talk_parameters_m, unet.talk_flops_g, unet.rounds) == (16.32, 802.9, 3)
    assert unet.share(unet.hilum_s) == pytest.approx(100 * 2 * 801.33 / 12 / 160)
    assert searched.hilum_s is searched.share(searched.hilum_s) is None
    assert failed.parameters is None


def test_markdown_tells_multiply_adds_and_twice_them_apart(report: Report) -> None:
    text = networks_table.markdown(report, networks_table.lines(report, NAMES))
    assert "| unet3d | 16.321 | 801.33 | 1602.66 | 1,418, 3,532 | 12.00 | 36.00 | 3.0× | 83 | 16.32 | 802.9 |" in text
    assert "| vnas-2d | 16.321 | 801.33 | 1602.66 | 1,418, 3,532 | – | – | – | – | – | – |" in text
    assert "median of 3 rounds, on C;" in text
    assert "- nnunet/size: no size (no library)" in text
    head, rule = text.splitlines()[:2]
    assert head.count("|") == rule.count("|")


def test_csv_holds_every_field(report: Report, tmp_path: Path) -> None:
    networks_table.write_csv(networks_table.lines(report, NAMES), tmp_path / "lines.csv")
    with (tmp_path / "lines.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [row["network"] for row in found] == ["vnas-2d", "unet3d", "nnunet"]
    assert found[1]["parameters"] == "16320708"
    assert float(found[1]["torch_gemm_percent"]) == pytest.approx(27.8, abs=0.1)
    assert found[0]["hilum_s"] == ""


def test_a_plot_is_drawn_with_and_without_seconds(report: Report, tmp_path: Path) -> None:
    found = networks_table.lines(report, NAMES)
    for names, lines in (("some", found), ("none", [])):
        networks_table.plot(report, lines, tmp_path / f"{names}.png")
        assert (tmp_path / f"{names}.png").read_bytes()[:4] == b"\x89PNG"


def test_the_page_shows_the_table_of_the_results() -> None:
    from hilum_benchmark.rows.networks import names

    result = Report("networks", False, {}, read(ROOT / "docs" / "results", "networks", False))
    found = networks_table.lines(result, names())
    table = networks_table.markdown(result, found)
    assert [line.network for line in found] == list(names())
    assert (ROOT / "docs" / "results" / "networks.md").read_text() == table
    assert table.strip() in (ROOT / "docs" / "networks.md").read_text()
