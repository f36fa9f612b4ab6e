from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hilum_dicom import write_seg, write_series

from hilum_search.errors import DataError
from hilum_search.sources import find_dataset

VOXELS = np.zeros((6, 5, 3), np.int16)
IDS = np.ones((6, 5, 3), np.uint8)


def _fill(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def _pairs(folder: Path) -> list[tuple[str, list[str], str]]:
    found = find_dataset(folder)
    assert found.layout == "pairs"
    return [
        (
            files.name,
            [path.relative_to(folder).as_posix() for path in files.images],
            files.labels.relative_to(folder).as_posix(),
        )
        for files in found.cases
    ]


@pytest.mark.parametrize(
    ("images", "labels"), [("images", "labels"), ("imagesTr", "labelsTr"), ("image", "label"), ("images", "masks")]
)
def test_two_folders_of_equal_names(tmp_path: Path, images: str, labels: str) -> None:
    _fill(tmp_path, f"{images}/a.nii.gz", f"{images}/b.nrrd", f"{labels}/a.nii", f"{labels}/b_seg.nrrd")
    _fill(tmp_path, f"{images}/._a.nii.gz", f"{images}/notes.txt", f"{images}/.DS_Store")
    assert _pairs(tmp_path) == [
        ("a", [f"{images}/a.nii.gz"], f"{labels}/a.nii"),
        ("b", [f"{images}/b.nrrd"], f"{labels}/b_seg.nrrd"),
    ]


def test_a_file_without_its_partner_is_kept_for_the_survey_to_name(tmp_path: Path) -> None:
    _fill(tmp_path, "images/a.nii.gz", "images/b.nii.gz", "labels/a.nii.gz", "labels/c.nii.gz")
    assert _pairs(tmp_path)[1:] == [
        ("b", ["images/b.nii.gz"], "labels/b.nii.gz"),
        ("c", ["images/c.nii.gz"], "labels/c.nii.gz"),
    ]


def test_numbered_channels(tmp_path: Path) -> None:
    _fill(tmp_path, "images/a_0001.nii.gz", "images/a_0000.nii.gz", "labels/a.nii.gz")
    assert _pairs(tmp_path) == [("a", ["images/a_0000.nii.gz", "images/a_0001.nii.gz"], "labels/a.nii.gz")]
    assert find_dataset(tmp_path).channels == ("image-0", "image-1")


def test_a_channel_without_those_before_it(tmp_path: Path) -> None:
    _fill(tmp_path, "images/a_0001.nii.gz", "labels/a.nii.gz", "images/b_0000.nii.gz", "labels/b.nii.gz")
    with pytest.raises(DataError, match=r"a_0001\.nii\.gz is a channel of a, and its channels before it are not there"):
        find_dataset(tmp_path)


def test_numbered_cases_are_no_channels(tmp_path: Path) -> None:
    _fill(tmp_path, *(f"{side}/scan_000{n}.nii.gz" for side in ("images", "labels") for n in (0, 1)))
    assert [name for name, _, _ in _pairs(tmp_path)] == ["scan_0000", "scan_0001"]


def test_one_folder(tmp_path: Path) -> None:
    _fill(tmp_path, "a.nii.gz", "a_seg.nii.gz", "b.nrrd", "b.seg.nrrd", "c_image.nrrd", "c_label.nrrd", "d.nii")
    _fill(tmp_path, "e-1.nii", "e-1-mask.nii")
    assert _pairs(tmp_path) == [
        ("a", ["a.nii.gz"], "a_seg.nii.gz"),
        ("b", ["b.nrrd"], "b.seg.nrrd"),
        ("c", ["c_image.nrrd"], "c_label.nrrd"),
        ("d", ["d.nii"], "d_seg.nii.gz"),
        ("e-1", ["e-1.nii"], "e-1-mask.nii"),
    ]


def test_series_in_the_folder_of_images(tmp_path: Path) -> None:
    for number in (1, 2):
        write_series(tmp_path / f"images/P_000{number}/study/series", VOXELS, PatientID="4711")
        _fill(tmp_path, f"labels/P_000{number}.nii.gz")
    assert _pairs(tmp_path)[0] == ("P_0001", ["images/P_0001/study/series"], "labels/P_0001.nii.gz")
    found = find_dataset(tmp_path)
    assert found.modalities == ("CT",)
    assert found.cases[0].patient == found.cases[1].patient != ""


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (("images/a.nii", "labels/a.nii", "masks/a.nii"), "labels/ and masks/ stand for the same"),
        (
            ("images/a.nii", "labels/a_seg.nii", "labels/a_mask.nii"),
            "a_mask.nii and a_seg.nii are both references of a",
        ),
        (("images/a.nii", "images/a.nrrd", "labels/a.nii"), "a.nii and a.nrrd are both images of a"),
        (("images/a_0000.nii", "images/a_0002.nii", "labels/a.nii"), "without a gap"),
        (("images/notes.txt", "labels/notes.txt"), "no labelled case"),
    ],
)
def test_what_is_ambiguous(tmp_path: Path, names: tuple[str, ...], reason: str) -> None:
    _fill(tmp_path, *names)
    with pytest.raises(DataError, match=reason):
        find_dataset(tmp_path)


def test_dicom_with_a_nifti_label(tmp_path: Path) -> None:
    for case in ("one", "two"):
        write_series(tmp_path / case / "ct", VOXELS, PatientID=" 4711")
        _fill(tmp_path, f"{case}/liver.nii.gz")
    (tmp_path / "empty").mkdir()
    found = find_dataset(tmp_path)
    assert (found.layout, found.channels, found.modalities, found.labels) == ("dicom", ("image",), ("CT",), {})
    assert [files.name for files in found.cases] == ["one", "two"]
    assert found.cases[0].images == (tmp_path / "one/ct",)
    assert found.cases[0].labels == tmp_path / "one/liver.nii.gz"
    assert found.cases[0].patient == found.cases[1].patient
    assert found.cases[0].patient not in ("", "4711")  # told apart, not named


def test_dicom_with_a_seg(tmp_path: Path) -> None:
    names = {1: "liver", 2: "spleen"}
    for case, seg in (("one", "seg.dcm"), ("two", "seg/1.dcm")):
        write_seg(tmp_path / case / seg, write_series(tmp_path / case / "ct", VOXELS, PatientID=""), IDS, names)
    found = find_dataset(tmp_path)
    assert found.labels == names
    assert [files.labels.relative_to(tmp_path).as_posix() for files in found.cases] == ["one/seg.dcm", "two/seg"]
    assert {files.patient for files in found.cases} == {""}


def test_a_series_loose_beside_its_seg(tmp_path: Path) -> None:
    write_seg(tmp_path / "one/seg.dcm", write_series(tmp_path / "one", VOXELS), IDS, {1: "liver"})
    [case] = find_dataset(tmp_path).cases
    assert (case.images, case.labels) == ((tmp_path / "one",), tmp_path / "one/seg.dcm")


def test_several_series_are_channels(tmp_path: Path) -> None:
    for case in ("one", "two"):
        for channel in ("t1", "t2"):
            write_series(tmp_path / case / channel, VOXELS, Modality="MR")
        _fill(tmp_path, f"{case}/labels/tumour.nii.gz")
    found = find_dataset(tmp_path)
    assert (found.channels, found.modalities) == (("t1", "t2"), ("MR", "MR"))
    (tmp_path / "two/t1").rename(tmp_path / "two/t1c")
    with pytest.raises(DataError, match="two holds the series t1c, t2 where one holds t1, t2"):
        find_dataset(tmp_path)


def test_segments_numbered_otherwise(tmp_path: Path) -> None:
    for case, name in (("one", "liver"), ("two", "spleen")):
        write_seg(tmp_path / case / "seg.dcm", write_series(tmp_path / case / "ct", VOXELS), IDS, {1: name})
    with pytest.raises(DataError, match="Segment 1 is 'spleen' in two and 'liver' in one"):
        find_dataset(tmp_path)


def test_a_dicom_case_that_is_not_whole(tmp_path: Path) -> None:
    write_series(tmp_path / "one/ct", VOXELS)
    with pytest.raises(DataError, match="one holds a DICOM series but no reference"):
        find_dataset(tmp_path)
    _fill(tmp_path, "one/a.nii", "one/b.nii")
    with pytest.raises(DataError, match=r"one holds two references, a\.nii and b\.nii"):
        find_dataset(tmp_path)
    (tmp_path / "one/b.nii").unlink()
    _fill(tmp_path, "two/a.nii")
    with pytest.raises(DataError, match="two holds a reference but no DICOM series"):
        find_dataset(tmp_path)
    (tmp_path / "two/a.nii").unlink()
    write_series(tmp_path / "one", VOXELS)
    with pytest.raises(DataError, match="both loose and in a sub-folder"):
        find_dataset(tmp_path)
