"""Tiny DICOM series and segmentations for tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def write_series(
    folder: Path,
    array: NDArray[np.int16],
    *,
    axes: tuple[float, ...] = AXIAL,
    origin: tuple[float, float, float] = (-20.0, -30.0, 40.0),
    **tags: Any,
) -> list[Path]:
    """A CT series of (columns, rows, images), 2 x 1.5 x 3 mm; ``axes`` are direction cosines, LPS."""
    folder.mkdir(parents=True, exist_ok=True)
    study, frame, series = (generate_uid() for _ in range(3))
    normal = np.cross(axes[:3], axes[3:])
    paths = []
    for k in range(array.shape[2]):
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = study, series, frame
        dataset.PatientID, dataset.PatientName, dataset.PatientBirthDate, dataset.PatientSex = "P1", "A^B", "", ""
        dataset.StudyID = dataset.StudyDate = dataset.StudyTime = dataset.AccessionNumber = ""
        dataset.ReferringPhysicianName = dataset.PositionReferenceIndicator = ""
        dataset.Modality, dataset.SeriesNumber, dataset.InstanceNumber = "CT", 1, k + 1
        dataset.Columns, dataset.Rows = array.shape[:2]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation = 15, 1
        dataset.PixelSpacing, dataset.SliceThickness = [1.5, 2.0], 3.0
        dataset.ImageOrientationPatient = list(axes)
        dataset.ImagePositionPatient = [float(v) for v in np.asarray(origin) + 3.0 * k * normal]
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1000
        dataset.update({pydicom.datadict.tag_for_keyword(name): _element(name, value) for name, value in tags.items()})
        dataset.PixelData = np.ascontiguousarray(array[:, :, k].T, "<i2").tobytes()
        paths.append(folder / f"{k:03}.dcm")
        dataset.save_as(paths[-1], enforce_file_format=True)
    return paths


def _element(name: str, value: Any) -> pydicom.DataElement:
    return pydicom.DataElement(name, pydicom.datadict.dictionary_VR(name), value)


def write_seg(
    path: Path,
    series: list[Path],
    ids: NDArray[Any],
    names: Mapping[int, str],
    *,
    kind: str = "BINARY",
    **options: Any,
) -> None:
    """A DICOM SEG of a series, by highdicom.

    Args:
        path: of the SEG.
        series: its images, in the order of the planes of ``ids``.
        ids: (columns, rows, images) segment numbers, or (columns, rows, images, segments) of 0 and 1.
        names: segment number to label.
        kind: BINARY, LABELMAP or FRACTIONAL.
    """
    import highdicom as hd
    from pydicom.sr.codedict import codes

    described = [
        hd.seg.SegmentDescription(
            number, name, codes.SCT.Organ, codes.SCT.Liver, hd.seg.SegmentAlgorithmTypeValues.MANUAL
        )
        for number, name in names.items()
    ]
    frames = np.moveaxis(ids, 2, 0).swapaxes(1, 2)  # (images, rows, columns[, segments])
    made = hd.seg.Segmentation(
        source_images=[pydicom.dcmread(each) for each in series],
        pixel_array=frames,
        segmentation_type=kind,
        segment_descriptions=described,
        series_instance_uid=generate_uid(),
        series_number=2,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="Hilum",
        manufacturer_model_name="test",
        software_versions="1",
        device_serial_number="1",
        **options,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path)
