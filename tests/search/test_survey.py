from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hilum_dicom import write_seg, write_series
from numpy.typing import NDArray

from hilum_inference.io import read_volume, write_volume
from hilum_inference.volume import Volume
from hilum_search.cases import Files
from hilum_search.data import content_digest, turned
from hilum_search.errors import BadCasesError, DataError
from hilum_search.sources import find_dataset
from hilum_search.survey import fingerprint, parse_survey, problems, survey, to_json

AFFINE = np.diag([-1.0, 2.0, 3.0, 1.0])


def _write(path: Path, array: NDArray[Any], affine: NDArray[np.float64] = AFFINE) -> Path:
    path.parent.mkdir(exist_ok=True)
    write_volume(path, Volume.from_array(array, affine))
    return path


def _case(folder: Path, name: str, seed: int = 0, channels: int = 1) -> Files:
    image = np.random.default_rng(seed).normal(100, 10, (channels, 8, 7, 6)).astype(np.int16)
    ids = np.zeros((8, 7, 6), np.uint8)
    ids[2:5, 2:5, 1:4], ids[6, 6, :2] = 1, 4
    image[:, ids > 0] += 50
    images = _write(folder / "images" / f"{name}.nii.gz", image)
    return Files((images,), _write(folder / "labels" / f"{name}.nii.gz", ids), name)


def _wrong(folder: Path, *files: Files, labels: dict[int, str] | None = None) -> str:
    """The one sentence about cases beside a sound one."""
    [found] = problems([_case(folder, "sound"), *files], folder=folder, labels=labels)
    assert str(folder) not in found
    return found


def test_what_is_found(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    one, two = _case(tmp_path, "one"), dataclasses.replace(_case(tmp_path, "two", 1), patient="p")
    found = survey([one, two], lambda done, of: seen.append((done, of)), folder=tmp_path)
    assert seen == [(1, 2), (2, 2)]
    case = found.cases[1]
    assert (case.name, case.patient, case.shape, case.orientation, case.dtype) == (
        "two",
        "p",
        (8, 7, 6),
        "LAS",
        "int16",
    )
    assert case.spacing == (1.0, 2.0, 3.0)
    assert case.voxels == {0: 8 * 7 * 6 - 29, 1: 27, 4: 2}
    assert case.files == {
        "images/two.nii.gz": content_digest(two.images[0]),
        "labels/two.nii.gz": content_digest(two.labels),
    }
    assert found.voxels == {0: 2 * (8 * 7 * 6 - 29), 1: 54, 4: 4}
    [channel] = case.channels
    assert channel.labelled is not None
    assert 140 < channel.labelled.at(50) < 160 and channel.whole[0] < 90
    assert 140 < found.labelled(0).mean < 160
    told = fingerprint(found, (1, 2, 3), (8, 7, 6))
    assert told.cases == 2 and told.intensity[0][1] == pytest.approx(150, abs=5)


def test_a_survey_is_the_same_after_json(tmp_path: Path) -> None:
    found = survey([_case(tmp_path, "one", channels=2)])
    assert len(found.cases[0].channels) == 2
    assert parse_survey(to_json(found)) == found
    for text in ("{", "{}", '{"cases": [], "format": "other"}'):
        with pytest.raises(DataError, match="survey is not valid"):
            parse_survey(text)


def test_a_case_that_is_known_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [_case(tmp_path, "one"), _case(tmp_path, "two", 1)]
    known = survey(files, folder=tmp_path)
    _case(tmp_path, "two", 2)
    read: list[Path] = []

    def noted(path: Path) -> Volume:
        read.append(path)
        return read_volume(path)

    monkeypatch.setattr("hilum_search.survey.read_volume", noted)
    again = survey([dataclasses.replace(files[0], patient="new"), files[1]], None, known, folder=tmp_path)
    assert read == [files[1].images[0]]
    assert again.cases[0] == dataclasses.replace(known.cases[0], patient="new")
    assert again.cases[1] != known.cases[1]
    # What a dataset names is asked of known cases too.
    assert "the id 4" in problems(files, folder=tmp_path, labels={1: "a"})[0]
    with pytest.raises(BadCasesError, match=r"the id 4.* \(the first of 2 problems\)\.$"):
        survey(files, None, again, folder=tmp_path, labels={1: "a"})


def test_several_files_are_channels_and_the_reference_may_lie_along_other_axes(tmp_path: Path) -> None:
    one, two = _case(tmp_path, "one"), _case(tmp_path, "two", 1)
    labels = tmp_path / "turned.nii.gz"
    write_volume(labels, turned(Volume.from_array(np.arange(8 * 7 * 6).reshape(8, 7, 6) % 3, AFFINE), "SPR"))
    [case] = survey([Files((one.images[0], two.images[0]), labels, "both")]).cases
    assert len(case.channels) == 2
    assert case.voxels == {0: 112, 1: 112, 2: 112}


def test_a_dicom_folder(tmp_path: Path) -> None:
    array = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)
    series = write_series(tmp_path / "one/ct", array)
    write_seg(tmp_path / "one/seg.dcm", series, (array > 60).astype(np.uint8), {1: "liver"})
    dataset = find_dataset(tmp_path)
    [case] = survey(dataset.cases, folder=tmp_path, labels=dataset.labels).cases
    assert case.voxels == {0: 61, 1: 59}
    assert set(case.files) == {"one/ct", "one/seg.dcm"}
    assert case.channels[0].whole[::3] == (-1000, 119 - 1000)


def test_files_that_are_missing(tmp_path: Path) -> None:
    for kind, path in (("image", "images/a.nii.gz"), ("reference segmentation", "labels/a.nii.gz")):
        files = _case(tmp_path, "a")
        (tmp_path / path).unlink()
        assert _wrong(tmp_path, files) == f"There is no {path}, the {kind} of the case a."


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    files = _case(tmp_path, "a")
    files.images[0].write_bytes(files.images[0].read_bytes()[:60])
    assert _wrong(tmp_path, files).startswith("images/a.nii.gz: The ")
    files.images[0].unlink()
    files.images[0].mkdir()
    assert _wrong(tmp_path, files).startswith("images/a.nii.gz: There is no DICOM image in it")


@pytest.mark.parametrize(
    ("shape", "affine", "told"),
    [
        ((8, 7, 5), AFFINE, "8x7x5 voxels of 1 x 2 x 3 mm"),
        ((8, 7, 6), np.diag([-1.0, 2.0, 2.5, 1.0]), "8x7x6 voxels of 1 x 2 x 2.5 mm"),
        ((8, 7, 6), AFFINE + np.eye(4, k=3) * 5, "from 5, 0, 0"),
    ],
)
def test_another_grid(tmp_path: Path, shape: tuple[int, int, int], affine: NDArray[np.float64], told: str) -> None:
    files = _case(tmp_path, "a")
    _write(files.labels, np.ones(shape, np.uint8), affine)
    found = _wrong(tmp_path, files)
    assert "images/a.nii.gz (8x7x6 voxels of 1 x 2 x 3 mm from 0, 0, 0) and labels/a.nii.gz (" in found
    assert told in found and found.endswith("lie on different grids; resample one to the other.")


def test_a_sheared_grid(tmp_path: Path) -> None:
    files = _case(tmp_path, "a")
    tilted = AFFINE + np.eye(4, k=1) * [[1], [1], [0], [0]]
    for path in (*files.images, files.labels):
        _write(path, np.ones((8, 7, 6), np.uint8), tilted)
    assert "images/a.nii.gz lies on a sheared grid" in _wrong(tmp_path, files)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([0.0, 1.5], "labels/a.nii.gz: A reference segmentation holds whole numbers; this one holds 1.5."),
        ([0.0, -2.0], "labels/a.nii.gz: The ids of a reference segmentation lie between 0 and 65535"),
        ([0.0, 3.0], "labels/a.nii.gz holds the id 3, which the dataset does not name; named are 1, 4."),
    ],
)
def test_a_mislabelled_case(tmp_path: Path, values: Sequence[float], reason: str) -> None:
    files = _case(tmp_path, "a")
    ids = np.full((8, 7, 6), values[0], np.float32)
    ids[3, 3, 3] = values[1]
    _write(files.labels, ids)
    assert _wrong(tmp_path, files, labels={1: "a", 4: "b"}).startswith(reason)


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    files = _case(tmp_path, "a")
    image = np.zeros((2, 8, 7, 6), np.float32)
    image[1, 0, 0, 0] = np.nan
    broken = _write(tmp_path / "images/broken.nii.gz", image)
    found = problems([Files((broken,), files.labels, "a")], folder=tmp_path)
    assert found == ("images/broken.nii.gz: It holds values that are not finite (NaN, or infinite); replace them.",)


def test_another_number_of_channels(tmp_path: Path) -> None:
    files = [_case(tmp_path, "b"), _case(tmp_path, "a", channels=2)]
    assert "The image of a has 2 channels where the other cases have 1" in _wrong(tmp_path, *files)


def test_another_number_of_channels_than_the_dataset_names(tmp_path: Path) -> None:
    for count in (1, 3):
        with pytest.raises(BadCasesError, match=f"names {count} channels, and the image of a has 2"):
            survey([_case(tmp_path, "a", channels=2)], folder=tmp_path, channels=count)
    survey([_case(tmp_path, "a", channels=2)], folder=tmp_path, channels=2)


def test_channels_that_change_places_are_read_again(tmp_path: Path) -> None:
    one, two = _case(tmp_path, "one"), _case(tmp_path, "two", 1)
    _write(two.images[0], np.full((8, 7, 6), 900, np.int16))
    both = Files((one.images[0], two.images[0]), one.labels, "both")
    [before] = (known := survey([both], folder=tmp_path)).cases
    turned_round = dataclasses.replace(both, images=both.images[::-1])
    [after] = survey([turned_round], None, known, folder=tmp_path).cases
    assert after.channels == before.channels[::-1] != before.channels


def test_channels_on_different_grids(tmp_path: Path) -> None:
    files = _case(tmp_path, "a")
    other = _write(tmp_path / "images/other.nii.gz", np.zeros((8, 7, 9), np.int16))
    found = _wrong(tmp_path, dataclasses.replace(files, images=(*files.images, other)))
    assert found.startswith("images/other.nii.gz: Channel 2 lies on another grid")


def test_nothing_but_background(tmp_path: Path) -> None:
    files = [_case(tmp_path, name) for name in "ab"]
    _write(files[0].labels, np.zeros((8, 7, 6), np.uint8))
    assert problems(files, folder=tmp_path) == ()  # one case may be empty
    _write(files[1].labels, np.zeros((8, 7, 6), np.uint8))
    [found] = problems(files, folder=tmp_path)
    assert found.startswith("labels/a.nii.gz holds nothing but background, and so do")


def test_names_that_are_not_unique(tmp_path: Path) -> None:
    files = _case(tmp_path, "a")
    assert _wrong(tmp_path, files, files) == "Two cases are named a; names must differ."
    assert problems([]) == ("There are no cases.",)


def test_all_problems_are_named_at_once(tmp_path: Path) -> None:
    files = [_case(tmp_path, name) for name in "abc"]
    files[0].images[0].unlink()
    files[2].labels.unlink()
    with pytest.raises(BadCasesError) as caught:
        survey(files, folder=tmp_path)
    assert len(caught.value.problems) == 2
    assert caught.value.message.endswith("images/a.nii.gz, the image of the case a (the first of 2 problems).")
