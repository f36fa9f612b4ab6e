from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from hilum_inference.io import write_volume
from hilum_inference.volume import Volume
from hilum_search.cases import Files
from hilum_search.errors import DataError
from hilum_search.gather import gather
from hilum_search.recipe import Recipe, parse_recipe
from hilum_search.record import fingerprint


@pytest.fixture
def folder(files: Files, tmp_path: Path) -> Path:
    return tmp_path


def folder_of(count: int, files: Files, into: Path) -> Path:
    """A folder of so many pairs of the same voxels, each packed at another time."""
    for number in range(count):
        for kind, source in (("images", files.images[0]), ("labels", files.labels)):
            (into / kind).mkdir(parents=True, exist_ok=True)
            packed = source.read_bytes()
            (into / kind / f"case{number}.nii.gz").write_bytes(packed[:4] + number.to_bytes(4, "little") + packed[8:])
    return into


@pytest.fixture
def open_recipe(recipe: Recipe) -> Recipe:
    """The recipe without cases of its own."""
    return dataclasses.replace(recipe, file=recipe.file.model_copy(update={"cases": ()}))


def test_origins_name_part_planes_and_files(recipe: Recipe, folder: Path, tmp_path: Path) -> None:
    cases = gather(recipe.with_split(validation_planes=[(8, 12)]), folder, tmp_path / "run")
    told = [(origin.name, origin.part, origin.planes) for origin in cases.origins]
    assert told == [
        ("phantom", "train", (0, 4)),
        ("phantom", "train", (16, None)),
        ("phantom", "validation", (8, 12)),
    ]
    assert all(set(origin.files) == {"phantom.nii.gz", "phantom_labels.nii.gz"} for origin in cases.origins)
    assert [each.case.ids.shape[2] for each in cases.train] == [4, 4]


def test_a_slab_at_the_end_may_be_held_back_and_one_beyond_it_not(recipe: Recipe, folder: Path, tmp_path: Path) -> None:
    cases = gather(recipe.with_split(validation_planes=[(14, 20)]), folder, tmp_path / "run")
    assert [(origin.part, origin.planes) for origin in cases.origins] == [("train", (0, 10)), ("validation", (14, 20))]
    cases = gather(recipe.with_split(validation_planes=[(10, 16)]), folder, tmp_path / "run")
    assert [origin.planes for origin in cases.origins] == [(0, 6), (10, 16)]  # the gap reaches just to the end
    with pytest.raises(DataError, match="15:25 lies outside the 20 planes of phantom"):
        gather(recipe.with_split(validation_planes=[(15, 25)]), folder, tmp_path / "run")
    with pytest.raises(DataError, match="no plane to train on"):
        gather(recipe.with_split(validation_planes=[(0, 20)]), folder, tmp_path / "run")


def test_a_smart_cache_is_for_training_alone(open_recipe: Recipe, files: Files, tmp_path: Path) -> None:
    data = folder_of(6, files, tmp_path / "data")
    chosen = open_recipe.with_training(keep="smart", cached_cases=2).with_split(fold=0, folds=2)
    cases = gather(chosen, data, tmp_path / "run")
    assert (len(cases.train), len(cases.validation)) == (2, 3)
    for _ in range(2):
        assert len({each.case.name for each in cases.validation}) == 3
    assert fingerprint(chosen, cases.train).cases == 3


def test_a_label_without_a_voxel_is_named(recipe_text: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'rod'"):
        gather(parse_recipe(recipe_text.replace("[3, 4]", "[5]")), folder, tmp_path / "run")


def test_other_channels_than_the_recipes_are_refused(recipe_text: str, folder: Path, tmp_path: Path) -> None:
    two = recipe_text.replace("[[labels]]", '[[channels]]\nname = "pet"\n\n[[labels]]', 1)
    with pytest.raises(DataError, match="names 2 channels, and the image of phantom has 1"):
        gather(parse_recipe(two), folder, tmp_path / "run")


def test_ids_that_the_data_names_otherwise_are_refused(open_recipe: Recipe, files: Files, tmp_path: Path) -> None:
    """Another hospital numbers the same organs in another order."""
    data = folder_of(2, files, tmp_path / "data")
    (data / "images").rename(data / "imagesTr")
    (data / "labels").rename(data / "labelsTr")
    for path in (data / "imagesTr").iterdir():
        path.rename(path.with_name(path.name.replace(".nii.gz", "_0000.nii.gz")))
    about = {"channel_names": {"0": "CT"}, "numTraining": 2, "file_ending": ".nii.gz"}
    for labels in ({"background": 0, "A-ball": 7, "rod 1": 3, "rod 2": 4}, {"ball": 7, "rod": 3, "other": 4}):
        (data / "dataset.json").write_text(json.dumps(about | {"labels": labels}))
        gather(open_recipe, data, tmp_path / "run")
    (data / "dataset.json").write_text(json.dumps(about | {"labels": {"Rod": 7, "Ball": 3, "other": 4}}))
    with pytest.raises(DataError, match="id 7 is 'ball' by its from_ids and 'rod' by the names of the data in data"):
        gather(open_recipe, data, tmp_path / "run")


@pytest.mark.parametrize("patients", ["", "case,patient\ncase0,p\ncase1,p\ncase2,q\ncase3,r\n"])
def test_one_image_does_not_train_and_validate(
    patients: str, open_recipe: Recipe, files: Files, tmp_path: Path
) -> None:
    data = folder_of(4, files, tmp_path / "data")
    (data / "images" / "case1.nii.gz").write_bytes((data / "images" / "case0.nii.gz").read_bytes())
    if patients:
        (data / "patients.csv").write_text(patients)
    told = []
    for fold in range(2):
        try:
            gather(open_recipe.with_split(fold=fold, folds=2), data, tmp_path / "run")
        except DataError as error:
            told.append(error.message)
    if patients:
        assert told == []
    else:
        assert told and all("case0" in each and "case1" in each and "the same image" in each for each in told)


def test_patients_of_the_table_count_for_cases_that_a_recipe_names(
    recipe: Recipe, files: Files, tmp_path: Path
) -> None:
    data = folder_of(4, files, tmp_path / "data")
    listed = [
        {"image": f"images/case{n}_0000.nii.gz", "labels": f"labels/case{n}.nii.gz", "patient": ""} for n in range(4)
    ]
    for n in range(4):
        (data / "images" / f"case{n}.nii.gz").rename(data / "images" / f"case{n}_0000.nii.gz")
    (data / "patients.csv").write_text("case,patient\ncase0,p\ncase1,p\ncase2,q\ncase3,q\n")
    cases = tuple(recipe.file.cases[0].model_copy(update=each) for each in listed)
    chosen = dataclasses.replace(recipe, file=recipe.file.model_copy(update={"cases": cases}))
    for fold in range(2):
        found = gather(chosen.with_split(fold=fold, folds=2), data, tmp_path / "run").origins
        sides = [{each.patient for each in found if each.part == part} for part in ("train", "validation")]
        assert sorted(len(side) for side in sides) == [1, 1] and sides[0] != sides[1]
    (data / "patients.csv").write_text("case,patient\ncase0,p\n")
    with pytest.raises(DataError, match="does not name the case case1_0000"):
        gather(chosen, data, tmp_path / "run")


def test_a_damaged_survey_is_made_again(recipe: Recipe, folder: Path, tmp_path: Path) -> None:
    gather(recipe, folder, tmp_path / "run")
    good = (tmp_path / "run" / "survey.json").read_text()
    (tmp_path / "run" / "survey.json").write_text(good[:100])
    gather(recipe, folder, tmp_path / "run")
    assert (tmp_path / "run" / "survey.json").read_text() == good


def test_four_dimensional_files_hold_all_channels(recipe_text: str, files: Files, tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(0, 50, (2, 24, 22, 20)).astype(np.float32)
    write_volume(tmp_path / "phantom.nii.gz", Volume.from_array(image, np.diag([-2.0, 2.0, 2.0, 1.0])))
    two = recipe_text.replace("[[labels]]", '[[channels]]\nname = "pet"\n\n[[labels]]', 1)
    cases = gather(parse_recipe(two), tmp_path, tmp_path / "run")
    assert cases.train[0].case.image.shape[0] == 2
