"""Both searches from a folder of cases to a retrained network, killed and taken up; status, pick, dry run."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hilum_cases import phantom
from typer.testing import CliRunner

from hilum_search import architecture as architectures
from hilum_search.architecture import parse_architecture
from hilum_search.errors import ArchitectureError, DataError, RecipeError
from hilum_search.ledger import Ledger
from hilum_search.search_cli import search_app
from hilum_search.trained import read_trained

C2FNAS = """
family = "c2fnas"
filters = 2
levels = [0, 0, 1, 1, 0]
operators = ["2d", "2d", "2d", "2d", "2d"]
"""
VNAS = f"""
family = "vnas"
encoder = {json.dumps(["2d"] * 16)}
decoder = {json.dumps(["2d"] * 5)}
stem = 4
widths = [4, 4, 4, 4]
pooling = [1, 2]
"""
SPLIT = """
[split]
folds = 3
fold = 0
test_share = 0.25
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four phantoms; one of them tests, one validates."""
    folder = tmp_path_factory.mktemp("searches") / "data"
    for number in range(4):
        phantom(folder, f"p{number}", number)
    return folder


def written(text: str, network: str, folder: Path, size: str = "[16, 16, 8]", split: str = SPLIT) -> str:
    """The fixtures' recipe with another network, window and split; its path."""
    head, rest = text.split("[architecture]")
    tail = rest[rest.index("[[channels]]") :]
    cases = tail.index("[[cases]]")
    tail = tail[:cases] + tail[tail.index("[preprocessing.geometry]") :]
    path = folder / "recipe.toml"
    path.write_text(f"{head}[architecture]{network}\n{tail}{split}".replace("[16, 16, 8]", size))
    return str(path)


def run(*words: str) -> str:
    result = CliRunner().invoke(search_app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def report(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "report.json").read_text())
    return found


def contents(out: Path) -> list[dict[str, Any]]:
    with Ledger.read(out / "ledger.sqlite") as ledger:
        return ledger.contents()


CHILDREN = ["--children", "3", "--child-steps", "2", "--clusters", "2"]
PATHS = ["--supernet-steps", "4", "--candidates", "3", "--generations", "1", "--retrain", "3"]


@pytest.fixture(scope="module")
def c2fnas(data: Path, recipe_text: str) -> list[str]:
    recipe = written(recipe_text, C2FNAS, data.parent)
    return ["c2fnas", "--recipe", recipe, "--data", str(data), *CHILDREN, *PATHS]


@pytest.fixture(scope="module")
def finished(c2fnas: list[str], data: Path) -> tuple[Path, str]:
    """A search that nobody disturbed, and what it said."""
    out = data.parent / "finished"
    return out, run(*c2fnas, "--out", str(out))


def test_c2fnas_ends_with_a_network_that_trains_scores_and_is_read_back(finished: tuple[Path, str]) -> None:
    out, said = finished
    found = report(out)
    architecture = parse_architecture((out / "architecture.json").read_bytes())
    key = found["retrained"]["found"]["key"]
    assert read_trained(out / "children" / key).architecture == architecture
    assert isinstance(architecture, architectures.C2FNAS)
    assert len(architecture.levels) == 5
    assert found["coarse"]["best"] == list(architecture.levels)
    assert set(found["retrained"]["found"]["dice"]) == {"ball", "rod"}
    assert f"children/{key}" in said
    assert {entry["stage"] for entry in contents(out)} >= {"coarse", "supernet", "final"}
    for name in ("pareto.json", "pareto.csv", "pareto.png", "pareto.html"):
        assert (out / name).stat().st_size > 100


def test_a_finished_search_trains_nothing_again(c2fnas: list[str], finished: tuple[Path, str]) -> None:
    out, said = finished
    before, first = contents(out), report(out)
    changed = {path: path.stat().st_mtime_ns for path in (out / "children").rglob("weights.safetensors")}
    assert _last(run(*c2fnas, "--out", str(out))) == _last(said)
    assert contents(out) == before
    assert report(out) == first
    assert {path: path.stat().st_mtime_ns for path in (out / "children").rglob("weights.safetensors")} == changed


def test_the_best_path_is_scaled_within_the_limits(
    c2fnas: list[str], finished: tuple[Path, str], tmp_path: Path
) -> None:
    shutil.copytree(finished[0] / "children", tmp_path / "children")  # what was trained there need not be again
    words = ["--scale-filters", "2", "--scale-filters", "3", "--scale-window", "16x16x16", "--max-gmac", "9"]
    run(*c2fnas, "--out", str(tmp_path), *words)
    found = report(tmp_path)
    assert sorted(each["architecture"]["filters"] for each in found["scaled"]) == [2, 3]
    assert {tuple(each["window"]) for each in found["scaled"]} == {(16, 16, 16)}
    best = found["scaled"][0]
    assert best["mean"] == max(each["mean"] for each in found["scaled"])
    assert found["found"] == best["architecture"]
    manifest = read_trained(tmp_path / "children" / found["retrained"]["found"]["key"]).manifest
    assert manifest.windows.size == (16, 16, 16)
    with pytest.raises(SystemExit):
        search_app([*c2fnas, "--out", str(tmp_path), "--scale-window", "16"])


@pytest.mark.parametrize("limit", [["--max-params", "20000"], ["--max-gmac", "0.05"]], ids=["parameters", "gmac"])
def test_a_path_that_no_size_fits_stays_as_it_is(
    limit: list[str], c2fnas: list[str], finished: tuple[Path, str], tmp_path: Path
) -> None:
    shutil.copytree(finished[0] / "children", tmp_path / "children")
    said = run(*c2fnas, "--out", str(tmp_path), "--scale-filters", "16", "--scale-window", "16x16x16", *limit)
    assert "No size asked for by --scale keeps the limits" in said
    found = report(tmp_path)
    assert (found["scaled"], found["found"]["filters"]) == ([], 2)


def _last(said: str) -> str:
    return said.splitlines()[-1]


def test_workers_do_not_change_the_ledger(c2fnas: list[str], finished: tuple[Path, str], tmp_path: Path) -> None:
    run(*c2fnas, "--out", str(tmp_path), "--workers", "2")
    assert contents(tmp_path) == contents(finished[0])


def test_killed_and_taken_up_it_ends_the_same(c2fnas: list[str], finished: tuple[Path, str], tmp_path: Path) -> None:
    whole, words = len(contents(finished[0])), [*c2fnas, "--out", str(tmp_path)]
    command = [sys.executable, "-m", "hilum_client", "search", *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None and not _entries(tmp_path):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert 0 < _entries(tmp_path) < whole
    assert "stopped" in run("status", str(tmp_path))
    run(*words)
    assert contents(tmp_path) == contents(finished[0])
    assert "finished" in run("status", str(tmp_path))


def _entries(out: Path) -> int:
    try:
        return len(contents(out))
    except DataError:
        return 0


@pytest.fixture
def vnas(data: Path, recipe_text: str, tmp_path: Path) -> list[str]:
    recipe = written(recipe_text, VNAS, tmp_path, "[32, 32, 32]")
    return ["vnas", "--recipe", recipe, "--data", str(data), "--steps", "3", "--random-steps", "6", "--retrain", "2"]


def test_vnas_reports_the_gap_and_random_search(vnas: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = run(*vnas, "--out", str(out))
    found = report(out)
    mix = found["mix"]["test"]
    assert found["gap"] == pytest.approx(sum(mix.values()) / len(mix) - found["retrained"]["found"]["mean"])
    assert found["random"]
    assert found["retrained"]["random"]["architecture"] in [each["architecture"] for each in found["random"]]
    assert "gap" in said
    rows = json.loads((out / "pareto.json").read_text())["candidates"]
    assert [row["name"] for row in rows] == ["found", *(f"random {n}" for n in range(1, len(found["random"]) + 1))]
    assert rows[0]["architecture"] == found["found"] and rows[0]["dice"] == found["found_validation"]
    assert (out / "pareto.html").is_file() and "trained alike" in said
    picked = tmp_path / "small.json"
    run("pick", str(out), "--max-params", str(min(row["params"] for row in rows)), "--to", str(picked))
    assert parse_architecture(picked.read_bytes()).family == "vnas"
    assert (out / "supernet" / "entropy.png").is_file()
    assert parse_architecture((out / "architecture.json").read_bytes()).family == "vnas"


@pytest.mark.parametrize("kind", ["c2fnas", "vnas"])
def test_a_dry_run_tells_the_cost_and_leaves_nothing(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    said = run(*request.getfixturevalue(kind), "--out", str(tmp_path / "out"), "--dry-run")
    assert "supernet" in said
    assert "hours of one" in said
    assert not (tmp_path / "out" / "ledger.sqlite").exists()


def test_rounds_are_as_large_as_asked(c2fnas: list[str], tmp_path: Path) -> None:
    run(*c2fnas, "--out", str(tmp_path), "--round", "1")
    log = json.loads((tmp_path / "report.json").read_text())["coarse"]["log"]
    rounds = [draw["round"] for draw in log]
    assert len(rounds) == len(set(rounds)) == 3  # two phases otherwise, the first of two topologies


def test_what_cannot_be_searched_is_said_before_anything_trains(
    data: Path, recipe_text: str, c2fnas: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ArchitectureError, match="No network"):
        run(*c2fnas, "--out", str(out), "--max-params", "10")
    assert not (out / "children").exists()
    recipe = written(recipe_text, C2FNAS, tmp_path, split="[split]\nfolds = 3\nfold = 0\n")
    with pytest.raises(DataError, match="test"):
        run("c2fnas", "--recipe", recipe, "--data", str(data), "--out", str(tmp_path / "no-test"))
    assert not (tmp_path / "no-test" / "children").exists()
    with pytest.raises(DataError, match="folds need at least"):
        run("c2fnas", "--recipe", recipe, "--data", str(data), "--out", str(tmp_path / "few"), "--test-share", "0.75")
    if not torch.cuda.is_available():
        with pytest.raises(RecipeError, match="no device 'cuda' here"):
            run(*c2fnas, "--out", str(tmp_path / "gpu"), "--device", "cuda")
    with pytest.raises(DataError, match="no search"):
        run("status", str(tmp_path))


@pytest.mark.slow
def test_measured_latency_bounds_the_search_and_stands_in_the_pareto_set(
    data: Path, recipe_text: str, tmp_path: Path
) -> None:
    recipe = written(
        recipe_text, C2FNAS.replace("[0, 0, 1, 1, 0]", "[0, 1, 0]").replace('"2d", "2d", ', "", 1), tmp_path
    )
    words = ["c2fnas", "--recipe", recipe, "--data", str(data), "--children", "1", "--child-steps", "2", *PATHS]
    out = tmp_path / "out"
    with pytest.raises(ArchitectureError, match=r"the fastest [\d.e-]+ ms"):
        run(*words, "--out", str(out), "--max-latency-ms", "1e-6")
    assert not (out / "children").exists()
    run(*words, "--out", str(tmp_path / "free"), "--latency")
    table = json.loads((tmp_path / "free" / "latency.json").read_text())["pieces_ms"]
    rows = json.loads((tmp_path / "free" / "pareto.json").read_text())["candidates"]
    scaled = ["--scale-filters", "3", "--max-latency-ms", "1e5"]
    run(*words, "--out", str(tmp_path / "scaled"), *scaled)
    stages = [entry["key"] for entry in contents(tmp_path / "scaled") if entry["stage"] == "latency"]
    assert len(stages) == len(report(tmp_path / "scaled")["scaled"]) == 1
    assert all(0 < row["ms"] < 2 * sum(table.values()) and row["peak_mib"] > 0 for row in rows)


def test_workers_do_not_change_what_vnas_finds(vnas: list[str], tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    run(*vnas, "--out", str(one), "--random-steps", "0")
    run(*vnas, "--out", str(two), "--random-steps", "0", "--workers", "2")
    here, there = report(one), report(two)
    assert all(there[name] == here[name] for name in ("found", "mix", "probabilities", "gap"))


@pytest.mark.slow
def test_a_vnas_that_minds_latency_measures_its_operators(vnas: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(*vnas, "--out", str(out), "--latency-weight", "0.5")
    price = json.loads((out / "supernet" / "supernet.json").read_text())["settings"]["price"]
    assert price["weight"] == 0.5
    assert [len(row) for row in price["ms"]] == [3] * 21
    rows = json.loads((out / "pareto.json").read_text())["candidates"]
    assert all(row["ms"] > 0 and row["peak_mib"] > 0 for row in rows)
    before = report(out)
    run(*vnas, "--out", str(out), "--latency-weight", "0.5")
    assert report(out) == before


def test_a_prefilter_leaves_few_topologies(c2fnas: list[str], tmp_path: Path) -> None:
    run(*c2fnas, "--out", str(tmp_path), "--prefilter", "3", "--clusters", "3")
    (kept,) = (entry["metrics"]["kept"] for entry in contents(tmp_path) if entry["stage"] == "prefilter")
    assert len(kept) == 3
    assert {each["topology"] for each in report(tmp_path)["coarse"]["trained"]} <= set(kept)


def test_other_cases_in_the_same_folder_are_refused(
    c2fnas: list[str], finished: tuple[Path, str], data: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(data, tmp_path / "data")
    phantom(other, "p2", 5)
    words = [str(other) if word == str(data) else word for word in c2fnas]
    with pytest.raises(DataError, match="use a new folder"):
        run(*words, "--out", str(finished[0]))


def test_picking_within_limits(finished: tuple[Path, str], tmp_path: Path) -> None:
    out, small = finished[0], tmp_path / "small.json"
    rows = json.loads((out / "pareto.json").read_text())["candidates"]
    least = min(row["params"] for row in rows)
    assert str(small) in run("pick", str(out), "--max-params", str(least), "--to", str(small))
    picked = parse_architecture(small.read_bytes())
    assert picked.family == "c2fnas"
    with pytest.raises(ArchitectureError, match="nearest"):
        run("pick", str(out), "--max-params", "1")
