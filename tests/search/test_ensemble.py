from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hilum_search.data import Case
from hilum_search.ensemble import ensemble
from hilum_search.errors import DataError
from hilum_search.network import Network, build
from hilum_search.recipe import Recipe
from hilum_search.record import Cases
from hilum_search.train import train
from hilum_search.trained import read_trained, write_ensemble


def networks(recipe: Recipe, count: int) -> list[Network]:
    torch.manual_seed(0)
    return [build(recipe.architecture, 1, recipe.classes).eval() for _ in range(count)]


def test_an_ensemble_answers_the_mean_of_the_logits(recipe: Recipe) -> None:
    members = networks(recipe, 3)
    image = torch.rand(2, 1, 16, 16, 8)
    with torch.no_grad():
        mean = torch.stack([member(image) for member in members]).mean(0)
        torch.testing.assert_close(ensemble(members)(image), mean)


def test_networks_of_other_classes_are_no_ensemble(recipe: Recipe) -> None:
    with pytest.raises(DataError, match="same classes"):
        ensemble([*networks(recipe, 1), build(recipe.architecture, 1, 5)])
    with pytest.raises(DataError, match="same classes"):
        ensemble([])


def test_a_folder_of_folds_is_read_as_one_model(recipe: Recipe, case: Case, tmp_path: Path) -> None:
    image = torch.rand(1, 1, 16, 16, 8)
    answers = []
    for number, (learnt, held) in enumerate((((0, 8), (12, 20)), ((12, 20), (0, 8)))):
        short = recipe.with_training(steps=2, seed=number)
        cases = Cases.of(short, [case.planes(*learnt)], [case.planes(*held)])
        network = train(short, cases, tmp_path / f"fold{number}").network.eval()
        with torch.no_grad():
            answers.append(network(image))
    write_ensemble(tmp_path, ["fold0", "fold1"])
    together = read_trained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(together.network(image), (answers[0] + answers[1]) / 2)
    assert together.manifest.folds == 2
    parts = {each["name"]: each["part"] for each in together.training["cases"]}
    assert parts == {"phantom[0:8]": "train", "phantom[12:20]": "train"}  # some fold has learnt each
