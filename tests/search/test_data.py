from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from hilum_inference.io import read_volume, write_volume
from hilum_inference.preprocess import Source, model_grid
from hilum_inference.volume import Volume
from hilum_search.cases import Files, Part
from hilum_search.data import (
    Case,
    class_table,
    content_digest,
    load_case,
    load_part,
    normalise,
    recipe_cases,
    targets,
    turned,
)
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
    files = Files((tmp_path / "a.nii",), tmp_path / "b.nii", "a")
    write_volume(files.images[0], volume)
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


def test_a_part_is_a_case_or_some_of_its_planes(files: Files, recipe: Recipe, case: Case) -> None:
    assert load_part(Part(files), recipe).name == "phantom"
    slab = load_part(Part(files, (13, None)), recipe)
    assert slab.name == "phantom[13:20]"
    np.testing.assert_array_equal(slab.image, case.image[..., 13:20])
    with pytest.raises(DataError, match="outside the 20 planes"):
        load_part(Part(files, (15, 25)), recipe)


def test_channels_in_files_of_their_own_are_stacked(files: Files, recipe_text: str, case: Case) -> None:
    recipe = parse_recipe(recipe_text.replace("[[labels]]", '[[channels]]\nname = "pet"\n\n[[labels]]', 1))
    doubled = dataclasses.replace(files, images=files.images * 2)
    image = load_case(doubled, recipe.manifest()).image
    assert image.shape == (2, *case.image.shape[1:])
    np.testing.assert_array_equal(image[1], case.image[0])


def test_another_grid_is_refused(tmp_path: Path, files: Files, recipe: Recipe) -> None:
    moved = tmp_path / "moved.nii.gz"
    write_volume(moved, Volume.from_array(np.zeros((24, 22, 20), np.uint8), np.diag([2.0, 2.0, 2.0, 1.0])))
    with pytest.raises(DataError, match="different grids"):
        load_case(dataclasses.replace(files, labels=moved), recipe.manifest())


def test_cases_are_found_and_named_by_their_digest(files: Files, recipe: Recipe, tmp_path: Path) -> None:
    found = recipe_cases(recipe, tmp_path)
    assert found.cases == (files,)
    assert (found.layout, found.channels, found.modalities) == ("recipe", ("ct",), ("CT",))


def test_a_digest_covers_a_file_or_the_files_of_a_folder(files: Files, tmp_path: Path) -> None:
    import hashlib

    assert content_digest(files.labels) == hashlib.sha256(files.labels.read_bytes()).hexdigest()
    series = tmp_path / "series"
    series.mkdir()
    (series / "a.dcm").write_bytes(b"one")
    before = content_digest(series)
    (series / ".DS_Store").write_bytes(b"the Finder was here")
    assert content_digest(series) == before
    (series / "a.dcm").rename(series / "b.dcm")
    assert content_digest(series) != before


@pytest.mark.parametrize("separate", ["", 'separate_z = "always"'])
@pytest.mark.parametrize("how", ["", "order = 3", 'align = "edges"', 'order = 3\nalign = "edges"'])
@pytest.mark.parametrize(
    "rule", ['{ rule = "window", low = 0.0, high = 200.0, clip = false }', '{ rule = "z-score", scope = "volume" }']
)
def test_training_sees_what_serving_sees(rule: str, how: str, separate: str, files: Files, recipe_text: str) -> None:
    """A spline overshoots at an edge, and nnU-Net's is held in range."""
    spacing = "spacing = [2.0, 2.0, 2.0]"
    described = parse_recipe(
        recipe_text.replace(spacing, f"spacing = [1.3, 1.3, 2.9]\n{how}\n{separate}").replace(
            '{ rule = "window", low = 0.0, high = 200.0 }', rule
        )
    ).manifest()
    case = load_case(files, described)
    volume = read_volume(files.images[0])
    source = Source(volume, model_grid(volume, described), described)
    seen = np.full((1, *source.layout.shape), np.nan, np.float32)
    for start in source.layout:
        where = tuple(slice(at, at + size) for at, size in zip(start, source.layout.size, strict=True))
        seen[(slice(None), *where)] = source.window(start)
    np.testing.assert_allclose(normalise(case.image, case.normalisers), seen, atol=2e-5)


def test_another_file_under_the_same_name_is_refused(files: Files, recipe_text: str, tmp_path: Path) -> None:
    named = 'labels = "phantom_labels.nii.gz"'
    recipe = parse_recipe(recipe_text.replace(named, f'{named}\nlabels_sha256 = "{"0" * 64}"'))
    with pytest.raises(DataError, match="SHA-256 differs"):
        recipe_cases(recipe, tmp_path)


def test_a_missing_case_is_named(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no phantom\.nii\.gz"):
        recipe_cases(recipe, tmp_path)


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
    other = dataclasses.replace(files, labels=tmp_path / "other.nii.gz")
    write_volume(other.labels, turned(read_volume(files.labels), "SPR"))
    np.testing.assert_array_equal(load_case(other, recipe.manifest()).ids, case.ids)


def test_rules_before_resampling_are_refused(files: Files, recipe_text: str) -> None:
    recipe = parse_recipe(recipe_text.replace("steps = [[{", 'stage = "before-resampling"\nsteps = [[{'))
    with pytest.raises(RecipeError, match="after resampling"):
        load_case(files, recipe.manifest())
