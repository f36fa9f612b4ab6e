from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hilum_inference.io import read_volume, write_volume
from hilum_inference.preprocess import Source, model_grid
from hilum_inference.volume import Volume
from hilum_search.data import Case, Files, class_table, find_cases, load_case, normalise, sha256, split, targets, turned
from hilum_search.errors import DataError, RecipeError
from hilum_search.recipe import Recipe, parse_recipe


def test_a_case_is_brought_to_the_models_orientation(case: Case) -> None:
    assert case.image.shape == (1, 24, 22, 20)
    assert case.ids[24 - 1 - 7, 8, 10] == 7  # stored LAS: the first axis is turned round
    assert set(np.unique(case.ids)) == {0, 3, 4, 7}


def test_training_sees_what_the_heart_will_see(tmp_path: Path, recipe_text: str) -> None:
    recipe = parse_recipe(recipe_text.replace("[2.0, 2.0, 2.0]", "[1.5, 2.5, 3.0]"))
    image = np.random.default_rng(1).integers(0, 200, (20, 31, 17)).astype(np.int16)
    affine = np.array([[0, -1.0, 0, 4], [2.0, 0, 0, 5], [0, 0, 2.2, 6], [0, 0, 0, 1]])
    volume = Volume.from_array(image, affine)
    files = Files(tmp_path / "a.nii", tmp_path / "b.nii")
    write_volume(files.image, volume)
    write_volume(files.labels, Volume.from_array((image > 100).astype(np.uint8), affine))
    case = load_case(files, recipe.manifest())
    source = Source(volume, model_grid(volume, recipe.manifest()), recipe.manifest())
    seen = source.window((0, 0, 0))
    np.testing.assert_allclose(normalise(case.image, case.normalisers)[:, :16, :16, :8], seen, atol=1e-6)


def test_several_ids_make_one_class(recipe: Recipe, case: Case) -> None:
    classes = targets(case.ids, recipe.labels)
    assert (classes == 1).sum() == (case.ids == 7).sum()
    assert (classes == 2).sum() == np.isin(case.ids, (3, 4)).sum()
    assert class_table(recipe.labels, 9).tolist() == [0, 0, 0, 2, 2, 0, 0, 1, 0, 0]


def test_slabs_share_no_plane_and_keep_the_gap(recipe: Recipe, case: Case) -> None:
    train, held = split(case, recipe.with_training(held_back=[(8, 12)]))
    assert [slab.name for slab in train] == ["phantom[0:7]", "phantom[13:20]"]
    assert [slab.name for slab in held] == ["phantom[8:12]"]
    np.testing.assert_array_equal(held[0].ids, case.ids[..., 8:12])
    np.testing.assert_array_equal(train[1].image, case.image[..., 13:20])


def test_nothing_left_to_train_on(recipe: Recipe, case: Case) -> None:
    with pytest.raises(DataError, match="no plane"):
        split(case, recipe.with_training(held_back=[(0, 20)]))


def test_a_slab_outside_the_case(recipe: Recipe, case: Case) -> None:
    with pytest.raises(DataError, match="outside the 20 planes"):
        split(case, recipe.with_training(held_back=[(15, 25)]))


def test_another_grid_is_refused(tmp_path: Path, files: Files, recipe: Recipe) -> None:
    moved = tmp_path / "moved.nii.gz"
    write_volume(moved, Volume.from_array(np.zeros((24, 22, 20), np.uint8), np.diag([2.0, 2.0, 2.0, 1.0])))
    with pytest.raises(DataError, match="different grids"):
        load_case(Files(files.image, moved), recipe.manifest())


def test_cases_are_found_and_named_by_their_digest(files: Files, recipe: Recipe, tmp_path: Path) -> None:
    [(found, digests)] = find_cases(recipe, tmp_path)
    assert found == files
    assert digests == {"phantom.nii.gz": sha256(files.image), "phantom_labels.nii.gz": sha256(files.labels)}


def test_another_file_under_the_same_name_is_refused(files: Files, recipe_text: str, tmp_path: Path) -> None:
    named = 'labels = "phantom_labels.nii.gz"'
    recipe = parse_recipe(recipe_text.replace(named, f'{named}\nlabels_sha256 = "{"0" * 64}"'))
    with pytest.raises(DataError, match="SHA-256 differs"):
        find_cases(recipe, tmp_path)


def test_a_missing_case_is_named(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no phantom\.nii\.gz"):
        find_cases(recipe, tmp_path)


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "SPR", "AIL"])
def test_a_turned_volume_keeps_every_voxel_in_its_place(orientation: str) -> None:
    array = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    affine = np.array([[0, -1.1, 0, 4], [2.0, 0, 0.02, 5], [0.01, 0, 2.2, 6], [0, 0, 0, 1]])
    volume = Volume.from_array(array, affine)
    there = turned(volume, orientation)
    assert there.grid.orientation == orientation
    for value in (0, 17, 95, 119):
        here, now = (np.argwhere(v.array[0] == value)[0] for v in (volume, there))
        np.testing.assert_allclose(affine @ [*here, 1], there.grid.affine @ [*now, 1])


def test_a_reference_stored_along_other_axes_is_turned(
    files: Files, recipe: Recipe, case: Case, tmp_path: Path
) -> None:
    other = Files(files.image, tmp_path / "other.nii.gz")
    write_volume(other.labels, turned(read_volume(files.labels), "SPR"))
    np.testing.assert_array_equal(load_case(other, recipe.manifest()).ids, case.ids)


def test_rules_before_resampling_are_refused(files: Files, recipe_text: str) -> None:
    recipe = parse_recipe(recipe_text.replace("steps = [[{", 'stage = "before-resampling"\nsteps = [[{'))
    with pytest.raises(RecipeError, match="after resampling"):
        load_case(files, recipe.manifest())
