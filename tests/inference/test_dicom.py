"""DICOM series from folders; the real series, where they are on this machine, against SimpleITK and their reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from hilum_dicom import write_series
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from hilum_client.errors import SampleError
from hilum_client.sample import fetch_sample
from hilum_inference.dicom import read_series
from hilum_inference.errors import GeometryError, InputError, LimitError, UnreadableError
from hilum_inference.gate import Limits
from hilum_inference.io import read_volume, write_labels

OBLIQUE = [0.0, 0.8, 0.6, 0.0, -0.6, 0.8]  # along a row, along a column; the normal is x


def _image(path: Path, k: int, **tags: Any) -> None:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, MRImageStorage
    meta.MediaStorageSOPInstanceUID = f"1.2.{k + 1}"
    ds = Dataset()
    ds.file_meta, ds.SOPClassUID, ds.SOPInstanceUID = meta, MRImageStorage, f"1.2.{k + 1}"
    ds.Modality, ds.SeriesInstanceUID, ds.PatientName = "MR", "1.2.3", "Canary^Yellow"
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 4, 3, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.ImageOrientationPatient, ds.PixelSpacing = OBLIQUE, [0.5, 0.7]
    ds.ImagePositionPatient = [3.0 * k, 10, 20]
    ds.PixelData = (np.arange(12, dtype="<u2") + 100 * k).tobytes()
    for name, value in tags.items():
        setattr(ds, name, value)
    pydicom.dcmwrite(path, ds, enforce_file_format=True)


def _folder(folder: Path, count: int = 4, **tags: Any) -> Path:
    for k in range(count):
        (folder / "deep").mkdir(exist_ok=True)
        _image(folder / "deep" / f"im{count - k}", k, **tags)
    return folder


def test_voxels_lie_where_the_headers_say(tmp_path: Path) -> None:
    volume = read_volume(_folder(tmp_path))
    assert volume.grid.shape == (3, 4, 4) and volume.array.dtype == np.uint16
    np.testing.assert_allclose(volume.grid.spacing, (0.7, 0.5, 3.0))
    for i, j, k in ((0, 0, 0), (2, 3, 1), (1, 2, 3)):
        lps = np.array([3.0 * k, 10, 20]) + 0.7 * i * np.array(OBLIQUE[:3]) + 0.5 * j * np.array(OBLIQUE[3:])
        np.testing.assert_allclose((volume.grid.affine @ [i, j, k, 1])[:3], lps * [-1, -1, 1], atol=1e-9)
        assert volume.array[0, i, j, k] == j * 3 + i + 100 * k


def test_a_mask_of_a_series_lies_on_it(tmp_path: Path) -> None:
    volume = read_volume(_folder(tmp_path))
    write_labels(tmp_path / "m.nii.gz", np.ones((3, 4, 4), np.uint8), volume)
    assert read_volume(tmp_path / "m.nii.gz").grid.close_to(volume.grid, 1e-4)


def test_one_of_several_series_by_its_uid(tmp_path: Path) -> None:
    for uid, count in (("1.5", 2), ("1.6", 3)):
        (tmp_path / uid).mkdir()
        _folder(tmp_path / uid, count, SeriesInstanceUID=uid)
    with pytest.raises(UnreadableError) as refusal:
        read_volume(tmp_path)
    assert refusal.value.code == "several_series"
    assert "1.5 (MR, 2 images)" in refusal.value.message and "1.6 (MR, 3 images)" in refusal.value.message
    assert read_volume(tmp_path, series="1.6").grid.shape[2] == 3
    with pytest.raises(UnreadableError) as refusal:
        read_volume(tmp_path, series="1.7")
    assert refusal.value.code == "unknown_series"


def test_the_gap_is_named(tmp_path: Path) -> None:
    _folder(tmp_path, 6)
    (tmp_path / "deep" / "im3").unlink()  # k = 3, at 9 mm
    with pytest.raises(GeometryError, match=r"Between 6\.00 and 12\.00 mm .* 1 image\(s\) are missing"):
        read_volume(tmp_path)


@pytest.mark.parametrize(("error", "accepted"), [(0.05, True), (0.09, True), (0.2, False)])
def test_rounded_positions(error: float, accepted: bool, tmp_path: Path) -> None:
    for k in range(6):
        _image(tmp_path / f"{k}", k, ImagePositionPatient=[3.0 * k + (error if k == 3 else 0), 10, 20])
    try:
        assert read_volume(tmp_path).grid.spacing[2] == pytest.approx(3.0)
        assert accepted
    except GeometryError as refusal:
        assert not accepted and refusal.code == "uneven_positions"


def _turned(degrees: tuple[float, float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(3, 3) rotation about x, then about y; its columns are the directions along a row, a column, the normal."""
    (cx, sx), (cy, sy) = ((np.cos(a), np.sin(a)) for a in np.radians(degrees))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    return np.asarray(np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]]) @ about_x)


def _rounded_series(folder: Path, places: list[float], degrees: tuple[float, float], start: float = 0.03) -> Path:
    turn = _turned(degrees)
    for k, place in enumerate(places):
        position = [round(float(x), 1) for x in np.array([-100.04, -80.26, 30 + start]) + place * turn[:, 2]]
        orientation = [round(float(x), 6) for x in turn[:, :2].T.ravel()]
        _image(folder / f"{k}", k, ImagePositionPatient=position, ImageOrientationPatient=orientation)
    return folder


@pytest.mark.parametrize(
    ("count", "step", "degrees"),
    [
        (40, 1.25, (0, 0)),
        (200, 0.625, (0, 0)),
        (60, 1.0, (10, 0)),
        (5, 1.25, (10, 0)),
        (5, 1.25, (17, 23)),
        (80, 0.75, (31, -12)),
        (50, 0.3, (33, 41)),
    ],
)
@pytest.mark.parametrize("start", [0.0, 0.03, 0.049])
def test_positions_of_one_decimal(
    count: int, step: float, degrees: tuple[float, float], start: float, tmp_path: Path
) -> None:
    grid = read_volume(_rounded_series(tmp_path, [k * step for k in range(count)], degrees, start)).grid
    assert grid.shape[2] == count and not grid.is_sheared
    assert abs(grid.spacing[2] - step) * (count - 1) <= 0.175
    turn = _turned(degrees)
    last = np.array([-100.04, -80.26, 30 + start]) + (count - 1) * step * turn[:, 2]
    placed = (grid.affine @ [0, 0, count - 1, 1])[:3] * [-1, -1, 1]
    assert np.linalg.norm(placed - last) < 0.3


@pytest.mark.parametrize(("step", "degrees"), [(1.25, (0, 0)), (0.625, (10, 0)), (0.625, (17, 23)), (5.0, (0, 0))])
@pytest.mark.parametrize("gone", [1, 7, 18])
def test_a_gap_among_rounded_positions(step: float, degrees: tuple[float, float], gone: int, tmp_path: Path) -> None:
    places = [k * step for k in range(20) if k != gone]
    with pytest.raises(GeometryError, match=r"1 image\(s\) are missing") as refusal:
        read_volume(_rounded_series(tmp_path, places, degrees))
    assert refusal.value.code == "missing_slices"


def test_steps_that_change_are_refused(tmp_path: Path) -> None:
    places = [1.0 * k if k < 10 else 9 + 1.2 * (k - 9) for k in range(20)]
    with pytest.raises(GeometryError) as refusal:
        read_volume(_rounded_series(tmp_path, places, (0, 0)))
    assert refusal.value.code == "uneven_positions"


@pytest.mark.parametrize("tilt", [3.0, -15.0])
def test_a_tilt_is_no_rounding(tilt: float, tmp_path: Path) -> None:
    for k in range(30):
        aside = round(2.5 * k * float(np.tan(np.radians(tilt))), 1)
        _image(
            tmp_path / f"{k}",
            k,
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            ImagePositionPatient=[0, aside, 2.5 * k],
        )
    grid = read_volume(tmp_path).grid
    assert grid.is_sheared
    assert grid.affine[1, 2] / grid.affine[2, 2] == pytest.approx(-np.tan(np.radians(tilt)), abs=2e-3)


def test_rescaling_that_differs_is_applied(tmp_path: Path) -> None:
    for k, slope in enumerate((0.5, 0.25, 2.0)):
        _image(tmp_path / f"{k}", k, RescaleSlope=slope, RescaleIntercept=-k)
    volume = read_volume(tmp_path)
    expected = np.stack([(np.arange(12) + 100 * k) * s - k for k, s in enumerate((0.5, 0.25, 2.0))], axis=1)
    assert volume.array.dtype == np.float32 and volume.slope == 1.0
    assert np.array_equal(volume.values().transpose(1, 0, 2).reshape(12, 3), expected)


def test_mixed_signs_share_a_type(tmp_path: Path) -> None:
    for k in range(2):
        _image(tmp_path / f"{k}", k, PixelRepresentation=k, PixelData=np.full(12, 40000, "<u2").tobytes())
    volume = read_volume(tmp_path)
    assert volume.array.dtype == np.int32
    assert (volume.array[0, 0, 0, 0], volume.array[0, 0, 0, 1]) == (40000, 40000 - 65536)


def test_limits(tmp_path: Path) -> None:
    _folder(tmp_path)
    for limits, code in ((Limits(max_files=3), "too_many_files"), (Limits(max_voxels=47), "too_many_voxels")):
        with pytest.raises(LimitError) as refusal:
            read_series(tmp_path, limits=limits)
        assert refusal.value.code == code


def test_refusals_name_no_patient(tmp_path: Path) -> None:
    _folder(tmp_path)
    whole = (tmp_path / "deep" / "im1").read_bytes()
    for cut in range(140, len(whole), 7):
        (tmp_path / "deep" / "im1").write_bytes(whole[:cut])
        try:
            read_volume(tmp_path)
        except InputError as error:
            assert "Canary" not in f"{error.message}{error.__cause__}"


@pytest.mark.parametrize("name", ["jpeg_ls_lossless", "jp2klossless", "RLE", "implicit", "bigendian"])
def test_transfer_syntaxes(name: str) -> None:
    """The same MR image, packed in many ways, ships with pydicom."""
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    packed, plain = read_volume(folder / f"MR_small_{name}.dcm"), read_volume(folder / "MR_small.dcm")
    assert np.array_equal(packed.array, plain.array) and packed.grid.close_to(plain.grid)
    expected = np.frombuffer(pydicom.dcmread(folder / "MR_small.dcm").PixelData, "<i2").reshape(64, 64)
    assert np.array_equal(plain.array[0, :, :, 0], expected.T)


@pytest.mark.parametrize("name", ["JPEGLSLossless", "JPEGLosslessSV1"])
@pytest.mark.parametrize("left", [0.95, 0.5])
def test_a_compressed_image_that_is_cut_is_no_image(name: str, left: float, tmp_path: Path) -> None:
    """Its decoder makes up the rest without a word."""
    values = np.cumsum(np.random.default_rng(0).integers(-9, 10, (2, 64, 64)), axis=2).astype(np.int16)
    paths = write_series(tmp_path, values.T)
    for path in paths:
        _compress(path, name)
    assert np.array_equal(read_volume(tmp_path).array[0], values.T)
    dataset, whole = pydicom.dcmread(paths[1]), paths[1].read_bytes()
    (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
    dataset.PixelData = encapsulate([frame[: int(len(frame) * left)]])
    for within in (False, True):  # the file, or the frame in a sound file
        if within:
            dataset.save_as(paths[1])
        else:
            paths[1].write_bytes(whole[: int(len(whole) * left)])
        with pytest.raises(UnreadableError, match="pixels of image 2") as refused:
            read_volume(tmp_path)
        assert refused.value.code == "bad_pixels"


def _compress(path: Path, name: str) -> None:
    dataset = pydicom.dcmread(path)
    if name == "JPEGLSLossless":
        dataset.compress(pydicom.uid.JPEGLSLossless, generate_instance_uid=False)
    else:  # GDCM's is the only encoder at hand, and makes a file of its own around the frame
        frame = sitk.JoinSeries(sitk.GetImageFromArray(dataset.pixel_array))
        sitk.WriteImage(frame, str(path), useCompression=True, imageIO="GDCMImageIO", compressor="JPEG")
        written = pydicom.dcmread(path)
        dataset.PixelData = written.PixelData
        dataset.file_meta.TransferSyntaxUID = written.file_meta.TransferSyntaxUID
        assert written.file_meta.TransferSyntaxUID == pydicom.uid.JPEGLosslessSV1
        dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)


def test_a_deflated_series(tmp_path: Path) -> None:
    plain = read_volume(_folder(tmp_path))
    for path in tmp_path.rglob("im*"):
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
        dataset.save_as(path)
    assert np.array_equal(read_volume(tmp_path).array, plain.array)


PICTURE = {"SeriesInstanceUID": "1.2.9", "ImagePositionPatient": None, "ImageOrientationPatient": None}


@pytest.mark.parametrize(
    ("tags", "alone"),
    [
        (PICTURE, False),
        (PICTURE | {"Modality": "OT"}, True),
        (PICTURE | {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, True),
        (PICTURE | {"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, True),
        (PICTURE | {"PhotometricInterpretation": "MONOCHROME1", "Modality": "CR"}, True),
        (PICTURE | {"NumberOfFrames": 7}, False),
        ({"SeriesInstanceUID": "1.2.9", "ImagePositionPatient": [1, 2, float("nan")]}, False),
        ({"SeriesInstanceUID": "1.2.9", "PhotometricInterpretation": "MONOCHROME1"}, False),
    ],
    ids=[
        "positions taken out",
        "dose report",
        "screen",
        "colours",
        "radiograph",
        "many frames",
        "no place",
        "inverted",
    ],
)
def test_what_lies_beside_a_series_does_not_spoil_it(tags: dict[str, Any], alone: bool, tmp_path: Path) -> None:
    """Pictures are passed over; what may be the volume that was meant has to be chosen, or left out."""
    expected = read_volume(_folder(tmp_path)).array
    _image(tmp_path / "other", 9, **{name: value for name, value in tags.items() if value is not None})
    if any(value is None for value in tags.values()):
        dataset = pydicom.dcmread(tmp_path / "other")
        for name in (name for name, value in tags.items() if value is None):
            delattr(dataset, name)
        dataset.save_as(tmp_path / "other")
    assert np.array_equal(read_volume(tmp_path, series="1.2.3").array, expected)
    if alone:
        assert np.array_equal(read_volume(tmp_path).array, expected)
    else:
        with pytest.raises(UnreadableError, match="2 series") as refused:
            read_volume(tmp_path)
        assert refused.value.code == "several_series"


def test_padding_takes_the_lowest_value_that_was_measured(tmp_path: Path) -> None:
    """Also where it is written as unsigned beside signed pixels, and where an image holds nothing else."""
    values = np.full((3, 4, 3), 50, np.int16)
    values[0, 0, 1], values[1, 0, 1], values[:, :, 2], values[2, 2, 0] = -2000, 7, -2000, -5
    for path in write_series(tmp_path, values):
        dataset = pydicom.dcmread(path)
        dataset.add_new("PixelPaddingValue", "US", 63536)
        dataset.save_as(path)
    array = read_volume(tmp_path).array[0]
    assert (array[0, 0, 1], array[2, 2, 0], array.min()) == (7, -5, -5)
    assert (array[:, :, 2] == -5).all()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd"])
def test_itk_opens_the_mask_of_a_series_whose_axes_are_a_little_off_square(suffix: str, tmp_path: Path) -> None:
    """ITK refuses an sform beyond some 5e-4; scanners write cosines of three decimals."""
    turned = np.linalg.qr(np.random.default_rng(4).normal(size=(3, 3)))[0].round(3)
    write_series(tmp_path / "series", np.zeros((40, 30, 5), np.int16), axes=(*turned[0], *turned[1]))
    image = read_volume(tmp_path / "series")
    corner = (tmp_path / "mask").with_suffix(suffix)
    write_labels(corner, np.ones(image.grid.shape, np.uint8), image)
    mask = sitk.ReadImage(str(corner))
    for index in ((0, 0, 0), (39, 29, 4)):
        place = np.array([-1, -1, 1]) * (image.grid.affine @ (*index, 1))[:3]
        np.testing.assert_allclose(mask.TransformIndexToPhysicalPoint(index), place, atol=0.15)
    assert read_volume(corner).grid.close_to(image.grid)


@pytest.mark.sample
def test_the_real_series_lies_on_its_reference_segmentation() -> None:
    try:
        sample = fetch_sample(Path(__file__).parents[2] / ".samples")
    except SampleError as error:
        pytest.skip(f"the real CT sample is not there: {error.message}")
    series, reference = read_volume(sample.series), read_volume(sample.series_labels)
    flip = np.linalg.inv(reference.grid.affine) @ series.grid.affine
    np.testing.assert_allclose(flip, [[1, 0, 0, 0], [0, -1, 0, 511], [0, 0, 1, 0], [0, 0, 0, 1]], atol=1e-6)
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(sample.series))
    assert np.array_equal(series.values(), sitk.GetArrayFromImage(sitk.ReadImage(names)).T)
