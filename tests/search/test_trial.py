from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hilum_cases import line, opened, phantom, untrained

from hilum_search import sources
from hilum_search.cases import Dataset, Files
from hilum_search.errors import DataError
from hilum_search.evaluation import Book
from hilum_search.recipe import Recipe, parse_recipe
from hilum_search.trained import TRAINING, write_ensemble
from hilum_search.trial import Contender, contender, data_of, pairs_of, recorded_recipe, targets_of


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return Dataset(tmp_path, "pairs", tuple(phantom(tmp_path / "data", name, move) for move, name in enumerate("abc")))


def test_each_fold_scores_what_it_left_out(recipe: Recipe, data: Dataset, tmp_path: Path) -> None:
    a, b, c = data.cases
    folds = (
        opened(recipe, "fold0", {"cases": [line(a, "train"), line(b, "validation"), line(c, "test")]}),
        opened(recipe, "fold1", {"cases": [line(a, "validation"), line(b, "train"), line(c, "test")]}),
    )
    whole = opened(recipe, "joined", {"cases": [line(a, "train"), line(b, "train"), line(c, "test")]})
    model = Contender(whole, folds)
    test = model.asked(data, None, each=False)
    assert [(one.what.name, one.part, model.answering(one).title) for one in test] == [("c", "test", "joined")]
    left_out = model.asked(data, "validation", each=False)
    answers = [(one.what.name, one.part, model.answering(one).title) for one in left_out]
    assert answers == [("a", "validation", "fold1"), ("b", "validation", "fold0")]
    assert model.by_folds(left_out) and not model.by_folds(test)
    assert [one.part for one in model.asked(data, "all", each=False)] == ["train", "train", "test"]
    found = model.evaluate(left_out, Book.open(tmp_path, "folds", whole.subject(2.0)))
    assert found.parts == ("validation",) and len(found.cases) == 2


def test_without_a_test_set_the_folds_stand_in(recipe: Recipe, data: Dataset) -> None:
    a, b, _ = data.cases
    folds = (
        opened(recipe, "fold0", {"cases": [line(a, "train"), line(b, "validation")]}),
        opened(recipe, "fold1", {"cases": [line(a, "validation"), line(b, "train")]}),
    )
    model = Contender(opened(recipe, "joined", {"cases": [line(a, "train"), line(b, "train")]}), folds)
    known = dataclasses.replace(data, cases=(a, b))
    assert [one.part for one in model.asked(known, None, each=False)] == ["validation", "validation"]
    other = Contender(opened(recipe, "other", {"cases": [line(a, "train")]}))
    asked = other.to_be_asked(model.asked(known, None, each=False))
    assert [one.part for one in asked] == ["train", "new"]
    assert [one.part for one in model.to_be_asked(asked)] == ["validation", "validation"]
    assert [one.part for one in Contender(opened(recipe)).to_be_asked(asked)] == ["", ""]


def test_a_case_whose_image_every_fold_learnt_from_is_no_validation(recipe: Recipe, data: Dataset) -> None:
    """Two cases of one image, of which each fold trained on the one and validated on the other."""
    a, b, _ = data.cases
    b.images[0].write_bytes(a.images[0].read_bytes())
    folds = (
        opened(recipe, "fold0", {"cases": [line(a, "train"), line(b, "validation")]}),
        opened(recipe, "fold1", {"cases": [line(a, "validation"), line(b, "train")]}),
    )
    model = Contender(opened(recipe, "joined", {"cases": [line(a, "train"), line(b, "train")]}), folds)
    asked = model.asked(dataclasses.replace(data, cases=(a, b)), "validation", each=False)
    assert [(one.part, model.answering(one).title) for one in asked] == [("train", "joined")] * 2
    assert [one.part for one in model.to_be_asked(asked)] == ["train"] * 2


def test_a_run_is_opened_with_its_folds(recipe: Recipe, data: Dataset, tmp_path: Path) -> None:
    lines = [line(files, "train") for files in data.cases]
    for seed in (0, 1):
        untrained(tmp_path / "cv" / f"fold{seed}", recipe, lines, seed)
    write_ensemble(tmp_path / "cv", ["fold0", "fold1"])
    model = contender(tmp_path / "cv", data)
    assert (model.whole.title, [fold.title for fold in model.folds]) == ("cv", ["fold0", "fold1"])
    assert model.left_out == () and model.record is not None and len(model.record) == 3


def test_labels_are_named_by_recipe_run_data_or_model(recipe: Recipe, recipe_text: str, data: Dataset) -> None:
    published = opened(recipe)
    ids = [label.from_ids for label in targets_of(published, data)]
    assert ids == [(7,), (3, 4)], "its own"
    named = dataclasses.replace(data, labels={1: "rod", 2: "ball", 5: "rod"})
    assert [label.from_ids for label in targets_of(published, named)] == [(2,), (1, 5)]
    run = opened(recipe, training={})
    assert targets_of(run, named) == run.labels
    with pytest.raises(DataError, match=r"id 7 is 'ball' by its from_ids and 'rod' by the names of the data"):
        targets_of(run, dataclasses.replace(data, labels={7: "Rod", 3: "Ball"}))
    other = parse_recipe(recipe_text.replace("from_ids = [7]", "from_ids = [8]"))
    assert targets_of(run, named, other)[0].from_ids == (8,)
    assert targets_of(published, data, None, other)[0].from_ids == (8,), "as the run beside it"
    assert targets_of(run, data, None, other) == run.labels
    with pytest.raises(DataError, match="has no label 'rod' of thresholds, only ball, liver"):
        targets_of(published, dataclasses.replace(data, labels={1: "ball", 2: "liver"}))


def test_pairs_are_named_by_their_files(tmp_path: Path) -> None:
    one, two = phantom(tmp_path / "x", "ct"), phantom(tmp_path / "y", "ct")
    found = pairs_of([one.images[0]], [one.labels])
    assert [case.name for case in found.cases] == ["ct"]
    found = pairs_of([one.images[0], two.images[0]], [one.labels, two.labels])
    assert ([case.name for case in found.cases], found.folder) == (["x-ct", "y-ct"], tmp_path.resolve())
    with pytest.raises(DataError, match="1 images and 2"):
        pairs_of([one.images[0]], [one.labels, two.labels])
    with pytest.raises(DataError, match=r"There is no .*gone\.nii"):
        pairs_of([tmp_path / "gone.nii"], [one.labels])
    with pytest.raises(DataError, match="Two images are named x-ct"):
        pairs_of([one.images[0], one.images[0]], [one.labels, two.labels])


def test_a_runs_recipe_names_the_cases_where_they_are(
    files: Files, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = untrained(tmp_path / "run", recipe, None)
    found = data_of(tmp_path, None, run)
    assert (found.layout, [case.name for case in found.cases]) == ("recipe", ["phantom"])
    other = Dataset(tmp_path / "elsewhere", "pairs", found.cases)
    monkeypatch.setattr(sources, "find_dataset", lambda folder: other)
    assert data_of(tmp_path / "elsewhere", None, run) is other
    assert data_of(tmp_path, None, tmp_path / "model") is other, "a model of a repository knows no recipe"
    assert data_of(tmp_path, recipe, tmp_path).layout == "recipe"


def test_a_record_of_another_form_tells_no_recipe(recipe: Recipe, tmp_path: Path) -> None:
    run = untrained(tmp_path / "run", recipe, None)
    known = recorded_recipe(run)
    assert known is not None and known.file == recipe.file and known.architecture == recipe.architecture
    (run / TRAINING).write_text(json.dumps({"recipe": {"name": "x"}}))
    assert recorded_recipe(run) is None
