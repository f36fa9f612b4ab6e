from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hilum_cases import phantom
from safetensors.torch import load_file
from typer.testing import CliRunner

from hilum_search.architecture import C2FNAS, to_json
from hilum_search.cases import Files
from hilum_search.errors import ArchitectureError, DataError, RecipeError
from hilum_search.train_cli import train_app
from hilum_search.trained import read_trained


@pytest.fixture
def arguments(files: Files, recipe_text: str, tmp_path: Path) -> list[str]:
    """A recipe of three steps and its data, in the words of the command."""
    path = tmp_path / "given.toml"
    path.write_text(recipe_text)
    return ["--recipe", str(path), "--data", str(tmp_path), "--steps", "3"]


def run(*words: str) -> str:
    result = CliRunner().invoke(train_app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_run_tells_what_it_did_and_what_comes_next(arguments: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    said = run(*arguments, "--out", str(out), "--held-back", "2:6", "--seed", "4")
    assert "3 steps on 1 train, 1 validation" in said  # planes 0 and 1 lie within the gap
    assert "ball: Dice" in said
    assert "hilum export" in said
    record = json.loads((out / "training.json").read_text())
    assert record["seed"] == 4
    assert [(each["part"], each["planes"]) for each in record["cases"]] == [
        ("train", [10, None]),
        ("validation", [2, 6]),
    ]
    assert set(record["cases"][0]["files"]) == {"phantom.nii.gz", "phantom_labels.nii.gz"}
    assert "slab" in (out / "card.md").read_text().lower()
    assert (out / "survey.json").is_file()


def test_a_run_of_an_earlier_release_is_told_again(arguments: list[str], tmp_path: Path) -> None:
    """Its record does not tell all steps apart from those of the kept weights."""
    out = tmp_path / "run"
    run(*arguments, "--out", str(out))
    record = json.loads((out / "training.json").read_text())
    del record["steps"]
    (out / "training.json").write_text(json.dumps(record))
    assert "3 steps on 1 train" in run(*arguments, "--out", str(out))


def test_another_network_by_file_and_by_name(arguments: list[str], tmp_path: Path) -> None:
    given = tmp_path / "architecture.json"
    given.write_text(to_json(C2FNAS(2, (0,), ("3d",))))
    run(*arguments, "--out", str(tmp_path / "run"), "--arch", str(given))
    assert read_trained(tmp_path / "run").architecture == C2FNAS(2, (0,), ("3d",))
    with pytest.raises(RecipeError, match="multiples of 32"):
        run(*arguments, "--out", str(tmp_path / "other"), "--arch", "vnas-2d")
    with pytest.raises(ArchitectureError, match="c2fnas-panc"):
        run(*arguments, "--out", str(tmp_path / "other"), "--arch", "nowhere")


def test_a_finished_run_is_fine_tuned(arguments: list[str], tmp_path: Path) -> None:
    run(*arguments, "--out", str(tmp_path / "before"))
    run(*arguments, "--out", str(tmp_path / "after"), "--from", str(tmp_path / "before"))
    assert len(json.loads((tmp_path / "after" / "training.json").read_text())["start"]) == 64
    before, after = (load_file(tmp_path / name / "weights.safetensors") for name in ("before", "after"))
    assert not all(torch.equal(before[key], after[key]) for key in before)


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """A folder of three pairs, whose images differ: equal ones may not stand on two sides of a split."""
    for number in range(3):
        phantom(tmp_path / "three", f"case{number}", number)
    return tmp_path / "three"


def without_cases(text: str) -> str:
    head, rest = text.split("[[cases]]", 1)
    return head + rest[rest.index("[preprocessing.geometry]") :]


def test_all_folds_become_one_ensemble(recipe_text: str, three: Path, tmp_path: Path) -> None:
    recipe, out = tmp_path / "folds.toml", tmp_path / "run"
    recipe.write_text(without_cases(recipe_text))
    words = ["--recipe", str(recipe), "--data", str(three), "--steps", "2", "--out", str(out)]
    assert "one ensemble" in run(*words, "--folds", "3")
    held = []
    for number in range(3):
        cases = json.loads((out / f"fold{number}" / "training.json").read_text())["cases"]
        held += [each["name"] for each in cases if each["part"] == "validation"]
    assert sorted(held) == ["case0", "case1", "case2"]
    assert read_trained(out).manifest.folds == 3
    assert (out / "survey.json").is_file()  # every case was read once, not once a fold
    assert not (out / "fold1" / "survey.json").exists()
    with pytest.raises(DataError, match="3"):
        run(*words, "--folds", "4")


def test_several_processes_train_all_folds(recipe_text: str, three: Path, tmp_path: Path) -> None:
    recipe, out = tmp_path / "folds.toml", tmp_path / "run"
    recipe.write_text(without_cases(recipe_text))
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "hilum_client",
    ]
    words = ["train", "--recipe", str(recipe), "--data", str(three), "--steps", "2", "--out", str(out), "--folds", "3"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, *words], capture_output=True, text=True, env=environment, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("one ensemble") == 1
    assert read_trained(out).manifest.folds == 3


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--steps", "0"], "training.steps cannot be 0"),
        (["--fold", "-1"], "split.fold cannot be -1"),
        (["--device", "tpu"], "no device 'tpu'"),
    ],
)
def test_figures_outside_their_bounds_are_one_sentence(
    words: list[str], reason: str, arguments: list[str], tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=reason) as caught:
        run(*arguments, "--out", str(tmp_path / "run"), *words)
    assert "\n" not in str(caught.value)


def test_without_a_recipe_one_is_planned_and_kept(three: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    given = tmp_path / "architecture.json"
    given.write_text(to_json(C2FNAS(2, (0, 1, 0), ("2d", "p3d", "3d"))))
    said = run("--data", str(three), "--out", str(out), "--arch", str(given), "--steps", "1")
    assert "planned from the data" in said
    assert "[preprocessing.windows]" in (out / "recipe.toml").read_text()
    assert read_trained(out).architecture == C2FNAS(2, (0, 1, 0), ("2d", "p3d", "3d"))


def test_a_label_that_no_training_case_holds_is_named(recipe_text: str, files: Files, tmp_path: Path) -> None:
    recipe = tmp_path / "given.toml"
    recipe.write_text(recipe_text.replace("from_ids = [7]", "from_ids = [99]"))
    with pytest.raises(DataError, match="'ball'"):
        run("--recipe", str(recipe), "--data", str(tmp_path), "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()


def test_a_slab_is_two_numbers(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="FIRST:LAST"):
        run(*arguments, "--out", str(tmp_path / "run"), "--held-back", "top")


def test_help_shows_an_example() -> None:
    assert "hilum train --arch c2fnas-panc" in " ".join(CliRunner().invoke(train_app, ["--help"]).output.split())
