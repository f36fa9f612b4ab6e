"""Reference segmentations as volumes of integer ids: any volume, and DICOM SEG."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from hilum_inference.io import read_volume
from hilum_inference.volume import Grid, Volume
from hilum_search.errors import DataError


def read_reference(path: Path, like: Grid | None = None) -> Volume:
    """The reference segmentation in a file, or in a folder that holds one DICOM SEG.

    Args:
        path: any volume, or a DICOM SEG, whose ids are its segment numbers.
        like: the image's grid, on which a SEG is laid, planes that it leaves out being background; None: the box of the
            planes that it holds.

    Raises:
        InputError: it cannot be read.
        DataError: a SEG that is damaged, overlaps, or does not lie on the image's planes.
    """
    if not _is_seg(path):
        return read_volume(path)
    from hilum_search.seg import read_seg

    return read_seg(_dicom_file(path), like)


def is_dicom(path: Path) -> bool:
    """Whether a file starts as DICOM does."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def read_header(path: Path, *tags: str) -> Any:
    """Some attributes of a DICOM file, its pixels unread.

    Raises:
        DataError: damaged, or pydicom is not installed.
    """
    try:
        import pydicom
        from pydicom.errors import InvalidDicomError
    except ImportError as error:
        raise DataError("DICOM is read with the extra: pip install 'hilum[dicom]'.") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's remarks on sloppy headers quote their values
        try:
            return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(tags))
        except (InvalidDicomError, EOFError, ValueError, OSError) as error:
            raise DataError(f"{path.name} has a damaged DICOM header; export it again.") from error


def segment_names(path: Path) -> dict[int, str]:
    """Segment number to label of a DICOM SEG, a file or a folder with one; background left out.

    Raises:
        DataError: it cannot be read, or there is no DICOM file.
    """
    header = read_header(_dicom_file(path), "SegmentSequence")
    described = ((int(item.SegmentNumber), str(item.SegmentLabel)) for item in header.get("SegmentSequence") or [])
    return {number: name for number, name in described if number}


def _is_seg(path: Path) -> bool:
    """Whether a file is a DICOM SEG; whether the first DICOM file of a folder is."""
    if path.is_dir():
        files = (each for each in sorted(path.rglob("*")) if each.is_file() and is_dicom(each))
        first = next(files, None)
    else:
        first = path if is_dicom(path) else None
    return first is not None and read_header(first, "Modality").get("Modality") == "SEG"


def _dicom_file(path: Path) -> Path:
    """The one DICOM file of a folder, or the file itself."""
    if path.is_file():
        return path
    found = [each for each in sorted(path.rglob("*")) if each.is_file() and is_dicom(each)]
    if len(found) != 1:
        raise DataError(f"{path.name} must hold one DICOM SEG; it holds {len(found)} DICOM files.")
    return found[0]
