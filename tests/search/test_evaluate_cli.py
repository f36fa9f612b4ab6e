from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import typer.main
from hilum_cases import line, phantom, untrained
from typer.testing import CliRunner, Result

from hilum_search import evaluate as scoring
from hilum_search.cases import Dataset
from hilum_search.errors import DataError, RecipeError
from hilum_search.evaluate_cli import evaluate_app
from hilum_search.recipe import Recipe

SHIPPED = Path(__file__).parents[2] / "model_repository" / "abdomen-ct-demo"


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    folder = tmp_path / "data"
    return Dataset(folder, "pairs", tuple(phantom(folder, name, move) for move, name in enumerate("abc")))


@pytest.fixture
def run(recipe: Recipe, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("hilum_search.sources.find_dataset", lambda folder: data)
    a, b, c = data.cases
    return untrained(tmp_path / "run", recipe, [line(a, "train"), line(b, "test", (4, 12)), line(c, "test")])


def call(*words: object) -> Result:
    return CliRunner().invoke(evaluate_app, [str(word) for word in words], catch_exceptions=False)


def test_the_test_set_of_a_run_is_scored_and_kept(run: Path, data: Dataset) -> None:
    done = call(run, "--data", data.folder)
    assert done.exit_code == 0
    assert "run, 2 cases, 1 of them slabs, test: kept for the end" in done.stdout
    assert "TRAINED ON" not in done.stdout and "ball" in done.stdout
    assert "1/2 b[4:12]: mean Dice" in done.stderr
    saved = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert [(case["name"], case["part"]) for case in saved["cases"]] == [("b[4:12]", "test"), ("c", "test")]
    assert saved["cases"][1]["files"] == line(data.cases[2], "test")["files"]
    with (run / "evaluation" / "evaluation.csv").open() as file:
        assert {(row["case"], row["label"]) for row in csv.DictReader(file)} == {
            (case, label) for case in ("b[4:12]", "c") for label in ("ball", "rod")
        }


def test_a_second_call_computes_only_what_is_new(run: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    call(run, "--data", data.folder)
    seen, real = [], scoring.score_case

    def counted(opened: Any, asked: Any, tolerance: float) -> Any:
        seen.append(asked.what.name)
        return real(opened, asked, tolerance)

    monkeypatch.setattr(scoring, "score_case", counted)
    done = call(run, "--data", data.folder, "--part", "all")
    assert seen == ["a"]
    assert "TRAINED ON" in done.stdout and "a  trained on" in done.stdout
    assert done.stdout.index("kept for the end") < done.stdout.index("TRAINED ON")


def test_json_is_all_that_is_printed(run: Path, data: Dataset, tmp_path: Path) -> None:
    done = call(run, "--data", data.folder, "--json", "--out", tmp_path / "out", "--tolerance", "3")
    printed = json.loads(done.stdout)
    assert printed["tolerance_mm"] == 3.0 and printed["summary"]["test"]["cases"] == 2
    assert (tmp_path / "out" / "evaluation.csv").is_file() and not (run / "evaluation").exists()


def test_one_image_and_its_reference(run: Path, recipe: Recipe, tmp_path: Path, recipe_text: str) -> None:
    case = phantom(tmp_path / "other", "x", 3)
    pair = ("--image", case.images[0], "--labels", case.labels)
    assert "1 case, new: not in the run's record" in call(run, *pair, "--threads", "1").stdout
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_text.replace("from_ids = [7]", "from_ids = [99]"))
    printed = json.loads(call(run, *pair, "--recipe", path, "--json").stdout)
    assert printed["cases"][0]["labels"][0]["reference_ml"] == 0
    with pytest.raises(RecipeError, match="There is no recipe"):
        call(run, *pair, "--recipe", "none")


def test_two_runs_are_compared_and_drawn(run: Path, recipe: Recipe, data: Dataset, tmp_path: Path) -> None:
    other = untrained(tmp_path / "other", recipe, [line(data.cases[2], "train")], seed=1)
    done = call(run, "--data", data.folder, "--compare", other)
    assert "difference" in done.stdout and "other, 1 case, TRAINED ON" in done.stdout.replace("\n", " ")
    out = run / "evaluation"
    assert sorted(path.name for path in out.iterdir()) == [
        "compare-b_4_12.png",
        "compare-c.png",
        "compare-other.csv",
        "compare-other.json",
        "evaluation.csv",
        "evaluation.json",
    ]
    done = call(run, "--data", data.folder, "--compare", other, "--cases", "c", "--json", "--out", tmp_path / "out")
    printed = json.loads(done.stdout)
    assert printed["name"] == "run" and printed["compared"]["name"] == "other"
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["compare-c.png"]


def test_what_cannot_be_done_is_said_in_a_sentence(run: Path, data: Dataset, recipe: Recipe, tmp_path: Path) -> None:
    case = data.cases[0]
    old = untrained(tmp_path / "old", recipe, None)
    refused = [
        ((run,), "either by --data FOLDER or by --image"),
        ((run, "--data", data.folder, "--image", case.images[0]), "either by --data FOLDER or by --image"),
        ((run, "--image", case.images[0]), "1 images and 0"),
        ((run, "--data", data.folder, "--part", "some"), "--part is one of test, validation, train, all; got 'some'"),
        ((run, "--data", data.folder, "--part", "validation"), "No case of the data is of the part validation"),
        ((old, "--data", data.folder, "--part", "test"), "old has no record of its cases"),
        ((tmp_path, "--data", data.folder), "is no trained model"),
        ((SHIPPED, "--image", case.images[0], "--labels", case.labels, "--compare", run, "--recipe", "demo"), "--out"),
    ]
    for words, sentence in refused:
        with pytest.raises(DataError, match=sentence):
            call(*words)
    phantom(data.folder, "c", 4)
    with pytest.raises(DataError, match="knows c with other files"):
        call(run, "--data", data.folder)


def test_help_shows_an_example() -> None:
    assert "hilum evaluate runs/demo --data samples" in " ".join(call("--help").output.split())


def test_every_option_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "evaluate.md").read_text()
    options = [option for parameter in typer.main.get_command(evaluate_app).params for option in parameter.opts]
    assert {option for option in options if option.startswith("--") and option not in page} == {"--help"} & set(options)
