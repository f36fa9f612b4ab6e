from __future__ import annotations

import dataclasses
import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hilum_search.architecture import C2FNAS, Architecture, digest
from hilum_search.c2fnas import supernet_run
from hilum_search.c2fnas.fine import FineSettings, Inherited, candidates, rank
from hilum_search.c2fnas.paths import changed, crossover, path_at
from hilum_search.c2fnas.supernet import SuperNet
from hilum_search.c2fnas.supernet_run import spent, train_supernet
from hilum_search.children import Result
from hilum_search.data import Case
from hilum_search.errors import ArchitectureError, DataError, RecipeError, SearchError, TrainingError
from hilum_search.losses import make_loss
from hilum_search.network import build
from hilum_search.progress import Report, Stage
from hilum_search.recipe import Recipe
from hilum_search.record import Cases
from hilum_search.spaces import C2FNASSpace, Genotype
from hilum_search.validate import validate
from hilum_search.windows import Windows

SPACE = C2FNASSpace(filters=2, cells=4, shape=(0, 1, 0))
WALK = 1
FEW = FineSettings(steps=12, candidates=6, population=3, generations=2)
SGD = {"optimiser": "sgd", "learning_rate": 0.05, "schedule": "poly"}


class StoppedError(Exception):
    pass


def stop_after(done: int) -> Report:
    def report(stage: Stage) -> None:
        if stage.done == done:
            raise StoppedError

    return report


@dataclass(frozen=True)
class Note:
    metrics: Mapping[str, Any]


@dataclass
class Book:
    """A ledger in memory."""

    notes: dict[str, Note] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def get(self, key: str) -> Note | None:
        return self.notes.get(key)

    def add(self, *, key: str, **content: Any) -> None:
        assert key not in self.notes
        self.notes[key] = Note(json.loads(json.dumps(content["metrics"])))
        self.rows.append({"key": key, **content})


@pytest.fixture
def sgd(recipe: Recipe) -> Recipe:
    return recipe.with_training(**SGD)


@pytest.fixture
def cases(sgd: Recipe, case: Case) -> Cases:
    return Cases.of(sgd, [case.planes(0, 11)], [case.planes(12, 20)])


def supernet(recipe: Recipe, space: C2FNASSpace = SPACE) -> SuperNet:
    torch.manual_seed(5)
    return SuperNet(space, WALK, 1, recipe.classes)


def equal(one: SuperNet, other: SuperNet) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def pretended(paths: Sequence[Genotype]) -> Iterator[Result]:
    """A Dice that is the higher the more cells are 3d, the first ones most; no path is better than (1, 1, 1, 1)."""
    for path in paths:
        value = sum(0.2 / (cell + 1) for cell, choice in enumerate(path.choices) if choice == 1)
        yield Result({"ball": value, "rod": value}, value, 1.0)


def test_paths_follow_from_the_seed_and_are_uniform() -> None:
    drawn = [path_at(SPACE, 0, step) for step in range(900)]
    assert drawn == [path_at(SPACE, 0, step) for step in range(900)]
    assert drawn[:20] != [path_at(SPACE, 1, step) for step in range(20)]
    assert len(set(drawn)) == 81
    for cell in range(4):
        assert all(240 < sum(path[cell] == n for path in drawn) < 360 for n in range(3))


@pytest.mark.parametrize("changes", [SGD, {"optimiser": "adamw"}], ids=["sgd", "adamw"])
def test_an_interrupted_super_net_goes_on_to_the_same_weights(
    changes: dict[str, object], recipe: Recipe, cases: Cases, tmp_path: Path
) -> None:
    chosen = recipe.with_training(**changes, checkpoint_every=2)
    whole = train_supernet(chosen, cases, tmp_path / "whole", FEW.steps, SPACE, WALK)
    for stop in (3, 5):  # so early, most operators were not seen: the optimiser knows nothing of them
        with pytest.raises(StoppedError):
            train_supernet(chosen, cases, tmp_path / "cut", FEW.steps, SPACE, WALK, stop_after(stop))
    stages: list[Stage] = []
    cut = train_supernet(chosen, cases, tmp_path / "cut", FEW.steps, SPACE, WALK, stages.append)
    assert [stage.done for stage in stages] == list(range(5, 13))
    assert {(stage.name, stage.total, stage.best) for stage in stages} == {("supernet", 12, None)}
    assert stages[-1].seconds_left == 0
    assert equal(whole, cut)
    assert not equal(whole, supernet(recipe))
    assert spent(tmp_path / "cut").cpu_seconds > 0


def test_a_finished_super_net_is_read_back(sgd: Recipe, cases: Cases, tmp_path: Path) -> None:
    first = train_supernet(sgd, cases, tmp_path, 3, SPACE, WALK)
    stages: list[Stage] = []
    assert equal(first, train_supernet(sgd, cases, tmp_path, 3, SPACE, WALK, stages.append))
    assert stages == []
    with pytest.raises(DataError, match="another recipe"):
        train_supernet(sgd, cases, tmp_path, 3, SPACE, WALK + 1)


def test_operators_off_the_path_keep_weight_and_momentum(
    sgd: Recipe, cases: Cases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[dict[str, Tensor]] = []

    def keep(stage: Stage) -> None:
        held.append({name: value.clone() for name, value in made[0].state_dict().items()})

    made: list[SuperNet] = []

    def remembered(*given: Any) -> SuperNet:
        made.append(SuperNet(*given))
        return made[0]

    monkeypatch.setattr(supernet_run, "SuperNet", remembered)
    train_supernet(sgd, cases, tmp_path, 6, SPACE, WALK, keep)
    for step, (before, after) in enumerate(itertools.pairwise(held), 1):
        on_path = {id(value) for value in made[0].path(path_at(SPACE, sgd.training.seed, step)).parameters()}
        for name, value in made[0].named_parameters():
            assert torch.equal(before[name], after[name]) == (id(value) not in on_path), (step, name)


def test_every_path_of_the_super_net_learns(sgd: Recipe, cases: Cases, tmp_path: Path) -> None:
    trained = train_supernet(sgd, cases, tmp_path, 30, SPACE, WALK)
    images, classes = Windows(cases.train, sgd).batch(1000, range(4))
    loss = make_loss(sgd.training)
    for choices in ((0, 0, 0, 0), (1, 1, 1, 1), (2, 2, 2, 2), (0, 1, 2, 0)):
        with torch.no_grad():
            after, before = (float(loss(one.path(choices)(images), classes)) for one in (trained, supernet(sgd)))
        assert after < 0.9 * before


def test_a_super_net_that_cannot_be_is_refused(sgd: Recipe, cases: Cases, tmp_path: Path) -> None:
    deep = C2FNASSpace(filters=2, cells=7)
    with pytest.raises(RecipeError, match="multiples of 16"):
        train_supernet(sgd, cases, tmp_path, FEW.steps, deep, 0)
    with pytest.raises(RecipeError, match="f32 or bf16"):
        train_supernet(sgd.with_training(precision="fp16"), cases, tmp_path, FEW.steps, SPACE, WALK)
    with pytest.raises(ArchitectureError, match="no topology"):
        train_supernet(sgd, cases, tmp_path, FEW.steps, SPACE, 99)
    with pytest.raises(DataError, match="no super-net"):
        spent(tmp_path)


def test_a_loss_that_is_no_number_ends_the_run(sgd: Recipe, case: Case, tmp_path: Path) -> None:
    broken = dataclasses.replace(case, image=case.image * float("nan"))
    with pytest.raises(TrainingError, match="loss is nan at step 1"):
        train_supernet(sgd, Cases.of(sgd, [broken]), tmp_path, FEW.steps, SPACE, WALK)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "at least one step"),
        ({"candidates": 0}, "one candidate"),
        ({"population": 7}, "population is 7"),
        ({"population": 1}, "population is 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(SearchError, match=message):
        dataclasses.replace(FEW, **changes)


def test_a_path_is_scored_as_its_plain_network_with_offsets(sgd: Recipe, cases: Cases) -> None:
    offset = sgd.with_training(logit_offsets=[0.0, 0.5, -0.5])
    whole, path = supernet(sgd), Genotype(WALK, (2, 1, 0, 1))
    network = build(SPACE.build(path), 1, sgd.classes)
    network.load_state_dict(whole.path(path.choices).state_dict())
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    (found,) = Inherited(whole, offset, cases)([path])
    assert network.head.bias is not None
    with torch.no_grad():
        network.head.bias += torch.tensor([0.0, 0.5, -0.5])
    wanted = validate(network, sgd, (each.case for each in cases.validation)).together
    assert found.dice == wanted
    assert found.mean == pytest.approx(sum(wanted.values()) / 2)
    assert all(torch.equal(value, before[name]) for name, value in whole.state_dict().items())


def test_ranking_reports_the_best_of_both_ways(sgd: Recipe, cases: Cases) -> None:
    settings, book, stages = FineSettings(1, 10, 5, 8), Book(), list[Stage]()
    found = rank(supernet(sgd), sgd, cases, settings, book, report=stages.append, score=pretended)
    values = dict(found.ranking)
    assert len(values) == len(found.ranking) == len(book.rows)
    assert [value for _, value in found.ranking] == sorted(values.values(), reverse=True)
    assert found.best == found.ranking[0][0] == found.by["evolution"][0]
    assert found.best.choices == (1, 1, 1, 1)  # 50 of 81 paths were seen by chance or bred towards it
    drawn = candidates(SPACE, WALK, settings, sgd.training.seed)
    assert len(set(drawn)) == 10 and found.by["random"][1] == max(values[path] for path in drawn)
    assert [stage.done for stage in stages] == list(range(1, 51))
    assert stages[-1] == Stage("rank", 50, 50, found.ranking[0][1], 0.0)
    assert {path.topology for path in values} == {WALK}
    row = book.rows[0]
    assert (row["stage"], row["seed"], row["architecture"]) == ("rank", 0, digest(SPACE.build(drawn[0])))
    assert row["metrics"]["choices"] == list(drawn[0].choices) and row["cost"] == {
        "cpu_seconds": 1.0,
        "gpu_seconds": 0.0,
    }


def test_without_generations_there_is_chance_alone(sgd: Recipe, cases: Cases) -> None:
    found = rank(supernet(sgd), sgd, cases, FineSettings(1, 7, generations=0), Book(), score=pretended)
    assert list(found.by) == ["random"]
    assert len(found.ranking) == 7 and found.by["random"][0] == found.best


def test_a_space_of_one_operator_has_one_path(sgd: Recipe, cases: Cases) -> None:
    single = C2FNASSpace(filters=2, cells=4, operators=("3d",), shape=(0, 1, 0))
    found = rank(supernet(sgd, single), sgd, cases, FEW, Book(), score=pretended)
    assert found.best == Genotype(WALK, (0, 0, 0, 0)) and list(found.by) == ["random"]


def test_a_killed_ranking_evaluates_nothing_twice(sgd: Recipe, cases: Cases) -> None:
    whole, book, asked = supernet(sgd), Book(), list[Genotype]()

    def score(paths: Sequence[Genotype]) -> Iterator[Result]:
        for result, path in zip(pretended(paths), paths, strict=True):
            asked.append(path)
            yield result

    wanted = rank(whole, sgd, cases, FEW, Book(), score=pretended)
    for stop in (2, 8):
        with pytest.raises(StoppedError):
            rank(whole, sgd, cases, FEW, book, report=stop_after(stop), score=score)
    assert rank(whole, sgd, cases, FEW, book, score=score) == wanted
    assert len(asked) == len(set(asked)) == len(wanted.ranking)
    assert rank(whole, sgd, cases, FEW, book, score=score) == wanted
    assert len(asked) == len(wanted.ranking)


def test_other_weights_or_cases_are_evaluated_anew(sgd: Recipe, cases: Cases, case: Case) -> None:
    architecture = SPACE.build(Genotype(WALK, (0, 0, 0, 0)))
    whole = supernet(sgd)
    key = Inherited(whole, sgd, cases).key(architecture)
    assert key == Inherited(supernet(sgd), sgd, cases).key(architecture)
    other = Cases.of(sgd, [case.planes(0, 11)], [case.planes(13, 20)])
    assert key != Inherited(whole, sgd, other).key(architecture)
    with torch.no_grad():
        next(whole.parameters()).add_(1.0)
    assert key != Inherited(whole, sgd, cases).key(architecture)


def test_real_scores_are_the_same_every_time(sgd: Recipe, cases: Cases) -> None:
    few = FineSettings(1, 3, 2, 1)
    one, other = (rank(supernet(sgd), sgd, cases, few, Book()) for _ in range(2))
    assert one == other
    assert all(0 <= value <= 1 for _, value in one.ranking)


def test_a_path_without_a_score_ranks_last(sgd: Recipe, cases: Cases) -> None:
    def score(paths: Sequence[Genotype]) -> Iterator[Result]:
        yield Result({"ball": float("nan")}, float("nan"), 0.0)
        yield from pretended(paths[1:])

    stages: list[Stage] = []
    found = rank(supernet(sgd), sgd, cases, FineSettings(1, 4, generations=0), Book(), None, stages.append, score)
    assert stages[0].best is None and stages[1].best is not None
    assert str(found.ranking[-1][1]) == "nan" and str(found.ranking[0][1]) != "nan"


def test_all_paths_of_a_small_space_are_candidates() -> None:
    tiny = C2FNASSpace(filters=2, cells=3, shape=(0, 1, 0))
    found = candidates(tiny, 0, FineSettings(1, 99, 5, 0), 0)
    assert len(found) == len(set(found)) == 27


def test_a_budget_is_kept_by_every_path(sgd: Recipe, cases: Cases) -> None:
    def light(architecture: Architecture) -> bool:
        return isinstance(architecture, C2FNAS) and architecture.operators.count("3d") < 2

    found = rank(supernet(sgd), sgd, cases, FEW, Book(), light, score=pretended)
    assert all(path.choices.count(1) < 2 for path, _ in found.ranking)
    assert len(found.ranking) >= FEW.candidates
    assert found.best.choices[0] == 1 and found.best.choices.count(1) == 1


def test_the_cheapest_path_is_found_and_a_budget_below_it_refused(sgd: Recipe, cases: Cases) -> None:
    wide = C2FNASSpace(filters=2, cells=12)

    def cheapest(architecture: Architecture) -> bool:
        return isinstance(architecture, C2FNAS) and set(architecture.operators) == {"2d"}

    assert candidates(wide, 0, FEW, 0, cheapest) == [Genotype(0, (0,) * 12)]
    book = Book()
    with pytest.raises(ArchitectureError, match="No network of this topology keeps the budget"):
        rank(supernet(sgd), sgd, cases, FEW, book, lambda _: False)
    assert book.rows == []


def test_ranking_needs_held_back_cases(sgd: Recipe, cases: Cases) -> None:
    with pytest.raises(DataError, match="validation cases"):
        rank(supernet(sgd), sgd, Cases(cases.train), FEW, Book())


def test_a_child_of_two_has_each_operator_from_either() -> None:
    one, other, chance = Genotype(2, (0, 0, 0, 0)), Genotype(2, (1, 1, 1, 1)), random.Random(0)
    found = {crossover(one, other, chance) for _ in range(200)}
    assert len(found) == 16 and {path.topology for path in found} == {2}
    assert crossover(one, one, chance) == one


def test_a_changed_path_differs_in_one_cell_of_the_same_topology() -> None:
    path, chance = Genotype(WALK, (0, 1, 2, 0)), random.Random(0)
    found = {changed(SPACE, path, chance) for _ in range(200)}
    assert len(found) == 8  # two others in each of four cells
    for other in found:
        assert other.topology == WALK
        assert sum(a != b for a, b in zip(path.choices, other.choices, strict=True)) == 1
    with pytest.raises(ArchitectureError, match="one operator only"):
        changed(C2FNASSpace(operators=("3d",)), Genotype(0, (0,) * 12), chance)
