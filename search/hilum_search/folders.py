"""Folders that describe themselves by names alone: images beside references, and DICOM series beside a SEG."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hilum_inference.io import SUFFIXES
from hilum_search.cases import Dataset, Files
from hilum_search.errors import DataError
from hilum_search.reference import is_dicom, read_header, segment_names

IMAGE_FOLDERS = ("imagesTr", "images", "image", "imgs", "img")
LABEL_FOLDERS = ("labelsTr", "labels", "label", "masks", "mask", "segmentations", "segmentation")
_REFERENCE = re.compile(r"(?P<case>.+)[._-](?:seg|segmentation|labels?|masks?)", re.IGNORECASE)
_IMAGE = re.compile(r"(?P<case>.+)[._-](?:image|img)", re.IGNORECASE)
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
_NO_IMAGES = frozenset({"", "SR", "PR", "KO", "RTSTRUCT", "RTDOSE", "RTPLAN", "REG", "FID", "DOC"})


def visible(folder: Path, *endings: str) -> list[Path]:
    """The files of a folder whose names end so, in order; hidden ones (``._NAME`` of macOS) are passed over."""
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())
    return sorted(path for path in found if path.name.lower().endswith(endings))


def stem(path: Path) -> str:
    """The name without the ending of a volume.

    >>> stem(Path("a/liver_3.nii.gz"))
    'liver_3'
    """
    ending = next((ending for ending in (*SUFFIXES, ".dcm") if path.name.lower().endswith(ending)), "")
    return path.name[: len(path.name) - len(ending)]


def paired_cases(folder: Path) -> Dataset | None:
    """Images and references of equal names, in two folders or in one; None where there are none."""
    images = [child for child in _folders(folder) if child.name in IMAGE_FOLDERS]
    labels = [child for child in _folders(folder) if child.name in LABEL_FOLDERS]
    if images and labels:
        for several in (images, labels):
            if len(several) > 1:
                raise DataError(
                    f"{several[0].name}/ and {several[1].name}/ stand for the same thing; keep one of them."
                )
        series = [child for child in _folders(images[0]) if _first_dicom(child)]
        pictures, references = visible(images[0], *SUFFIXES) + series, visible(labels[0], *SUFFIXES, ".dcm")
        return _paired(folder, pictures, references, (images[0], labels[0]))
    files = visible(folder, *SUFFIXES)
    references = [path for path in files if _REFERENCE.fullmatch(stem(path))]
    if not references:
        return None
    return _paired(folder, [path for path in files if path not in references], references, (folder, folder))


def _folders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def _paired(folder: Path, images: Sequence[Path], labels: Sequence[Path], homes: tuple[Path, Path]) -> Dataset:
    """Cases out of images and references; what has no partner keeps the name where the partner should be."""
    wanted = {name for path in labels for name in _names(stem(path), _REFERENCE)}
    pictures: dict[str, list[Path]] = defaultdict(list)
    for path in images:
        own = stem(path)
        pictures[next((name for name in _names(own, _IMAGE, _CHANNEL) if name in wanted), own)].append(path)
    references: dict[str, Path] = {}
    for path in labels:
        names = _names(stem(path), _REFERENCE)
        case = next((name for name in names if name in pictures), names[-1])
        if case in references:
            raise DataError(f"{references[case].name} and {path.name} are both references of {case}; keep one.")
        references[case] = path
    cases = []
    for case in sorted({*pictures, *references}):
        found = _channel_files(case, pictures[case]) if case in pictures else (homes[0] / f"{case}.nii.gz",)
        expected = f"{case}.nii.gz" if homes[0] != homes[1] else f"{case}_seg.nii.gz"
        cases.append(Files(found, references.get(case, homes[1] / expected), case))
    count = max((len(files.images) for files in cases), default=1)
    channels = ("image",) if count == 1 else tuple(f"image-{number}" for number in range(count))
    modalities = {_modality(path) for files in cases for path in files.images}
    modality = modalities.pop() if len(modalities) == 1 else ""
    cases = [_series_inside(files) for files in cases]
    return Dataset(folder, "pairs", tuple(cases), channels, (modality,) * count, _segment_names(cases))


def _modality(path: Path) -> str:
    """What a DICOM series says of itself; of files nobody knows."""
    first = _first_dicom(path) if path.is_dir() else None
    return "" if first is None else str(read_header(first, "Modality").get("Modality", ""))


def _series_inside(files: Files) -> Files:
    """A case whose images are folders, with the folders that hold the series, and the patient that they name."""
    first = _first_dicom(files.images[0]) if files.images[0].is_dir() else None
    if first is None:
        return files
    patient = str(read_header(first, "PatientID").get("PatientID") or "").strip()
    images = tuple(_innermost(path) if path.is_dir() else path for path in files.images)
    return Files(images, files.labels, files.name, _hidden(patient))


def _names(own: str, *patterns: re.Pattern[str]) -> tuple[str, ...]:
    """What a file may call its case: its own stem, then the stem without each of the endings."""
    matches = [pattern.fullmatch(own) for pattern in patterns]
    return (own, *(match["case"] for match in matches if match))


def _channel_files(case: str, paths: Sequence[Path]) -> tuple[Path, ...]:
    alone = _CHANNEL.fullmatch(stem(paths[0]))
    if len(paths) == 1 and alone and int(alone["channel"]) > 0 and stem(paths[0]) != case:
        raise DataError(f"{paths[0].name} is a channel of {case}, and its channels before it are not there; add them.")
    if len(paths) == 1:
        return tuple(paths)
    numbers = [_CHANNEL.fullmatch(stem(path)) for path in paths]
    if [int(number["channel"]) if number else -1 for number in numbers] != list(range(len(paths))):
        names = " and ".join(path.name for path in paths[:2])
        raise DataError(
            f"{names} are both images of {case}; keep one, or number channels _0000, _0001... without a gap."
        )
    return tuple(paths)


@dataclass(frozen=True)
class _Study:
    """What the folder of one DICOM case holds: folders of images by their header, and references."""

    folder: Path
    series: Mapping[Path, Any]
    references: tuple[Path, ...]


def dicom_cases(folder: Path) -> Dataset | None:
    """One folder a case, with a series in a sub-folder (or several: channels) and a reference beside; None if none."""
    studies = [study for study in map(_study, _folders(folder)) if study.series or study.references]
    if not any(study.series for study in studies):
        return None
    cases = tuple(_dicom_files(study) for study in studies)
    names = [tuple("".join(path.relative_to(study.folder).parts[:1]) for path in study.series) for study in studies]
    odd = next(
        (n for n, own in enumerate(names) if (len(own) > 1 and own != names[0]) or len(own) != len(names[0])), None
    )
    if odd is not None:
        raise DataError(
            f"{studies[odd].folder.name} holds the series {', '.join(names[odd])} where {studies[0].folder.name} holds "
            f"{', '.join(names[0])}; several series are channels and need the same folder names in every case."
        )
    channels = names[0] if len(names[0]) > 1 else ("image",)
    modalities = tuple(str(header.get("Modality", "")) for header in studies[0].series.values())
    return Dataset(folder, "dicom", cases, channels, modalities, _segment_names(cases))


def _study(folder: Path) -> _Study:
    series: dict[Path, Any] = {}
    references = visible(folder, *SUFFIXES)
    for path in _candidates(folder):
        first = path if path.is_file() else _first_dicom(path)
        if first is None:
            references += visible(path, *SUFFIXES) if path.is_dir() and path.name in LABEL_FOLDERS else []
            continue
        header = read_header(first, "Modality", "PatientID")
        modality = str(header.get("Modality", ""))
        if modality == "SEG":
            references.append(path)
        elif modality not in _NO_IMAGES:
            series.setdefault(folder if path.is_file() else _innermost(path), header)
    return _Study(folder, series, tuple(references))


def _innermost(folder: Path) -> Path:
    """The folder that holds all files below ``folder``; itself where they lie in several."""
    homes = {path.parent for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")}
    return homes.pop() if len(homes) == 1 else folder


def _candidates(folder: Path) -> Iterator[Path]:
    """Sub-folders and loose DICOM files."""
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and (path.is_dir() or is_dicom(path)):
            yield path


def _first_dicom(folder: Path) -> Path | None:
    inside: Iterable[Path] = sorted(folder.rglob("*"))
    return next((path for path in inside if path.is_file() and is_dicom(path)), None)


def _dicom_files(study: _Study) -> Files:
    name = study.folder.name
    if not study.series:
        raise DataError(f"{name} holds a reference but no DICOM series of images; put it into a sub-folder.")
    if study.folder in study.series and len(study.series) > 1:
        raise DataError(f"{name} holds DICOM images both loose and in a sub-folder; keep one series a sub-folder.")
    if not study.references:
        raise DataError(f"{name} holds a DICOM series but no reference beside it: a DICOM SEG, .nii.gz, .nii or .nrrd.")
    if len(study.references) > 1:
        first, second = study.references[:2]
        raise DataError(f"{name} holds two references, {first.name} and {second.name}; keep one.")
    patients = [str(header.get("PatientID") or "").strip() for header in study.series.values()]
    return Files(tuple(study.series), study.references[0], name, _hidden(patients[0]))


def _hidden(patient: str) -> str:
    """A stand-in for a PatientID: records of a training run tell patients apart and must not name them."""
    return hashlib.sha256(patient.encode()).hexdigest()[:12] if patient else ""


def _segment_names(cases: Sequence[Files]) -> dict[int, str]:
    """Names of all segments; every SEG must number them alike. Empty where some reference is none."""
    known: dict[int, tuple[str, str]] = {}
    for files in cases:
        if stem(files.labels) != files.labels.name and files.labels.suffix != ".dcm":
            return {}
        for number, name in segment_names(files.labels).items():
            other, case = known.setdefault(number, (name, files.name))
            if other != name:
                raise DataError(
                    f"Segment {number} is {name!r} in {files.name} and {other!r} in {case}; number the segments alike."
                )
    return {number: name for number, (name, _) in sorted(known.items())}
