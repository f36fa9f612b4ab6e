from __future__ import annotations

import dataclasses
import doctest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hilum_cases import opened, phantom
from numpy.typing import NDArray

from hilum_client.montage import PALETTE, SOFT_TISSUE
from hilum_inference.volume import Volume
from hilum_search import compare as module
from hilum_search.cases import Part
from hilum_search.compare import Column, choose_cases, compare, draw, frame, grey_window, renumber, write
from hilum_search.errors import DataError
from hilum_search.evaluate import evaluate
from hilum_search.evaluation import CaseScore, Evaluation, LabelScore, Subject
from hilum_search.recipe import Recipe, Target, parse_recipe
from hilum_search.recorded import Asked


def scored(*dice: float) -> Evaluation:
    cases = [
        CaseScore(f"c{n}", "", None, {}, 1.0, (LabelScore("liver", value, 1, 1, 1, 1, 1),))
        for n, value in enumerate(dice)
    ]
    return Evaluation(Subject("net", "", 2.0), tuple(cases))


def found(picture: Any, color: tuple[int, int, int]) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = (np.asarray(picture) == color).all(axis=2)
    return mask


def test_the_worst_the_median_and_the_best_are_drawn() -> None:
    nan = float("nan")
    assert [case.name for case in choose_cases(scored(0.5, 0.9, 0.1, nan, 0.7), None)] == ["c2", "c4", "c1"]
    assert [case.name for case in choose_cases(scored(0.5), None)] == ["c0"]
    assert [case.name for case in choose_cases(scored(0.5, 0.9), ["c1", "c0"])] == ["c1", "c0"]
    assert choose_cases(scored(nan), None) == []
    with pytest.raises(DataError, match=r"No case 'c7' was scored; there is c0, c1\."):
        choose_cases(scored(0.5, 0.9), ["c0", "c7"])


def test_a_slab_is_chosen_by_its_case() -> None:
    slab = dataclasses.replace(scored(0.5).cases[0], name="c0[4:]")
    assert choose_cases(Evaluation(Subject("net", "", 2.0), (slab,)), ["c0"]) == [slab]


def test_ids_of_models_meet_by_name() -> None:
    labels = (Target(name="rod", id=1, from_ids=(1,)), Target(name="ball", id=4, from_ids=(2,)))
    assert renumber(np.array([[[0, 1, 4, 2]]]), labels, ("ball", "rod", "liver")).tolist() == [[[0, 2, 1, 0]]]


def test_the_frame_holds_all_that_is_labelled_and_some_more() -> None:
    ids = np.zeros((200, 200, 40), np.uint8)
    ids[100, 90:110, 0], ids[104, 100, 10] = 1, 2
    x, y, z = frame(ids, (1.0, 2.0, 5.0))
    assert (x, y, z) == (slice(42, 163), slice(70, 130), slice(0, 18))
    assert frame(np.zeros((4, 5, 6)), (1.0, 1.0, 1.0)) == (slice(0, 4), slice(0, 5), slice(0, 6))


def test_the_grey_window_is_that_of_the_modality() -> None:
    values = np.linspace(0, 1000, 27000).reshape(30, 30, 30)
    assert grey_window(Volume.from_array(values), "CT") == SOFT_TISSUE
    level, width = grey_window(dataclasses.replace(Volume.from_array(values), slope=2.0), "MR")
    assert [level, width] == pytest.approx([1000, 1960], rel=0.01)
    assert grey_window(Volume.from_array(np.zeros((3, 3, 3))), "MR")[1] > 0


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 1.0, 4.0)])
def test_a_cube_is_as_high_as_wide_whatever_the_voxels(spacing: tuple[float, float, float]) -> None:
    shape = tuple(round(240 / mm) for mm in spacing)
    ids = np.zeros(shape, np.uint16)
    ids[tuple(slice(round(80 / mm), round(160 / mm)) for mm in spacing)] = 1  # 80 mm
    image = Volume.from_array(np.zeros(shape, np.float32), np.diag([*spacing, 1.0]))
    columns = (Column("reference", ids, ("8 ml",)), Column("answer", np.zeros_like(ids), ("missed",)))
    picture = draw(image, columns, ("cube",), "title", SOFT_TISSUE)
    tinted = found(picture, PALETTE[0])[:-110, :378]  # the edges of three cuts, in the reference's column
    rows, places = np.flatnonzero(tinted.any(axis=1)), np.flatnonzero(tinted.any(axis=0))
    edges = np.flatnonzero(np.diff(rows) > 20)
    heights = np.diff([0, *(edges + 1), len(rows)])
    assert len(heights) == 3
    assert all(height == pytest.approx(places[-1] - places[0] + 1, abs=4) for height in heights)


def test_the_picture_shows_reference_and_answers_in_radiological_display() -> None:
    ids, answer = np.zeros((60, 60, 60), np.uint16), np.zeros((60, 60, 60), np.uint16)
    ids[40:50, 40:50, 30:40] = 1  # right, anterior, superior
    ids[40:50, 20:30, 30:40] = 2  # posterior
    answer[26:36, 40:50, 30:40] = 2
    image = Volume.from_array(np.zeros((60, 60, 60), np.float32), np.diag([3.0, 3.0, 3.0, 1.0]))
    names = ("one", "a label with a name that is far too long for the column below a picture")
    columns = (Column("reference", ids, ("1", "2")), Column("net", answer, ("3", "4"), "trained on"))
    picture = draw(image, columns, names, "case", SOFT_TISSUE)
    assert picture.width == 2 * 360 + 6 + 36
    axial = np.asarray(picture)[92:360]
    front, back = (np.argwhere(found(axial[:, 18:378], PALETTE[n])).mean(axis=0) for n in (0, 1))
    assert front[0] < back[0], "anterior is on top"
    answered = np.argwhere(found(axial[:, 384:744], PALETTE[1])).mean(axis=0)
    assert answered[1] > front[1], "the patient's right is on the left"
    assert found(axial[:, 384:744], module.OUTLINE).any(), "the reference is outlined over the answer"
    heading = np.asarray(picture)[50:90].astype(int)
    assert (heading[..., 0] > heading[..., 2] + 60).any(), "the warning is not grey"


def test_the_picture_is_the_same_for_every_voxel_order() -> None:
    ids = (np.random.default_rng(0).random((20, 24, 10)) > 0.9).astype(np.uint16)
    values = np.random.default_rng(1).normal(40, 90, ids.shape).astype(np.float32)
    affine = np.diag([3.0, 3.0, 5.0, 1.0])
    turned = np.diag([-3.0, 3.0, 5.0, 1.0])
    turned[0, 3] = 3.0 * 19
    one = draw(Volume.from_array(values, affine), (Column("r", ids, ("x",)),), ("y",), "t", SOFT_TISSUE)
    other = draw(Volume.from_array(values[::-1], turned), (Column("r", ids[::-1], ("x",)),), ("y",), "t", SOFT_TISSUE)
    assert one.tobytes() == other.tobytes()


def test_models_on_one_case(recipe: Recipe, recipe_text: str, tmp_path: Path) -> None:
    files = phantom(tmp_path, "one")
    renamed = parse_recipe(recipe_text.replace('name = "rod"', 'name = "stick"'))
    models = (opened(recipe), opened(renamed, "other"))
    for part in (Part(files), Part(files, (4, None))):
        asked = Asked(part, "train", {"image": "1"})
        evaluations = [evaluate(model, [asked]) for model in models]
        path = tmp_path / "pictures" / module.file_name(part.name)
        picture = compare(asked, models, evaluations)
        write(path, picture)
        assert path.read_bytes()[:4] == b"\x89PNG"
        assert picture.width == 3 * 360 + 2 * 6 + 36
        assert all(found(picture, PALETTE[n]).any() for n in range(3))


def test_slabs_of_two_grids_cannot_be_compared(recipe: Recipe, recipe_text: str, tmp_path: Path) -> None:
    finer = opened(parse_recipe(recipe_text.replace("[2.0, 2.0, 2.0]", "[1.0, 1.0, 1.0]")))
    asked = Asked(Part(phantom(tmp_path, "one"), (0, 4)), "", {})
    with pytest.raises(DataError, match="is a slab of one model's grid"):
        compare(asked, (opened(recipe), finer), ())


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(module).failed == 0
