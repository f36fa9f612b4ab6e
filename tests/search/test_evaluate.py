from __future__ import annotations

import dataclasses
import doctest
import math
from pathlib import Path

import numpy as np
import pytest
from hilum_cases import opened, phantom, untrained

from hilum_inference.volume import Volume
from hilum_search import evaluate as module
from hilum_search.cases import Part
from hilum_search.errors import DataError
from hilum_search.evaluate import classes, evaluate, look, open_folds, open_model, open_trained, score, score_case
from hilum_search.evaluation import Book, CaseScore, Evaluation
from hilum_search.recipe import Recipe, parse_recipe
from hilum_search.recorded import Asked
from hilum_search.trained import write_ensemble


def asked(part: Part) -> Asked:
    return Asked(part, "test", {"image": "1", "labels": "2"})


def test_a_case_is_scored_on_its_own_grid(recipe: Recipe, tmp_path: Path) -> None:
    found = score_case(opened(recipe), asked(Part(phantom(tmp_path, "one"))))
    assert (found.name, found.part, found.planes, found.files["image"]) == ("one", "test", None, "1")
    assert [score.label for score in found.labels] == ["ball", "rod"]
    for label in found.labels:
        assert (label.dice, label.assd_mm, label.hd95_mm, label.nsd) == (1.0, 0.0, 0.0, 1.0)
        assert label.reference_ml == label.answer_ml > 0
    assert found.labels[1].reference_ml == pytest.approx(9 * 20 * 8 / 1000)
    assert found.seconds > 0


def test_what_is_in_the_image_but_not_in_the_reference_is_extra(recipe: Recipe, tmp_path: Path) -> None:
    whole, without = phantom(tmp_path, "a"), phantom(tmp_path, "b", rod=False)
    found = score_case(opened(recipe), asked(Part(dataclasses.replace(whole, labels=without.labels))))
    assert [label.verdict for label in found.labels] == ["both", "extra"]
    missed = score_case(opened(recipe), asked(Part(dataclasses.replace(without, labels=whole.labels))))
    assert [label.verdict for label in missed.labels] == ["both", "missed"]
    assert missed.labels[1].dice == 0 and math.isnan(missed.labels[1].hd95_mm)


@pytest.mark.parametrize(("planes", "count"), [((4, 12), 8), ((4, None), 16)])
def test_a_slab_is_scored_on_the_models_grid(
    recipe: Recipe, tmp_path: Path, planes: tuple[int, int | None], count: int
) -> None:
    part = Part(phantom(tmp_path, "one"), planes)
    scene = look(opened(recipe), part)
    assert scene.slab and scene.truth.shape == (24, 22, count)
    found = score_case(opened(recipe), asked(part))
    assert found.name == part.name and found.planes == planes
    assert all(label.dice == 1.0 for label in found.labels)
    assert found.labels[1].reference_ml == pytest.approx(9 * count * 8 / 1000)


def test_a_slabs_volume_is_turned_as_the_model_sees_it(recipe_text: str, tmp_path: Path) -> None:
    recipe = parse_recipe(recipe_text.replace('"RAS"', '"PIR"'))
    scene = look(opened(recipe), Part(phantom(tmp_path, "one"), (0, 24)))
    assert scene.image.grid.orientation == "PIR"
    assert score_case(opened(recipe), asked(Part(phantom(tmp_path, "one"), (0, 24)))).mean_dice == 1.0


def test_a_case_that_does_not_fit_is_named(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"one\[30:40\]: The slab 30:40 lies outside the 20 planes"):
        score_case(opened(recipe), asked(Part(phantom(tmp_path, "one"), (30, 40))))


def test_what_the_book_knows_is_not_computed_again(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [Asked(Part(phantom(tmp_path, name)), "test", {"image": name}) for name in ("a", "b")]
    model, heard = opened(recipe), list[str]()
    evaluate(model, cases[:1], Book.open(tmp_path, "evaluation", model.subject(2.0)))
    computed = []
    real = module.score_case

    def counted(*arguments: object) -> CaseScore:
        found = real(*arguments)  # type: ignore[arg-type]
        computed.append(found.name)
        return found

    monkeypatch.setattr(module, "score_case", counted)
    book = Book.open(tmp_path, "evaluation", model.subject(2.0))
    again = [dataclasses.replace(cases[0], part="validation"), cases[1]]
    found = evaluate(model, again, book, lambda case: heard.append(case.name))
    assert computed == ["b"] and heard == ["a", "b"]
    assert [(case.name, case.part) for case in found.cases] == [("a", "validation"), ("b", "test")]
    changed = [dataclasses.replace(cases[0], contents={"image": "other"})]
    evaluate(model, changed, Book.open(tmp_path, "evaluation", model.subject(2.0)))
    evaluate(model, cases, Book.open(tmp_path, "evaluation", opened(recipe, "other").subject(2.0)))
    evaluate(model, cases, Book.open(tmp_path, "evaluation", model.subject(3.0)))
    assert computed == ["b", "a", "a", "b", "a", "b"]


def test_without_a_book_nothing_is_kept(recipe: Recipe, tmp_path: Path) -> None:
    found = evaluate(opened(recipe), [asked(Part(phantom(tmp_path, "one")))])
    assert isinstance(found, Evaluation) and found.subject.name == "thresholds"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.nii.gz", "one_seg.nii.gz"]


def test_classes_are_those_of_the_stored_values(recipe: Recipe) -> None:
    stored = np.array([0, 4, 2, 1], np.int16).reshape(1, 2, 2)
    volume = dataclasses.replace(Volume.from_array(stored), slope=2.0, intercept=-1.0)  # ids -1, 7, 3, 1
    volume = dataclasses.replace(volume, intercept=-1.0, array=np.maximum(volume.array, 1))
    assert classes(volume, recipe.labels).tolist() == [[[0, 1], [2, 0]]]


def test_a_run_opens_with_its_recipes_ids_and_a_digest_of_its_weights(recipe: Recipe, tmp_path: Path) -> None:
    one, two = (open_model(untrained(tmp_path / f"run{seed}", recipe, [], seed)) for seed in (0, 1))
    assert (one.title, one.labels) == ("run0", recipe.labels)
    assert one.training is not None and one.training["cases"] == []
    assert one.subject(2.0) == open_model(tmp_path / "run0").subject(2.0)
    assert len({one.subject(2.0).digest, two.subject(2.0).digest}) == 2
    other = tuple(label.model_copy(update={"from_ids": (9,)}) for label in one.labels)
    assert dataclasses.replace(one, labels=other).subject(2.0).digest != one.subject(2.0).digest


def test_an_ensemble_opens_as_one_model_and_as_its_folds(recipe: Recipe, tmp_path: Path) -> None:
    for seed in (0, 1):
        untrained(tmp_path / f"fold{seed}", recipe, [], seed)
    write_ensemble(tmp_path, ["fold0", "fold1"])
    whole = open_model(tmp_path)
    assert [fold.title for fold in open_folds(tmp_path)] == ["fold0", "fold1"]
    assert whole.model.digest not in {fold.model.digest for fold in open_folds(tmp_path)}
    assert open_folds(tmp_path / "fold0") == ()


def test_dice_alone_by_the_segmenter(recipe: Recipe, tmp_path: Path) -> None:
    assert score(opened(recipe).segmenter, recipe.labels, phantom(tmp_path, "one")) == {"ball": 1.0, "rod": 1.0}
    segmenter, labels = open_trained(untrained(tmp_path / "run", recipe, None))
    assert set(score(segmenter, labels, phantom(tmp_path, "one"))) == {"ball", "rod"}


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(module).failed == 0
