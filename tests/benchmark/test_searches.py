"""The run of both searches: every part on phantoms, and the page that its results make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hilum_cases import phantom
from typer.testing import CliRunner

from hilum_benchmark.cli import benchmark_app
from hilum_benchmark.searches import page, parts
from hilum_benchmark.searches.bench import Amounts, Bench, averaged
from hilum_benchmark.searches.ranks import Way, beside
from hilum_benchmark.searches.served import DEMO, LATER
from hilum_search.architecture import C2FNAS, VNAS, digest, to_json
from hilum_search.baseline_architectures import NnUNet
from hilum_search.cases import Files

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
name = "phantom"

[architecture]
family = "vnas"
encoder = {encoder}
decoder = {decoder}
stem = 4
widths = [4, 4, 4, 4]
pooling = [1, 2]

[[channels]]
name = "ct"

[[labels]]
name = "ball"
id = 1
from_ids = [7]

[[labels]]
name = "rod"
id = 2
from_ids = [3, 4]

[preprocessing.geometry]
orientation = "RAS"
spacing = [2.0, 2.0, 2.0]

[preprocessing.intensity]
steps = [[{{ rule = "window", low = 0.0, high = 200.0 }}]]

[preprocessing.windows]
size = [32, 32, 32]
padding = "edge"

[training]
steps = 4
learning_rate = 2e-2

[split]
folds = 3
fold = 0
test_share = 0.25
"""
FEW = Amounts(
    seeds=(0,),
    steps=3,
    random_steps=3,
    filters=2,
    children=4,
    child_steps=2,
    supernet_steps=3,
    rank_filters=2,
    rank_children=10,
    rank_steps=27,
)


def trained(architecture: Any, dice: float, key: str) -> dict[str, Any]:
    scores = {"liver": dice, "spleen": dice, "bone": dice}
    return {"key": key, "architecture": json.loads(to_json(architecture)), "dice": scores, "mean": dice}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Results that were made up."""
    found = Bench("demo_search", tmp_path, tmp_path, tmp_path / "out", LATER, Amounts(seeds=(0, 1)))
    flat, deep = VNAS(("2d",) * 16, ("2d",) * 5), VNAS(("3d",) * 16, ("3d",) * 5)
    walk, unet = C2FNAS(8, (0, 1, 0), ("2d", "2d", "2d")), NnUNet(8)
    cost = {stage: {"cpu_hours": 0.1} for stage in ("supernet", "random", "coarse", "rank", "final")}
    entropy = {"encoder": [0.5, 0.6], "decoder": [0.1], "largest": 1.1}
    for seed, dice in ((0, 0.5), (1, 0.7)):
        retrained = {"found": trained(flat, dice, f"f{seed}"), "random": trained(deep, 0.4, f"r{seed}")}
        told = {"retrained": retrained, "cost": cost, "mix": {"test": {"liver": 0.3}}, "gap": -0.2, "entropy": entropy}
        found.write(f"vnas-{seed}", told)
    found.write(parts.C2FNAS, {"retrained": {"found": trained(walk, 0.65, "c")}, "cost": cost})
    found.write(parts.UNETS, {parts.EQUAL_MACS: trained(unet, 0.6, "u")})
    figures = {"ms": 100.0, "macs": 2e9, "parameters": 10**6, "gflops": 40.0, "window_mib": 10.0}
    networks = {digest(each): figures for each in (flat, deep, walk, unet)}
    found.write(parts.LATENCY, {"networks": networks, "at_96": {"V-NAS": figures}, "gemm_gflops": 160.0})
    scored = {"dice": {"liver": 0.8, "spleen": 0.2, "bone": 0.5}}
    folders = [row.folder for row in parts.entries(found)]
    found.write(parts.SERVED, {"models": dict.fromkeys([*folders, DEMO], scored)})
    full, cheap = Way([1.0, 2.0, 3.0, 4.0], 100, 50.0), Way([1.0, 2.0, 4.0, 3.0], 10, 5.0)
    flat_way = Way([0.0] * 4, 0, 0.0)
    ways = {"halving": beside(cheap, full), "pre-filter": beside(flat_way, full)}
    found.write(parts.RANKS, {"walks": [[0]] * 4, "ways": ways})
    return found


def test_seeds_of_a_kind_share_a_line_with_mean_and_spread(bench: Bench) -> None:
    lines = {line.name: line for line in page.lines(bench)}
    assert list(lines) == [parts.FOUND, parts.COARSE, parts.RANDOM, parts.EQUAL_MACS]
    assert lines[parts.FOUND].held_out == (0.5, 0.7)
    assert list(lines[parts.COARSE].search_minutes) == pytest.approx([18.0])
    assert list(lines[parts.FOUND].search_minutes) == pytest.approx([6.0, 6.0])
    assert lines[parts.EQUAL_MACS].search_minutes == ()
    text = page.markdown(bench)
    assert "| V-NAS | 2 | 0.600 ± 0.100 | 0.600 | 0.600 | 0.600 | 0.500 ± 0.000 | 1.00 | 2.00 | 100 | 6 ± 0 |" in text
    assert "| U-Net of equal MACs | 1 | 0.600 | 0.600 | 0.600 | 0.600 | 0.500 | 1.00 | 2.00 | 100 | – |" in text
    assert "| 1 | 0.300 | 0.700 | -0.200 | 50 % / 9 % |" in text
    assert "| halving | 10 % | 10 % | 0.67 (" in text
    assert "| pre-filter | 0 % | 0 % | – |" in text
    assert "| V-NAS | 100 | 40 | 25 % |" in text
    for table in text.strip().split("\n\n"):
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_the_page_is_written_with_its_picture_also_of_a_part_of_the_results(bench: Bench, tmp_path: Path) -> None:
    page.write(bench)
    assert (bench.out / "search.png").read_bytes()[:4] == b"\x89PNG"
    empty = Bench("demo_search", tmp_path, tmp_path, tmp_path / "none", LATER)
    assert page.markdown(empty).strip() == ""


def test_half_of_the_range_is_told() -> None:
    assert averaged([0.5, 0.6, 0.9]) == (0.6667, 0.2)


def test_a_part_that_is_not_there_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(benchmark_app, ["search", "--only", "nonsense", "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert "There is no part 'nonsense'" in done.output


def test_the_page_shows_the_committed_results() -> None:
    results = ROOT / "docs" / "results" / "search"
    bench = Bench("demo_search", ROOT, ROOT, results, LATER)
    assert [name for name in parts.parts(bench) if not bench.has(name)] == []
    text = page.markdown(bench)
    assert (results / "search.md").read_text() == text
    assert text.strip() in (ROOT / "docs" / "search.md").read_text()


@pytest.mark.slow
def test_every_part_runs_and_a_second_run_trains_nothing(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for number in range(4):
        phantom(data, f"p{number}", number)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(encoder=json.dumps(["2d"] * 16), decoder=json.dumps(["2d"] * 5)))
    later = Files((Path("p3.nii.gz"),), Path("p3_seg.nii.gz"), "later")
    bench = Bench(str(recipe), data, tmp_path / "work", tmp_path / "out", later, FEW)
    for name, part in parts.parts(bench).items():
        bench.write(name, part(bench))
    rows = parts.entries(bench)
    kinds = {"V-NAS", "C2FNAS", "random search", "2D/2D", "3D/3D", "P3D/P3D", parts.EQUAL_MACS, parts.EQUAL_LATENCY}
    assert {row.name for row in rows} == kinds
    scored = bench.read(parts.SERVED)["models"]
    assert set(scored) == {row.folder for row in rows} | {DEMO}
    assert all(set(each["dice"]) == {"ball", "rod"} for each in scored.values())
    ways = bench.read(parts.RANKS)["ways"]
    assert ways["halving"]["cost"]["steps"] < 0.25 and ways["inheritance"]["cost"]["steps"] < 0.25
    assert parts.vnas(bench, 0) == bench.read("vnas-0")
    assert "| V-NAS | 1 |" in page.write(bench)
