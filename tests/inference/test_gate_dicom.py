"""A judged corpus of DICOM zips, all built here: what is wrong or odd with each, and the verdict."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless, generate_uid

from hilum_inference.errors import InputError
from hilum_inference.gate import Decoded, Intake, Limits
from hilum_inference.io import read_volume, write_labels

Gate = Callable[..., Decoded]
ROWS, COLUMNS = 40, 48  # the least that a JPEG 2000 encoder takes
STEP = 2.5


def pixels(k: int) -> NDArray[np.uint16]:
    """(rows, columns), every voxel of an image different, and every image."""
    return (np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS) + 100 * k).astype(np.uint16)


def image(k: int, syntax: str = ExplicitVRLittleEndian, /, **tags: Any) -> bytes:
    """One sound CT image, slice ``k``, but for ``tags`` (None leaves one out)."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid(entropy_srcs=[str(k)])
    ds = Dataset()
    ds.file_meta = meta
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    ds.Modality, ds.SeriesInstanceUID = "CT", "1.2.3"
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = ROWS, COLUMNS, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.ImageOrientationPatient, ds.PixelSpacing = [1, 0, 0, 0, 1, 0], [0.7, 0.8]
    ds.ImagePositionPatient = [-10, -20, 30 + STEP * k]
    ds.SliceThickness, ds.RescaleSlope, ds.RescaleIntercept = 5, 1, -1024
    ds.PixelData = pixels(k).tobytes()
    for name, value in tags.items():
        setattr(ds, name, value)
        if value is None:
            delattr(ds, name)
    if syntax != ExplicitVRLittleEndian:
        ds.compress(syntax, generate_instance_uid=False)
    out = io.BytesIO()
    pydicom.dcmwrite(out, ds, enforce_file_format=True)
    return out.getvalue()


def zipped(members: Sequence[bytes | tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for number, item in enumerate(members):
            name, data = item if isinstance(item, tuple) else (f"study/IM{number}", item)
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return out.getvalue()


def series(count: int = 5, syntax: str = ExplicitVRLittleEndian, /, **tags: Any) -> list[bytes]:
    return [image(k, syntax, **tags) for k in range(count)]


def directory(data: bytes, field: int, form: str, value: int) -> bytes:
    """The zip with one field of its first entry in the central directory changed."""
    changed = bytearray(data)
    struct.pack_into(form, changed, data.index(b"PK\1\2") + field, value)
    return bytes(changed)


def link() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        info = zipfile.ZipInfo("IM0")
        info.create_system, info.external_attr = 3, 0o120777 << 16
        archive.writestr(info, "../../secret")
    return out.getvalue()


def overlapping() -> bytes:
    """Two entries of the directory that point to the same data."""
    data = zipped([image(0), image(1)])
    second = data.index(b"PK\1\2", data.index(b"PK\1\2") + 4)
    changed = bytearray(data)
    struct.pack_into("<L", changed, second + 42, 0)
    return bytes(changed)


@dataclass(frozen=True)
class Bad:
    name: str
    code: str
    build: Callable[[], bytes]


def bad(name: str, code: str, members: Callable[[], Sequence[bytes | tuple[str, bytes]]]) -> Bad:
    return Bad(name, code, lambda: zipped(members()))


def one_of(k: int, /, **tags: Any) -> list[bytes]:
    """A series in which image ``k`` differs."""
    return [image(n, **(tags if n == k else {})) for n in range(5)]


TILTED = [1, 0, 0, 0, 0.9, np.sqrt(1 - 0.81)]
REJECTED = [
    Bad("a zip of nothing", "unknown_format", lambda: zipped([])),
    Bad("cut in the middle", "truncated", lambda: zipped(series())[:900]),
    Bad("directory missing its last byte", "truncated", lambda: zipped(series())[:-1]),
    Bad("something before the zip's data", "bad_zip", lambda: zipped(series())[:4] + zipped(series())),
    Bad("something behind the zip", "bad_zip", lambda: zipped(series()) + b"x"),
    Bad("called encrypted", "encrypted", lambda: directory(zipped(series()), 8, "<H", 1)),
    Bad("packed by bzip2", "unsupported_compression", lambda: zipped(series(), zipfile.ZIP_BZIP2)),
    Bad("declared larger than it is", "bad_zip", lambda: directory(zipped(series()), 24, "<L", 5000)),
    Bad("declared smaller than it is", "bad_zip", lambda: directory(zipped(series()), 24, "<L", 300)),
    Bad("declared 4 GB", "inflates_too_large", lambda: directory(zipped(series()), 24, "<L", 0xFFFFFFF0)),
    Bad("checksum", "bad_zip", lambda: directory(zipped(series()), 16, "<L", 1)),
    Bad("data where there is none", "bad_zip", lambda: directory(zipped(series()), 42, "<L", 0x7FFFFFFF)),
    Bad("data at another place", "bad_zip", lambda: directory(zipped([image(0)]), 42, "<L", 7)),
    Bad("packed size past the end", "bad_zip", lambda: directory(zipped(series()), 20, "<L", 1 << 20)),
    Bad("members overlap", "bad_zip", overlapping),
    Bad("a link", "bad_zip", link),
    bad("bomb", "inflates_too_large", lambda: [*series(), ("big", bytes(64 << 20))]),
    bad("leads upwards", "bad_zip_name", lambda: [("../../IM0", image(0))]),
    bad("leads to the root", "bad_zip_name", lambda: [("/etc/IM0", image(0))]),
    bad("leads upwards, Windows", "bad_zip_name", lambda: [("a\\..\\..\\IM0", image(0))]),
    bad("leads to a drive", "bad_zip_name", lambda: [("C:\\IM0", image(0))]),
    bad("a zip in the zip", "nested_archive", lambda: [("inner.zip", zipped(series()))]),
    bad("images in a zip without a suffix", "nested_archive", lambda: [*series(), ("more", zipped(series()))]),
    bad("no DICOM in it", "no_images", lambda: [("readme.txt", b"hello" * 100)]),
    bad("no image in it", "no_images", lambda: series(2, Modality="SEG")),
    bad("two series", "several_series", lambda: [*series(), *series(3, SeriesInstanceUID="1.2.4")]),
    bad("an image missing", "missing_slices", lambda: [image(k) for k in (0, 1, 3, 4)]),
    bad("an image doubled", "duplicate_slices", lambda: [*series(), image(2, SOPInstanceUID="1.9")]),
    bad("two phases", "duplicate_slices", lambda: [*series(), *series(5, AcquisitionNumber=2)]),
    bad("all at one place", "duplicate_slices", lambda: series(4, ImagePositionPatient=[0, 0, 0])),
    bad("one step too long", "uneven_positions", lambda: one_of(4, ImagePositionPatient=[-10, -20, 30.8 + STEP * 4])),
    bad("one image aside", "uneven_positions", lambda: one_of(2, ImagePositionPatient=[-8, -20, 30 + STEP * 2])),
    bad("another size", "mixed_sizes", lambda: one_of(1, Rows=COLUMNS, Columns=ROWS)),
    bad("another orientation", "mixed_orientations", lambda: one_of(1, ImageOrientationPatient=TILTED)),
    bad("another spacing", "mixed_spacing", lambda: one_of(1, PixelSpacing=[0.7, 0.9])),
    bad("no position", "missing_position", lambda: series(ImagePositionPatient=None)),
    bad("no orientation", "missing_position", lambda: series(ImageOrientationPatient=None)),
    bad("no spacing", "missing_position", lambda: series(PixelSpacing=None)),
    bad("position of two numbers", "missing_position", lambda: series(ImagePositionPatient=[1, 2])),
    bad("orientation of no length", "bad_orientation", lambda: series(ImageOrientationPatient=[0] * 6)),
    bad("spacing 0", "bad_spacing", lambda: series(PixelSpacing=[0, 0.8])),
    bad("one image without thickness", "bad_spacing", lambda: series(1, SliceThickness=None)),
    bad("dark is bright", "not_monochrome2", lambda: series(PhotometricInterpretation="MONOCHROME1")),
    bad("colours", "not_monochrome2", lambda: series(PhotometricInterpretation="RGB", SamplesPerPixel=3)),
    bad("many frames in a file", "multi_frame", lambda: series(1, NumberOfFrames=3)),
    bad("12 bits a pixel", "unsupported_type", lambda: series(BitsAllocated=12)),
    bad("pixels missing", "bad_pixels", lambda: one_of(3, PixelData=bytes(20))),
    bad("no pixels", "bad_pixels", lambda: one_of(3, PixelData=None)),
    bad("no rows", "bad_shape", lambda: series(Rows=0, PixelData=b"")),
    bad("65535 x 65535 in 96 bytes", "too_many_voxels", lambda: series(Rows=65535, Columns=65535)),
    bad("4096 x 4096 in 96 bytes", "bad_pixels", lambda: series(Rows=4096, Columns=4096)),
    bad("damaged compression", "bad_pixels", lambda: [_damaged(k) for k in range(3)]),
]


def _damaged(k: int) -> bytes:
    data = image(k, RLELossless)
    return data[:-30] + bytes(30)


@pytest.mark.parametrize("case", REJECTED, ids=lambda case: case.name)
def test_refused(case: Bad, gate: Gate, tmp_path: Path) -> None:
    data = case.build()
    with pytest.raises(InputError) as refusal:
        gate(data)
    assert (refusal.value.code, list(tmp_path.iterdir())) == (case.code, [])
    assert "\n" not in refusal.value.message and refusal.value.message.endswith(".")


EXPECTED = np.stack([pixels(k).T for k in range(5)], axis=2).astype(np.int64) - 1024  # (I, J, K)
SHUFFLED = [3, 0, 4, 1, 2]


def _rounded(k: int) -> bytes:
    return image(k, ImagePositionPatient=[-10, -20, round(30 + 2.543 * k, 1)])


ACCEPTED: list[tuple[str, Callable[[], Sequence[bytes | tuple[str, bytes]]]]] = [
    ("plain", series),
    ("shuffled", lambda: [image(k) for k in SHUFFLED]),
    ("positions rounded to 0.1 mm", lambda: [_rounded(k) for k in range(5)]),
    ("other files beside", lambda: [*series(), ("DICOMDIR", b"x"), ("__MACOSX/._IM0", bytes(300))]),
    ("a viewer beside", lambda: [("viewer.jar", zipped([("a.class", b"x")])), *series()]),
    ("a folder entry", lambda: [("study/", b""), *series()]),
    ("a report beside", lambda: [*series(), image(9, Modality="SR", SeriesInstanceUID="1.2.4")]),
    ("RLE", lambda: series(5, RLELossless)),
    ("JPEG 2000", lambda: series(5, JPEG2000Lossless)),
    ("SpacingBetweenSlices wrong", lambda: series(SpacingBetweenSlices=9)),
    ("12 bits of 16", lambda: series(BitsStored=12, HighBit=11)),
    (
        "rescaling that differs",
        lambda: (
            [image(k, RescaleIntercept=-1024 + k, PixelData=(pixels(k) - k).tobytes()) for k in range(1, 5)]
            + [image(0)]
        ),
    ),
    (
        "signed",
        lambda: [
            image(k, PixelRepresentation=1, RescaleIntercept=0, PixelData=(pixels(k) - 1024).astype("<i2").tobytes())
            for k in range(5)
        ],
    ),
]


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: case[0])
@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_accepted(case: tuple[str, Callable[[], Sequence[bytes | tuple[str, bytes]]]], method: int, gate: Gate) -> None:
    decoded = gate(zipped(case[1](), method))
    volume = read_volume(decoded.path)
    assert np.array_equal(volume.values(), EXPECTED)
    assert (decoded.kind, decoded.orientation, volume.source) == ("dicom", "LPS", None)
    step = round(30 + 2.543 * 4, 1) / 4 - 7.5 if case[0].startswith("positions") else STEP
    np.testing.assert_allclose(decoded.spacing, (0.8, 0.7, step))
    np.testing.assert_allclose(np.array(decoded.affine)[:3, 3], (10, 20, 30))
    assert (decoded.low, decoded.high) == (EXPECTED.min(), EXPECTED.max())


def test_a_mask_in_nrrd_lies_exactly_on_the_series(gate: Gate, tmp_path: Path) -> None:
    turned = [0.8, 0.6, 0, -0.6, 0.8, 0]
    members = [image(k, ImageOrientationPatient=turned, ImagePositionPatient=[-10.123457, 1, k / 3]) for k in range(3)]
    for k, data in enumerate(members):
        (tmp_path / "series").mkdir(exist_ok=True)
        (tmp_path / "series" / f"{k}").write_bytes(data)
    stored = read_volume(gate(zipped(members)).path)
    write_labels(tmp_path / "mask.nrrd", np.zeros(stored.grid.shape, np.uint8), stored)
    affine = read_volume(tmp_path / "mask.nrrd").grid.affine
    assert np.array_equal(affine, read_volume(tmp_path / "series").grid.affine)


def test_images_larger_than_a_piece(gate: Gate) -> None:
    rng = np.random.default_rng(3)
    planes = [rng.integers(0, 1 << 16, (1024, 1024), np.uint16) if k % 2 else np.zeros((1024, 1024)) for k in range(4)]
    members = [
        image(k, Rows=1024, Columns=1024, RescaleIntercept=0, PixelData=plane.astype("<u2").tobytes())
        for k, plane in enumerate(planes)
    ]
    volume = read_volume(gate(zipped(members), step=1 << 20).path)
    assert np.array_equal(volume.array[0], np.stack(planes).transpose(2, 1, 0))


def test_one_bare_file(gate: Gate) -> None:
    decoded = gate(image(0), step=50)
    assert (decoded.shape, decoded.spacing) == ((COLUMNS, ROWS, 1), (0.8, 0.7, 5.0))


def test_gantry_tilt_is_placed_and_sheared(gate: Gate) -> None:
    members = [image(k, ImagePositionPatient=[-10, -20 + k, 30 + STEP * k]) for k in range(5)]
    volume = read_volume(gate(zipped(members)).path)
    assert volume.grid.is_sheared
    np.testing.assert_allclose(volume.grid.affine[:3, 2], (0, -1, STEP))


def test_padding_of_ct_becomes_the_lowest_value(gate: Gate) -> None:
    def member(k: int, **tags: Any) -> bytes:
        stored = pixels(k).astype(np.int16) + 50
        stored[0, 0] = -2000
        tags |= {"PixelRepresentation": 1, "PixelPaddingValue": -2000, "PixelData": stored.tobytes()}
        return image(k, **tags)

    ct = gate(zipped([member(k) for k in range(3)]))
    mr = gate(zipped([member(k, Modality="MR") for k in range(3)]))
    assert (ct.low, mr.low) == (51 - 1024, -2000 - 1024)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=4), bare=st.booleans()
)
def test_changed_bytes_are_read_or_refused(flips: list[tuple[int, int]], bare: bool, tmp_path: Path) -> None:
    data = bytearray(image(0) if bare else zipped([image(0), image(1)], zipfile.ZIP_STORED))
    for at, value in flips:
        data[at % len(data)] = value
    try:
        intake = Intake(tmp_path, Limits())
        intake.feed(bytes(data))
        read_volume(intake.finish().path)
    except InputError as error:
        assert error.message


def test_corpus_is_large_enough() -> None:
    assert len(REJECTED) >= 15
