from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hilum_search.architecture import C2FNAS_PANC, NAMED
from hilum_search.dry_run import describe, dry_run
from hilum_search.errors import RecipeError, SearchError
from hilum_search.network import count
from hilum_search.recipe import Recipe, parse_recipe
from hilum_search.train_cli import train_app

CUBE = "size = [16, 16, 8]", "size = [32, 32, 32]"


def test_it_tells_what_the_recipe_comes_to(recipe: Recipe) -> None:
    run = dry_run(recipe)
    assert run.images == (2, 1, 16, 16, 8)
    assert run.logits == ((2, 3, 16, 16, 8),)
    assert run.parameters == count(recipe.architecture, 1, 3)
    assert (run.steps, run.windows, run.epochs) == (12, 24, 12 / 250)
    assert run.rates[0] == (0, 1e-2)
    assert run.rates[1] == (2, 2e-2)
    assert run.rates[-1][0] == 11
    assert 0.5 < run.loss < 3
    assert run.memory.window < run.memory.step < 2 * run.memory.window
    assert run.memory.step_half > run.memory.step / 2


def test_it_is_plain_data(recipe: Recipe) -> None:
    fields = json.loads(json.dumps(dataclasses.asdict(dry_run(recipe))))
    assert fields["name"] == "phantom"
    assert fields["hours"][0]["rate"]["gpu"] == "V100 16 GB"


def test_coarser_levels_are_scored_with_deep_supervision(recipe: Recipe) -> None:
    run = dry_run(recipe.with_training(deep_supervision=True))
    assert run.logits == ((2, 3, 16, 16, 8), (2, 3, 8, 8, 4))
    assert "and coarser 8 x 8 x 4" in describe(run)


def test_milestones_are_among_the_rates(recipe: Recipe) -> None:
    falling = recipe.with_training(steps=100, schedule="steps", milestones=(0.25, 0.5), decay=0.1, warmup=0)
    rates = dict(dry_run(falling).rates)
    assert rates == pytest.approx({0: 2e-2, 25: 2e-3, 50: 2e-4, 99: 2e-4})


def test_sgd_keeps_less_than_adamw(recipe: Recipe) -> None:
    sgd, adamw = (dry_run(recipe.with_training(optimiser=name)) for name in ("sgd", "adamw"))
    assert adamw.memory.step - sgd.memory.step == 4 * adamw.parameters


def test_folds_are_one_where_slabs_are_held_back(recipe: Recipe) -> None:
    assert dry_run(recipe).folds == 5
    held = dry_run(recipe.with_split(validation_planes=[(0, 4)], gap=8))
    assert held.folds == 1
    assert "folds" not in describe(held)


def test_lines_are_aligned(recipe: Recipe) -> None:
    first, *lines = describe(dry_run(recipe)).splitlines()
    assert first.startswith("phantom: its parts fit together")
    column = lines[0].index("ct (CT)")
    assert all(line[column - 2 : column] == "  " and line[column] != " " for line in lines)


def test_a_large_network_is_tried_without_its_weights(recipe_text: str) -> None:
    recipe = parse_recipe(recipe_text.replace(*CUBE)).with_architecture(C2FNAS_PANC)
    run = dry_run(recipe)
    assert run.parameters == 17_021_827
    assert run.macs == pytest.approx(150.02e9 / 27, rel=1e-3)


def test_batch_normalisation_needs_two_windows(recipe_text: str) -> None:
    recipe = parse_recipe(recipe_text.replace(*CUBE)).with_architecture(NAMED["vnas-nih-pancreas"])
    assert dry_run(recipe).family == "vnas"
    with pytest.raises(RecipeError, match="normalises over the batch"):
        dry_run(recipe.with_training(batch=1))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("class_weights = [1.0, 2.0, 2.0]", "class_weights = [0.0, 0.0, 0.0]", "The loss of random logits is nan"),
        ("steps = [[", 'stage = "before-resampling"\nsteps = [[', "after-resampling only"),
    ],
)
def test_what_does_not_fit_is_one_sentence(recipe_text: str, old: str, new: str, reason: str) -> None:
    assert old in recipe_text
    with pytest.raises(RecipeError, match=reason) as caught:
        dry_run(parse_recipe(recipe_text.replace(old, new)))
    assert caught.value.message.count(". ") == 0
    assert caught.value.message.endswith(".")


def test_values_that_are_not_finite_are_told(recipe_text: str) -> None:
    rule = '{ rule = "window", low = 0.0, high = 200.0 }'
    unclipped = recipe_text.replace(rule, '{ rule = "z-score", mean = 80.0, sd = 20.0 }')
    with pytest.raises(RecipeError, match="not finite after augmentation"):
        dry_run(parse_recipe(unclipped.replace("gain = 0.02", "gain = 1e39")))


def test_a_window_that_the_network_cannot_take_is_told(recipe_text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def narrow(*_: object) -> None:
        raise RuntimeError("pooling kernel 64 is larger than 48\nand more")

    monkeypatch.setattr("hilum_search.dry_run.build", narrow)
    with pytest.raises(RecipeError, match=r"cannot take windows of 16 x 16 x 8 voxels \(pooling kernel 64 is larger"):
        dry_run(parse_recipe(recipe_text))


def test_the_command_trains_nothing(recipe_text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(recipe_text)
    out = tmp_path / "run"
    done = CliRunner().invoke(
        train_app, ["--recipe", str(path), "--out", str(out), "--dry-run"], catch_exceptions=False
    )
    assert done.exit_code == 0
    assert "phantom: its parts fit together" in done.output
    assert not out.exists()


def test_the_command_refuses_a_recipe_that_cannot_train(recipe_text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(recipe_text.replace("class_weights = [1.0, 2.0, 2.0]", "class_weights = [0.0, 0.0, 0.0]"))
    with pytest.raises(SearchError, match="class_weights"):
        CliRunner().invoke(
            train_app, ["--recipe", str(path), "--out", str(tmp_path), "--dry-run"], catch_exceptions=False
        )
