from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hilum_dicom import AXIAL, write_seg, write_series
from numpy.typing import NDArray
from pydicom.uid import CTImageStorage, generate_uid

from hilum_client.errors import SampleError
from hilum_client.sample import fetch_sample
from hilum_inference.errors import HilumError
from hilum_inference.io import read_volume, write_volume
from hilum_inference.volume import Grid, Volume
from hilum_search.cases import Files
from hilum_search.data import read_pair
from hilum_search.errors import DataError
from hilum_search.reference import read_reference, segment_names

SHAPE = (7, 6, 9)  # columns, rows, images
OBLIQUE = (0.0, 0.8, 0.6, 0.0, -0.6, 0.8)
FLIPPED = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
NAMES = {1: "liver", 2: "spleen"}


def _ids() -> NDArray[np.uint8]:
    """Segments on planes 2, 3 and 6 only; each frame is unlike its mirror images."""
    ids = np.zeros(SHAPE, np.uint8)
    ids[1:4, 2:5, 2:4] = 1
    ids[5, 1, 3] = 2
    ids[2:6, 4, 6] = 2
    return ids


def _pair(folder: Path, labels: Path) -> tuple[Volume, Volume]:
    return read_pair(Files((folder,), labels, "a"))


@pytest.mark.parametrize("axes", [AXIAL, OBLIQUE, FLIPPED])
@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize("omit", [True, False])
def test_a_seg_lies_on_its_image(tmp_path: Path, axes: tuple[float, ...], kind: str, omit: bool) -> None:
    series = write_series(tmp_path / "ct", np.arange(7 * 6 * 9, dtype=np.int16).reshape(SHAPE), axes=axes)
    write_seg(tmp_path / "seg.dcm", series, _ids(), NAMES, kind=kind, omit_empty_frames=omit)
    image, reference = _pair(tmp_path / "ct", tmp_path / "seg.dcm")
    assert image.array[0, 1, 2, 2] == 1 * 54 + 2 * 9 + 2
    assert reference.grid.close_to(image.grid)
    np.testing.assert_array_equal(reference.array[0], _ids())
    assert segment_names(tmp_path / "seg.dcm") == NAMES


def test_highdicom_reads_the_same(tmp_path: Path) -> None:
    """Without an image: the box of the planes that are there, against highdicom's own volume."""
    import highdicom as hd

    series = write_series(tmp_path / "ct", np.zeros(SHAPE, np.int16), axes=OBLIQUE)
    write_seg(tmp_path / "seg.dcm", series, _ids(), NAMES)
    found = read_reference(tmp_path / "seg.dcm")
    assert found.grid.shape == (7, 6, 5)
    np.testing.assert_array_equal(found.array[0], _ids()[..., 2:7])
    theirs = hd.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True)
    ours = {tuple(np.round(found.grid.affine @ [*at, 1], 3)): found.array[(0, *at)] for at in np.ndindex(7, 6, 5)}
    turn = np.diag([-1.0, -1.0, 1.0, 1.0])
    for at in np.ndindex(theirs.array.shape):
        assert ours[tuple(np.round(turn @ theirs.affine @ [*at, 1], 3))] == theirs.array[at]


def test_the_image_may_be_stored_along_other_axes(tmp_path: Path) -> None:
    series = write_series(tmp_path / "ct", np.zeros(SHAPE, np.int16))
    write_seg(tmp_path / "seg/1.dcm", series, _ids(), NAMES)
    grid = read_volume(tmp_path / "ct").grid
    turned = Grid((9, 7, 6), grid.affine[:, [2, 0, 1, 3]])
    flip = np.diag([1.0, -1.0, 1.0, 1.0])
    flip[1, 3] = 6
    there = read_reference(tmp_path / "seg", Grid(turned.shape, turned.affine @ flip))  # a folder with one SEG
    np.testing.assert_array_equal(there.array[0], _ids().transpose(2, 0, 1)[:, ::-1])


def test_a_seg_of_one_plane_and_rounded_positions(tmp_path: Path) -> None:
    ids = np.zeros(SHAPE, np.uint8)
    ids[2, 3, 4] = 1
    series = write_series(tmp_path / "ct", np.zeros(SHAPE, np.int16))
    for number, path in enumerate(series):
        image = pydicom.dcmread(path)
        image.ImagePositionPatient[2] += 0.08 * (-1) ** number  # steps of 2.84 and 3.16 mm
        image.save_as(path)
    write_seg(tmp_path / "seg.dcm", series, ids, {1: "dot"})
    _, reference = _pair(tmp_path / "ct", tmp_path / "seg.dcm")
    np.testing.assert_array_equal(reference.array[0], ids)
    assert read_reference(tmp_path / "seg.dcm").grid.shape == (7, 6, 1)


def test_many_segments_need_a_wider_type(tmp_path: Path) -> None:
    series = write_series(tmp_path / "ct", np.zeros(SHAPE, np.int16))
    ids = np.zeros(SHAPE, np.uint16)
    ids[1, 2, 3] = 300
    write_seg(tmp_path / "seg.dcm", series, ids, {number: f"s{number}" for number in range(1, 301)}, kind="LABELMAP")
    found = read_reference(tmp_path / "seg.dcm", read_volume(tmp_path / "ct").grid)
    assert found.array[0, 1, 2, 3] == 300


def _seg_of(tmp_path: Path, **options: Any) -> Path:
    series = write_series(tmp_path / "ct", np.zeros(SHAPE, np.int16))
    write_seg(tmp_path / "seg.dcm", series, options.pop("ids", _ids()), NAMES, **options)
    return tmp_path / "seg.dcm"


def test_segments_that_overlap(tmp_path: Path) -> None:
    stacked = np.stack([_ids() == 1, _ids() == 2], axis=-1).astype(np.uint8)
    apart = _seg_of(tmp_path, ids=stacked)
    _pair(tmp_path / "ct", apart)
    stacked[1, 2, 2, 1] = 1
    with pytest.raises(DataError, match="The segments 1 and 2 of the DICOM SEG overlap"):
        _pair(tmp_path / "ct", _seg_of(tmp_path, ids=stacked))


def test_shares_of_voxels(tmp_path: Path) -> None:
    series = write_series(tmp_path / "ct", np.zeros(SHAPE, np.int16))
    path = tmp_path / "seg.dcm"
    write_seg(path, series, (_ids() == 1) * 0.5, {1: "liver"}, kind="FRACTIONAL")
    with pytest.raises(DataError, match="A FRACTIONAL DICOM SEG holds shares"):
        _pair(tmp_path / "ct", path)


@pytest.mark.parametrize(
    "change",
    [
        lambda affine: affine + np.eye(4, k=3) * 0.9,  # half a column aside
        lambda affine: affine @ np.diag([1.1, 1, 1, 1]),
        lambda affine: affine @ np.diag([1, 1, 1.5, 1]),
        lambda affine: affine + np.eye(4)[2][:, None] * np.eye(4)[3] * 50,  # beyond the last plane
        lambda affine: affine @ np.array([[1, 0.1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
        lambda affine: affine[:, [1, 0, 2, 3]],
    ],
)
def test_a_seg_of_another_grid(tmp_path: Path, change: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> None:
    path = _seg_of(tmp_path)
    grid = read_volume(tmp_path / "ct").grid
    with pytest.raises(DataError, match=r"7x6 pixels of 2 x 1.5 mm from .*lies on no plane of its image \(7x6x9"):
        read_reference(path, Grid(grid.shape, change(grid.affine)))


def test_a_damaged_seg(tmp_path: Path) -> None:
    path = _seg_of(tmp_path)
    dataset = pydicom.dcmread(path)
    del dataset.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence
    dataset.save_as(path)
    with pytest.raises(DataError, match="The DICOM SEG is damaged, or lacks"):
        _pair(tmp_path / "ct", path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(HilumError):
        _pair(tmp_path / "ct", path)


def test_a_folder_of_two_segs(tmp_path: Path) -> None:
    series = write_series(tmp_path / "ct", np.zeros(SHAPE, np.int16))
    for name in "ab":
        write_seg(tmp_path / f"seg/{name}.dcm", series, _ids(), NAMES)
    with pytest.raises(DataError, match="seg must hold one DICOM SEG; it holds 2"):
        read_reference(tmp_path / "seg")


def test_any_other_volume(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.nii", Volume.from_array(_ids()))
    np.testing.assert_array_equal(read_reference(tmp_path / "a.nii").array[0], _ids())
    write_series(tmp_path / "labels", _ids().astype(np.int16), RescaleIntercept=0)  # a label map as a plain series
    np.testing.assert_array_equal(read_reference(tmp_path / "labels").array[0], _ids())


@pytest.mark.sample
def test_a_seg_of_the_real_series(tmp_path: Path) -> None:
    """A JPEG 2000 CT and its reference segmentation, liver, spleen and stomach as a SEG without empty frames."""
    try:
        sample = fetch_sample(Path(__file__).parents[2] / ".samples")
    except SampleError as error:
        pytest.skip(f"the real CT sample is not there: {error.message}")
    _, reference = _pair(sample.series, sample.series_labels)
    ids = np.zeros(reference.grid.shape, np.uint8)
    for number, theirs in enumerate((5, 1, 6), start=1):
        ids[reference.array[0] == theirs] = number
    headers = [pydicom.dcmread(path) for path in sample.series.iterdir()]
    paths = []
    for header in sorted(headers, key=lambda header: float(header.ImagePositionPatient[2])):
        header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = CTImageStorage  # taken out with the names
        header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        paths.append(tmp_path / f"{header.SOPInstanceUID}.dcm")
        header.save_as(paths[-1])
    write_seg(tmp_path / "seg.dcm", paths, ids, {1: "liver", 2: "spleen", 3: "stomach"})
    _, found = _pair(sample.series, tmp_path / "seg.dcm")
    np.testing.assert_array_equal(found.array[0], ids)
