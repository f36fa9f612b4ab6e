from __future__ import annotations

import csv
import doctest
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hilum_search import train as module
from hilum_search.augment import Slab
from hilum_search.data import Case, split
from hilum_search.errors import DataError
from hilum_search.recipe import Recipe
from hilum_search.record import Cases
from hilum_search.train import Progress, train
from hilum_search.trained import read_trained


class StoppedError(Exception):
    pass


def stop_after(step: int) -> module.Report:
    def report(progress: Progress) -> None:
        if progress.step == step:
            raise StoppedError

    return report


def test_the_loss_falls_and_the_phantom_is_learnt(recipe: Recipe, case: Case, tmp_path: Path) -> None:
    losses: list[float] = []
    longer = recipe.with_training(steps=80, held_back=[(15, 19)], validate_every=80)
    slabs, held = split(case, longer)
    trained = train(longer, Cases(slabs, held), tmp_path / "run", lambda p: losses.append(p.loss))
    assert len(losses) == 80
    assert losses[-1] < 0.5 * losses[0]
    assert trained.training["dice"]["rod"] > 0.6
    assert trained.training["dice"]["rod enhanced"] > 0.6


def test_half_precision_learns_nearly_the_same(recipe: Recipe, case: Case, tmp_path: Path) -> None:
    losses: dict[str, list[float]] = {"f32": [], "bf16": []}
    for precision, kept in losses.items():
        chosen = recipe.with_training(steps=10, precision=precision)
        train(chosen, Cases([case]), tmp_path / precision, lambda p, kept=kept: kept.append(p.loss))  # type: ignore[misc]
    assert losses["bf16"] != losses["f32"]
    assert losses["bf16"][-1] == pytest.approx(losses["f32"][-1], rel=0.1)


def test_the_folder_holds_everything_and_no_pickle(recipe: Recipe, case: Case, tmp_path: Path) -> None:
    trained = train(recipe, Cases([case], files=[{"phantom.nii.gz": "0" * 64}]), tmp_path / "run")
    again = read_trained(tmp_path / "run")
    image = torch.rand(1, 1, 16, 16, 8)
    assert torch.equal(again.network(image), trained.network(image))
    assert again.manifest == trained.manifest
    assert again.manifest.fingerprint.cases == 1
    assert again.manifest.fingerprint.spacing == (2.0, 2.0, 2.0)
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert record["files"] == [{"phantom.nii.gz": "0" * 64}]
    assert (record["seed"], record["train"], record["dice"]) == (0, ["phantom"], {})
    assert {path.suffix for path in (tmp_path / "run").iterdir()} == {".json", ".safetensors", ".csv"}


def test_a_killed_run_goes_on_to_the_same_weights(recipe: Recipe, case: Case, tmp_path: Path) -> None:
    train(recipe, Cases([case]), tmp_path / "whole")
    with pytest.raises(StoppedError):
        train(recipe, Cases([case]), tmp_path / "cut", stop_after(8))  # last checkpoint: step 5
    steps: list[int] = []
    train(recipe, Cases([case]), tmp_path / "cut", lambda p: steps.append(p.step))
    assert steps == list(range(6, 13))
    whole, cut = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[key], cut[key]) for key in whole)


def test_offsets_move_the_finished_logits_only(recipe: Recipe, case: Case, tmp_path: Path) -> None:
    short = recipe.with_training(steps=3)
    plain = train(short, Cases([case]), tmp_path / "plain").network
    moved = train(short.with_training(logit_offsets=[0.0, -1.0, 2.0]), Cases([case]), tmp_path / "moved").network
    image = torch.rand(1, 1, 16, 16, 8, generator=torch.Generator().manual_seed(0))
    change = (moved(image) - plain(image)).mean((0, 2, 3, 4))
    torch.testing.assert_close(change, torch.tensor([0.0, -1.0, 2.0]))


def test_the_cost_counts_every_stretch(recipe: Recipe, case: Case, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        train(recipe, Cases([case]), tmp_path, stop_after(11))  # last checkpoint: step 10
    whole = train(recipe, Cases([case]), tmp_path).training["cpu_seconds"]
    again = train(recipe, Cases([case]), tmp_path).training["cpu_seconds"]
    assert again > 0.5 * whole > 0.05


def test_another_seed_gives_other_weights(recipe: Recipe, case: Case, tmp_path: Path) -> None:
    short = recipe.with_training(steps=2)
    a = train(short, Cases([case]), tmp_path / "a").network
    b = train(short.with_training(seed=1), Cases([case]), tmp_path / "b").network
    assert not torch.equal(a.head.weight, b.head.weight)


def test_a_run_of_another_recipe_is_not_taken_up(recipe: Recipe, case: Case, tmp_path: Path) -> None:
    train(recipe.with_training(steps=2), Cases([case]), tmp_path / "run")
    with pytest.raises(DataError, match="another recipe"):
        train(recipe.with_training(steps=2, seed=1), Cases([case]), tmp_path / "run")


def test_the_curve_has_no_row_twice_after_a_resume(
    recipe: Recipe, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CURVE_EVERY", 2)
    with pytest.raises(StoppedError):
        train(recipe, Cases([case]), tmp_path, stop_after(9))
    train(recipe, Cases([case]), tmp_path)
    with (tmp_path / "curve.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [2, 4, 6, 8, 10, 12]


def test_windows_stand_where_inference_puts_them() -> None:
    slab = Slab(torch.zeros(1, 40, 10, 20), torch.zeros(40, 10, 20, dtype=torch.long))
    side = torch.tensor([16.0, 16.0, 8.0])
    for corner in ([0.0, 0.0, 0.0], [39.0, 9.0, 19.0]):
        centre = module._within(torch.tensor(corner), side, slab)
        first, last = centre - (side - 1) / 2, centre + (side - 1) / 2
        assert float(first[0]) >= -4 and float(last[0]) <= 39 + 4
        assert abs(float(centre[1]) - 4.5) == 4  # narrower than a window: about its middle
        assert float(centre[2]) == corner[2]


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(module).failed == 0
