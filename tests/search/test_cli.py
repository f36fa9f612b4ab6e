from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from hilum_search.cli import evaluate_app, train_app
from hilum_search.data import Files
from hilum_search.errors import DataError, RecipeError


@pytest.fixture
def recipe_file(files: Files, recipe_text: str, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_text)
    return path


def test_train_then_evaluate(files: Files, recipe_file: Path, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    arguments = ["--recipe", str(recipe_file), "--data", str(tmp_path), "--out", run, "--steps", "3"]
    trained = CliRunner().invoke(train_app, [*arguments, "--held-back", "2:6"], catch_exceptions=False)
    assert trained.exit_code == 0
    assert "on the held-back slabs" in trained.output
    pair = ["--image", str(files.image), "--labels", str(files.labels)]
    for extra in ([], ["--recipe", str(recipe_file)]):
        scored = CliRunner().invoke(evaluate_app, [run, *pair, *extra], catch_exceptions=False)
        assert scored.exit_code == 0
        assert "ball" in scored.output


def test_one_reference_for_each_image(files: Files, recipe_file: Path, tmp_path: Path) -> None:
    CliRunner().invoke(train_app, ["--recipe", str(recipe_file), "--data", str(tmp_path), "--out", str(tmp_path / "r")])
    arguments = [str(tmp_path / "r"), "--image", "a", "--image", "b", "--labels", str(files.labels)]
    with pytest.raises(DataError, match="2 images and 1"):
        CliRunner().invoke(evaluate_app, arguments, catch_exceptions=False)


def test_a_slab_is_two_numbers(recipe_file: Path, tmp_path: Path) -> None:
    arguments = ["--recipe", str(recipe_file), "--out", str(tmp_path), "--held-back", "top"]
    with pytest.raises(RecipeError, match="FIRST:LAST"):
        CliRunner().invoke(train_app, arguments, catch_exceptions=False)


@pytest.mark.parametrize(
    ("app", "example"), [(train_app, "hilum train --recipe demo"), (evaluate_app, "hilum evaluate")]
)
def test_help_shows_an_example(app: object, example: str) -> None:
    assert example in " ".join(CliRunner().invoke(app, ["--help"]).output.split())  # type: ignore[arg-type]
