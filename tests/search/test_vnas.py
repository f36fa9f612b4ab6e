from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hilum_search import entropy
from hilum_search.architecture import VNAS, parse_architecture
from hilum_search.data import Case
from hilum_search.errors import DataError, RecipeError, TrainingError
from hilum_search.losses import make_loss
from hilum_search.progress import Report, Stage
from hilum_search.recipe import Recipe, parse_recipe
from hilum_search.record import Cases
from hilum_search.relaxed import Relaxed
from hilum_search.spaces import VNASSpace
from hilum_search.spent import Spent
from hilum_search.validate import validate
from hilum_search.vnas import RECORD, SNAPSHOT, Found, Price, Settings, search, space_of
from hilum_search.windows import Windows, seed_of

TINY = VNAS(("2d",) * 16, ("2d",) * 5, 4, (4, 4, 4, 4), pooling=(1, 2))
SPACE = VNASSpace(TINY, ("2d", "p3d"))
FAST = Settings(5, 0.2, architecture_rate=0.1)


class StoppedError(Exception):
    pass


def stop_after(step: int) -> Report:
    def report(stage: Stage) -> None:
        if stage.done == step:
            raise StoppedError

    return report


@pytest.fixture
def small(recipe_text: str) -> Recipe:
    recipe = parse_recipe(recipe_text.replace("size = [16, 16, 8]", "size = [32, 32, 32]"))
    return recipe.with_architecture(TINY).with_training(checkpoint_every=2)


@pytest.fixture
def cases(small: Recipe, case: Case) -> Cases:
    """Slabs of the phantom; each holds ball and rod."""
    return Cases.of(small, [case.planes(0, 9)], [case.planes(9, 12)], [case.planes(12, 20)])


def tensors(folder: Path) -> dict[str, Tensor]:
    return dict(load_file(folder / SNAPSHOT))


def run(recipe: Recipe, cases: Cases, out: Path, settings: Settings, report: Report | None = None) -> Found:
    return search(recipe, cases, out, settings, report, SPACE)


def network_of(folder: Path) -> Relaxed:
    network = Relaxed(SPACE, 1, 3)
    found = {
        key.removeprefix("network."): value for key, value in tensors(folder).items() if key.startswith("network.")
    }
    network.load_state_dict(found)
    return network


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def but_seconds(found: Found) -> Found:
    return dataclasses.replace(found, spent=Spent())


def test_a_price_that_outweighs_everything_decides(small: Recipe, cases: Cases, tmp_path: Path) -> None:
    ms = tuple((1.0, 9.0) if cell % 2 else (9.0, 1.0) for cell in range(21))
    found = run(small, cases, tmp_path, dataclasses.replace(FAST, price=Price(ms, 1e4)))
    chosen = [*found.architecture.encoder, *found.architecture.decoder]
    assert chosen == ["2d" if cell % 2 else "p3d" for cell in range(21)]
    with pytest.raises(DataError, match="another recipe, settings"):
        run(small, cases, tmp_path, FAST)


def test_another_machine_goes_on_with_its_own_milliseconds(small: Recipe, cases: Cases, tmp_path: Path) -> None:
    one, other = (dataclasses.replace(FAST, price=Price(((ms, 2.0),) * 21, 0.5)) for ms in (1.0, 1.5))
    with pytest.raises(StoppedError):
        run(small, cases, tmp_path, one, stop_after(2))
    assert run(small, cases, tmp_path, other).steps == FAST.steps


def test_a_search_trains_weights_then_both_and_leaves_what_it_found(
    small: Recipe, cases: Cases, tmp_path: Path
) -> None:
    stages: list[Stage] = []
    found = run(small, cases, tmp_path, FAST, stages.append)
    assert [(stage.name, stage.done, stage.total) for stage in stages] == [("supernet", n, 5) for n in range(1, 6)]
    assert stages[-1].seconds_left == 0
    assert parse_architecture((tmp_path / "architecture.json").read_text()) == found.architecture
    assert found.architecture == network_of(tmp_path).decoded()
    assert found.architecture.widths == TINY.widths
    rows = entropy.read(tmp_path)
    assert [int(row["step"]) for row in rows] == [0, 5]
    assert float(rows[0]["encoder"]) == pytest.approx(math.log(2), abs=1e-8)
    assert float(rows[1]["encoder"]) < float(rows[0]["encoder"]) - 1e-3
    assert (tmp_path / "entropy.png").is_file()
    record = json.loads((tmp_path / RECORD).read_text())
    assert record["settings"] == dataclasses.asdict(FAST)
    assert record["architecture"]["encoder"] == list(found.architecture.encoder)
    assert record["entropy"]["decoder"][4] == pytest.approx(float(rows[1]["decoder_5"]), abs=1e-6)
    assert record["cpu_seconds"] > 0


def test_the_mixture_is_scored_by_the_pipeline_that_serves(small: Recipe, cases: Cases, tmp_path: Path) -> None:
    moved = small.with_training(logit_offsets=(-1.0, 0.5, 0.5))
    found = run(moved, cases, tmp_path, Settings(3, 0.5))
    network = network_of(tmp_path)
    with torch.no_grad():
        assert network.head.bias is not None
        network.head.bias += torch.tensor([-1.0, 0.5, 0.5])
    assert found.mix_dice == validate(network, small, [each.case for each in cases.test]).together
    assert found.mix_dice_validation == validate(network, small, [each.case for each in cases.validation]).together
    assert max(found.mix_dice.values()) > 0


def test_weights_know_nothing_of_the_steps_of_alpha_and_beta(small: Recipe, cases: Cases, tmp_path: Path) -> None:
    """Batch normalisation's running statistics are compared too."""
    run(small, cases, tmp_path / "alone", Settings(1, 1.0))
    run(small, cases, tmp_path / "both", Settings(1, 0.0))
    alone, both = network_of(tmp_path / "alone"), network_of(tmp_path / "both")
    assert not bool(alone.alpha.any() or alone.beta.any())
    assert bool(both.alpha.any(1).all() and both.beta.any(1).all())
    one, other = alone.state_dict(), both.state_dict()
    for table in ("alpha", "beta"):
        del one[table], other[table]
    assert same(one, other)


def test_alpha_and_beta_descend_on_the_validation_part(small: Recipe, cases: Cases, tmp_path: Path) -> None:
    run(small, cases, tmp_path, Settings(1, 0.0, architecture_rate=0.01, seed=3))
    trained = network_of(tmp_path)
    network = network_of(tmp_path)
    with torch.no_grad():
        network.alpha.zero_()
        network.beta.zero_()
    windows = Windows(cases.validation, small.with_training(seed=seed_of(3, 1)))
    images, classes = windows.batch(0, range(small.training.batch))
    loss = make_loss(small.training)(network(images), classes)
    slopes = torch.cat(torch.autograd.grad(loss, network.architecture_parameters()))
    moves = torch.cat([trained.alpha, trained.beta]).detach()
    clear = slopes.abs() > 1e-5
    assert int(clear.sum()) > 20
    torch.testing.assert_close(moves[clear], -0.01 * slopes[clear].sign(), atol=1e-4, rtol=0)  # Adam's first step


def test_killed_and_taken_up_it_is_the_undisturbed_search(small: Recipe, cases: Cases, tmp_path: Path) -> None:
    undisturbed = run(small, cases, tmp_path / "one", FAST)
    for step in (1, 3, 4):  # before the first snapshot, between two, right after one
        with pytest.raises(StoppedError):
            run(small, cases, tmp_path / "other", FAST, stop_after(step))
    resumed = run(small, cases, tmp_path / "other", FAST)
    assert but_seconds(resumed) == but_seconds(undisturbed)
    assert same(tensors(tmp_path / "one"), tensors(tmp_path / "other"))
    assert (tmp_path / "one" / entropy.NAME).read_bytes() == (tmp_path / "other" / entropy.NAME).read_bytes()


def test_a_finished_search_is_read_back(small: Recipe, cases: Cases, tmp_path: Path) -> None:
    found = run(small, cases, tmp_path, Settings(2, 0.5))
    stages: list[Stage] = []
    assert run(small, cases, tmp_path, Settings(2, 0.5), stages.append) == found
    (tmp_path / RECORD).unlink()  # as if killed while it was scored
    assert but_seconds(run(small, cases, tmp_path, Settings(2, 0.5), stages.append)) == but_seconds(found)
    assert stages == []
    with pytest.raises(DataError, match="use a new folder"):
        run(small, cases, tmp_path, Settings(2, 0.5, seed=1))


def test_the_held_back_cases_are_part_of_what_a_folder_holds(
    small: Recipe, cases: Cases, case: Case, tmp_path: Path
) -> None:
    run(small, cases, tmp_path, Settings(1))
    other = Cases.of(small, [case.planes(0, 9)], [case.planes(9, 11)], [case.planes(12, 20)])
    with pytest.raises(DataError, match="use a new folder"):
        search(small, other, tmp_path, Settings(1))
    (tmp_path / RECORD).unlink()
    with pytest.raises(DataError, match="use a new folder"):
        search(small, other, tmp_path, Settings(1))


def test_without_a_space_the_recipes_widths_or_the_published_ones(recipe: Recipe, small: Recipe) -> None:
    assert space_of(small) == VNASSpace(TINY)
    assert space_of(recipe) == VNASSpace()


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_three_parts_are_needed(small: Recipe, cases: Cases, tmp_path: Path, part: str) -> None:
    without = dataclasses.replace(cases, **{part: ()})
    with pytest.raises(DataError, match=f"The {part} part holds no case; a search needs three"):
        run(small, without, tmp_path / "run", FAST)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_every_part_must_hold_every_label(small: Recipe, cases: Cases, case: Case, tmp_path: Path, part: str) -> None:
    rod = Cases.of(small, [case.planes(0, 4)]).train  # the ball begins at plane 6
    with pytest.raises(DataError, match=f"No case of the {part} part holds the label 'ball'"):
        run(small, dataclasses.replace(cases, **{part: rod}), tmp_path / "run", FAST)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_no_case_stands_in_two_parts(small: Recipe, cases: Cases, tmp_path: Path) -> None:
    twice = dataclasses.replace(cases, test=[*cases.test, *cases.train])
    with pytest.raises(DataError, match=r"phantom\[0:9\] stands in the train part and in the test part"):
        run(small, twice, tmp_path / "run", FAST)


def test_what_the_super_net_cannot_be_trained_with_is_refused_first(
    small: Recipe, cases: Cases, recipe_text: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(RecipeError, match=r"training\.batch to 2"):
        search(small.with_training(batch=1), cases, out, FAST)
    with pytest.raises(RecipeError, match="fp16 is not offered"):
        search(small.with_training(precision="fp16"), cases, out, FAST)
    with pytest.raises(RecipeError, match="multiples of 32"):
        search(parse_recipe(recipe_text), cases, out, FAST)
    with pytest.raises(RecipeError, match="is for the CPU"):
        search(small.with_training(deterministic=True), cases, out, FAST, device=torch.device("cuda"))
    with pytest.raises(RecipeError, match="one operator only"):
        search(small, cases, out, FAST, space=VNASSpace(TINY, ("3d",)))
    assert not out.exists()


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"warmup_share": 1.1}, {"learning_rate": 0.0}, {"architecture_rate": -1.0}]
)
def test_settings_out_of_bounds(wrong: dict[str, float]) -> None:
    with pytest.raises(RecipeError):
        dataclasses.replace(FAST, **wrong)  # type: ignore[arg-type]


def test_a_search_that_went_astray_says_so(small: Recipe, cases: Cases, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    with pytest.raises(TrainingError, match="learning rates"):
        run(small, cases, tmp_path, Settings(4, learning_rate=1e38))
    assert torch.get_num_threads() == before
    assert not (tmp_path / RECORD).exists()
