from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hilum_search.errors import DataError
from hilum_search.sources import find_dataset, modality_of

MSD: dict[str, Any] = {
    "name": "Task",
    "tensorImageSize": "4D",
    "modality": {"0": "FLAIR", "1": "T1w"},
    "labels": {"0": "background", "1": "edema", "2": "core"},
    "numTraining": 2,
    "training": [
        {"image": "./imagesTr/b.nii.gz", "label": "./labelsTr/b.nii.gz"},
        {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"},
    ],
    "test": ["./imagesTs/c.nii.gz"],
}
NNUNET: dict[str, Any] = {
    "channel_names": {"0": "CT", "1": "PET"},
    "labels": {"background": 0, "spleen": 2, "liver": 1},
    "file_ending": ".nrrd",
}


def _fill(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def _describe(folder: Path, fields: dict[str, Any], **changes: Any) -> None:
    (folder / "dataset.json").write_text(json.dumps(fields | changes))


def test_the_decathlons_layout(tmp_path: Path) -> None:
    _describe(tmp_path, MSD)
    _fill(tmp_path, "imagesTr/a.nii.gz", "imagesTr/._a.nii.gz", "imagesTr/b.nii.gz", "labelsTr/a.nii.gz")
    found = find_dataset(tmp_path)
    assert (found.layout, found.channels, found.modalities) == ("msd", ("FLAIR", "T1w"), ("MR", "MR"))
    assert found.labels == {1: "edema", 2: "core"}
    assert [files.name for files in found.cases] == ["a", "b"]
    assert found.cases[0].images == (tmp_path / "imagesTr/a.nii.gz",)  # both channels in one file
    assert found.cases[0].labels == tmp_path / "labelsTr/a.nii.gz"


def test_nnunets_first_layout_has_a_file_for_each_channel(tmp_path: Path) -> None:
    _describe(tmp_path, MSD)
    _fill(tmp_path, *(f"imagesTr/{case}_000{channel}.nii.gz" for case in "ab" for channel in "01"))
    found = find_dataset(tmp_path)
    assert found.layout == "nnunet"
    assert [path.name for path in found.cases[0].images] == ["a_0000.nii.gz", "a_0001.nii.gz"]


def test_nnunets_raw_layout(tmp_path: Path) -> None:
    _describe(tmp_path, NNUNET, numTraining=3)
    _fill(tmp_path, "imagesTr/x_0000.nrrd", "imagesTr/x_0001.nrrd", "labelsTr/x.nrrd", "imagesTr/._x_0000.nrrd")
    _fill(tmp_path, "labelsTr/y_1.nrrd", "imagesTr/z_0000.nrrd")
    found = find_dataset(tmp_path)
    assert (found.layout, found.channels, found.modalities) == ("nnunet", ("CT", "PET"), ("CT", "PT"))
    assert dict(found.labels) == {1: "liver", 2: "spleen"}
    # A case of which half is missing stays: the survey names what lacks.
    assert [files.name for files in found.cases] == ["x", "y_1", "z"]
    assert [path.name for path in found.cases[0].images] == ["x_0000.nrrd", "x_0001.nrrd"]
    assert found.cases[2].labels == tmp_path / "labelsTr/z.nrrd"


def test_nnunets_list_of_files_elsewhere(tmp_path: Path) -> None:
    listed = {"x": {"images": ["far/1.nii.gz", "far/2.nii.gz"], "label": "far/l.nii.gz"}}
    _describe(tmp_path, NNUNET, file_ending=".nii.gz", dataset=listed)
    [case] = find_dataset(tmp_path).cases
    assert case.images == (tmp_path / "far/1.nii.gz", tmp_path / "far/2.nii.gz")


@pytest.mark.parametrize(
    ("fields", "changes", "reason"),
    [
        (NNUNET, {"labels": {"background": 0, "whole": [1, 2]}}, "regions of several labels"),
        (NNUNET, {"regions_class_order": [1]}, "regions of several labels"),
        (NNUNET, {"labels": {"background": 0, "a": 1, "ignore": 2}}, '"ignore", which cannot be trained'),
        (NNUNET, {"labels": {"background": 0, "a": "one"}}, "'a' .* has the id 'one'"),
        (NNUNET, {"labels": {"background": 0, "a": 1, "b": 1}}, "the id 1 twice"),
        (NNUNET, {"labels": {}}, "must name the ids"),
        (NNUNET, {"file_ending": ".png"}, "file_ending is '.png'"),
        (NNUNET, {"channel_names": {"1": "CT"}}, "must number the channels"),
        (NNUNET, {"numTraining": 7}, "speaks of 7 training cases .* there are 1"),
        (NNUNET, {"dataset": {"x": {"images": ["a.nrrd"], "label": "b.nrrd"}}}, "has 1 images .* names 2"),
        (NNUNET, {"dataset": {"x": {"images": "a.nrrd"}}}, "must name images"),
        (MSD, {"training": [{"image": "a.nii", "label": ["1.nii", "2.nii"]}]}, "a.nii has 2 references"),
        (MSD, {"training": ["a.nii"]}, "must name image and label; got 'a.nii'"),
        (MSD, {"training": {}}, "must be a list"),
        (MSD, {"training": []}, "no labelled case"),
        ({"name": "x"}, {}, "names neither channel_names"),
    ],
)
def test_what_a_dataset_json_cannot_say(
    tmp_path: Path, fields: dict[str, Any], changes: dict[str, Any], reason: str
) -> None:
    _describe(tmp_path, fields, **changes)
    _fill(tmp_path, "imagesTr/x_0000.nrrd", "imagesTr/x_0001.nrrd", "labelsTr/x.nrrd")
    with pytest.raises(DataError, match=reason) as caught:
        find_dataset(tmp_path)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("x.nrrd", "imagesTr/x.nrrd has no number of a channel"), ("x_0002.nrrd", "does not name; it names 2")],
)
def test_a_channel_that_is_not_named(tmp_path: Path, name: str, reason: str) -> None:
    _describe(tmp_path, NNUNET)
    _fill(tmp_path, f"imagesTr/{name}")
    with pytest.raises(DataError, match=reason):
        find_dataset(tmp_path)


def test_a_damaged_description(tmp_path: Path) -> None:
    for text, reason in (("{", "not valid JSON"), ("[]", "must hold an object")):
        (tmp_path / "dataset.json").write_text(text)
        with pytest.raises(DataError, match=f"dataset.json .*{reason}|{reason}"):
            find_dataset(tmp_path)


def test_nothing_found_lists_what_is_understood(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    with pytest.raises(DataError, match=r"Decathlon.*nnU-Net.*labels/.*_seg.*DICOM SEG"):
        find_dataset(tmp_path)
    with pytest.raises(DataError, match="no folder nowhere"):
        find_dataset(tmp_path / "nowhere")


def test_a_table_tells_the_patients(tmp_path: Path) -> None:
    _describe(tmp_path, MSD)
    (tmp_path / "patients.csv").write_text("\ufeffcase,patient\nb, p7 \nother,p8\na,\n")
    assert [(files.name, files.patient) for files in find_dataset(tmp_path).cases] == [("a", ""), ("b", "p7")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name,patient\na,1\n", "columns case and patient"),
        ("case,patient\na,1\na,2\n", "the case a two patients"),
        ("case,patient\na.nii.gz,1\n", "does not name the case b"),
    ],
)
def test_a_table_that_cannot_be_used(tmp_path: Path, text: str, reason: str) -> None:
    _describe(tmp_path, MSD)
    (tmp_path / "patients.csv").write_text(text)
    with pytest.raises(DataError, match=reason):
        find_dataset(tmp_path)


def test_modalities_by_name() -> None:
    assert [modality_of(name) for name in ("ct", "CTA", "pet", "T2", "MRI", "us", "noNorm", "")] == [
        *("CT", "", "PT", "MR", "MR", "US", "", "")
    ]
