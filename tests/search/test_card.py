from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hilum_search.card import card
from hilum_search.data import Case
from hilum_search.recipe import Recipe, parse_recipe
from hilum_search.record import Cases
from hilum_search.train import train
from hilum_search.trained import Trained, read_trained, write_ensemble


@pytest.fixture
def trained(recipe_text: str, case: Case, tmp_path: Path) -> Trained:
    text = recipe_text.replace(
        'name = "phantom"', 'name = "phantom"\ntitle = "A phantom"\nlimits = "Sees rods only."', 1
    )
    recipe = parse_recipe(text).with_training(steps=2)
    cases = Cases.of(recipe, [case.planes(0, 8)], [case.planes(12, 16), case.planes(16, 20)])
    return train(recipe, cases, tmp_path / "run")


def test_a_card_tells_what_the_record_holds(trained: Trained, tmp_path: Path) -> None:
    text = (tmp_path / "run" / "card.md").read_text()
    assert text == card(trained.manifest, json.loads((tmp_path / "run" / "training.json").read_text()))
    assert text.startswith("# A phantom\n")
    for told in ("Sees rods only.", "not a medical device", "background, ball, rod", "2 of 2 windows, seed 0"):
        assert told in text
    assert "RAS, 2 x 2 x 2 mm; window (low 0, high 200" in text
    row = next(line for line in text.splitlines() if line.startswith("| all together"))
    assert row.split("|")[3].strip() == f"{trained.training['dice']['rod']:.3f}"
    assert sum(line.startswith("| phantom[") and "validation" in line for line in text.splitlines()) == 2
    assert str(tmp_path) not in text


def test_without_anything_held_back_there_is_no_figure(recipe: Recipe, case: Case, tmp_path: Path) -> None:
    train(recipe.with_training(steps=1), Cases.of(recipe, [case]), tmp_path)
    assert "Nothing was held back" in (tmp_path / "card.md").read_text()


def test_an_ensembles_card_tells_the_mean_of_its_folds(recipe: Recipe, case: Case, tmp_path: Path) -> None:
    found: list[dict[str, Any]] = []
    short = recipe.with_training(steps=2)
    for number, planes in enumerate(((4, 8), (12, 16))):
        cases = Cases.of(short, [case.planes(8, 12)], [case.planes(*planes)])
        found.append(train(short, cases, tmp_path / f"fold{number}").training)
    write_ensemble(tmp_path, ["fold0", "fold1"])
    together = read_trained(tmp_path)
    text = card(together.manifest, together.training)
    mean = sum(each["dice"]["rod"] for each in found) / 2
    row = next(line for line in text.splitlines() if line.startswith("| mean of 2 folds"))
    assert float(row.split("|")[3]) == pytest.approx(mean, abs=6e-4)
    assert "2 folds, logits averaged" in text
    assert "Each case by the fold that had not seen it" in text
