"""A folder of labelled cases: which layout it has, and where each case's image and reference lie.

Names and small headers are read here, never a voxel: whether the files hold what they should is for ``survey`` to say.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hilum_inference.io import SUFFIXES
from hilum_search.cases import Dataset, Files, Layout
from hilum_search.errors import DataError
from hilum_search.folders import dicom_cases, paired_cases, stem, visible

PATIENTS = "patients.csv"
UNDERSTOOD = (
    "a dataset.json of the Medical Segmentation Decathlon or of nnU-Net; folders images/ and labels/ with files of "
    "equal names; files NAME.nii.gz beside NAME_seg.nii.gz; or one folder a case with a DICOM series in a sub-folder "
    "and a DICOM SEG, .nii.gz or .nrrd beside it"
)
"""The layouts, as a sentence."""

_MODALITIES = (
    (re.compile(r"ct(?![a-z])|computed", re.I), "CT"),
    (re.compile(r"pet|pt(?![a-z])", re.I), "PT"),
    (re.compile(r"mr|t1|t2|flair|adc|dwi|pd(?![a-z])|swi|dce|lge|bold", re.I), "MR"),
    (re.compile(r"us(?![a-z])|ultrasound", re.I), "US"),
)
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


def find_dataset(folder: Path) -> Dataset:
    """The labelled cases in a folder, in order of their names.

    A file ``patients.csv`` (columns case, patient) tells patients where the layout knows none.

    Raises:
        DataError: no layout that is understood, or what cannot be expressed: regions, an ignored label, several
            references of a case.
    """
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder.name}; give the folder that holds the cases.")
    found = _find(folder)
    if not found.cases:
        raise DataError(f"{folder.name} is laid out as {found.layout} but holds no labelled case.")
    cases = sorted(with_patients(found.cases, folder / PATIENTS), key=lambda files: files.name)
    return dataclasses.replace(found, cases=tuple(cases))


def _find(folder: Path) -> Dataset:
    if (folder / "dataset.json").is_file():
        fields = _read_json(folder / "dataset.json")
        if "channel_names" in fields or "file_ending" in fields:
            return _nnunet(folder, fields)
        if "modality" in fields and "training" in fields:
            return _decathlon(folder, fields)
        raise DataError(
            "dataset.json names neither channel_names, as nnU-Net's does, nor modality and training, as the "
            "Decathlon's does; add them."
        )
    found = paired_cases(folder) or dicom_cases(folder)
    if found is None:
        raise DataError(f"{folder.name} holds no labelled cases that are understood; read are {UNDERSTOOD}.")
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{path.name} is not valid JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise DataError(f"{path.name} must hold an object.")
    return fields


def modality_of(name: str) -> str:
    """The modality (CT, MR, PT, US) that a channel's name tells; empty where it tells none.

    >>> modality_of("CT"), modality_of("FLAIR"), modality_of("T1w"), modality_of("depth")
    ('CT', 'MR', 'MR', '')
    """
    return next((modality for pattern, modality in _MODALITIES if pattern.match(name.strip())), "")


def _decathlon(folder: Path, fields: Mapping[str, Any]) -> Dataset:
    """The Decathlon's layout, and nnU-Net's first version: the same file, with a file for each channel."""
    channels = _channels(fields["modality"], "modality")
    if not isinstance(fields["training"], list):
        raise DataError("training in dataset.json must be a list of image and label.")
    cases = tuple(_listed(folder, entry, len(channels)) for entry in fields["training"])
    numbered = any(_CHANNEL.fullmatch(stem(path)) for files in cases for path in files.images)
    layout: Layout = "nnunet" if numbered else "msd"
    return Dataset(folder, layout, cases, channels, _modalities(channels), _labels(fields))


def _listed(folder: Path, entry: Any, channels: int) -> Files:
    """One case of the list ``training``."""
    image, label = (entry.get(key) for key in ("image", "label")) if isinstance(entry, dict) else (None, None)
    if isinstance(label, list):
        raise DataError(f"{image} has {len(label)} references in dataset.json; keep one of them for each case.")
    if not isinstance(image, str) or not isinstance(label, str):
        raise DataError(f"An entry of training in dataset.json must name image and label; got {entry!r}.")
    path = folder / image
    name = stem(path)
    suffix = path.name.removeprefix(name)
    split = tuple(path.with_name(f"{name}_{channel:04d}{suffix}") for channel in range(channels))
    images = split if not path.exists() and split[0].exists() else (path,)
    return Files(images, folder / label, name)


def _nnunet(folder: Path, fields: Mapping[str, Any]) -> Dataset:
    ending = fields.get("file_ending", ".nii.gz")
    if ending not in SUFFIXES:
        raise DataError(f"file_ending is {ending!r} in dataset.json; read are {', '.join(SUFFIXES)}.")
    channels = _channels(fields.get("channel_names", fields.get("modality")), "channel_names")
    if isinstance(fields.get("dataset"), dict):
        cases = [_explicit(folder, name, entry, len(channels)) for name, entry in fields["dataset"].items()]
    else:
        cases = _numbered(folder, ending, len(channels))
    promised = fields.get("numTraining", len(cases))
    if promised != len(cases):
        raise DataError(f"dataset.json speaks of {promised} training cases (numTraining); there are {len(cases)}.")
    return Dataset(folder, "nnunet", tuple(cases), channels, _modalities(channels), _labels(fields))


def _explicit(folder: Path, name: str, entry: Any, channels: int) -> Files:
    """One case of nnU-Net's list ``dataset``, which names files wherever they are."""
    images, label = (entry.get(key) for key in ("images", "label")) if isinstance(entry, dict) else (None, None)
    if not isinstance(images, list) or not isinstance(label, str):
        raise DataError(f"The case {name} of dataset in dataset.json must name images (a list) and label (one file).")
    if len(images) != channels:
        raise DataError(f"The case {name} has {len(images)} images in dataset.json; channel_names names {channels}.")
    return Files(tuple(folder / str(image) for image in images), folder / label, name)


def _numbered(folder: Path, ending: str, channels: int) -> list[Files]:
    """Cases of imagesTr/NAME_0000 and labelsTr/NAME: a name in either folder is one."""
    names = {path.name.removesuffix(ending) for path in visible(folder / "labelsTr", ending)}
    for path in visible(folder / "imagesTr", ending):
        numbered = _CHANNEL.fullmatch(path.name.removesuffix(ending))
        if numbered is None:
            raise DataError(f"imagesTr/{path.name} has no number of a channel before its ending, such as _0000.")
        if int(numbered["channel"]) >= channels:
            raise DataError(f"imagesTr/{path.name} is a channel that dataset.json does not name; it names {channels}.")
        names.add(numbered["case"])
    return [
        Files(
            tuple(folder / "imagesTr" / f"{name}_{channel:04d}{ending}" for channel in range(channels)),
            folder / "labelsTr" / f"{name}{ending}",
            name,
        )
        for name in sorted(names)
    ]


def _channels(given: Any, key: str) -> tuple[str, ...]:
    """Names of the channels from {"0": "CT", "1": ...}."""
    numbers = {str(number) for number in range(len(given))} if isinstance(given, dict) else set()
    if not numbers or set(given) != numbers:
        raise DataError(f'{key} in dataset.json must number the channels: {{"0": "CT"}}, {{"0": "T1", "1": "T2"}}...')
    return tuple(str(given[str(number)]) for number in range(len(given)))


def _modalities(channels: Sequence[str]) -> tuple[str, ...]:
    return tuple(modality_of(name) for name in channels)


def _labels(fields: Mapping[str, Any]) -> dict[int, str]:
    """Id to name, background left out, from id -> name (Decathlon) or name -> id (nnU-Net)."""
    given = fields.get("labels")
    if not isinstance(given, dict) or not given:
        raise DataError('labels in dataset.json must name the ids: {"background": 0, "liver": 1}.')
    if fields.get("regions_class_order") or any(isinstance(value, list) for value in given.values()):
        raise DataError("dataset.json makes regions of several labels, which cannot be trained; name one id a label.")
    pairs = given.items() if all(str(key).isdigit() for key in given) else [(i, name) for name, i in given.items()]
    found: dict[int, str] = {}
    for number, name in pairs:
        if str(name).lower() == "ignore":
            raise DataError(
                'dataset.json has a label "ignore", which cannot be trained; leave it out, or give it a name.'
            )
        if not str(number).isdigit():
            raise DataError(f"The label {name!r} in dataset.json has the id {number!r}; ids are whole numbers from 0.")
        if int(number) in found or str(name) in found.values():
            raise DataError(f"dataset.json names the label {name!r} or the id {number} twice.")
        found[int(number)] = str(name)
    return {number: name for number, name in sorted(found.items()) if number}


def with_patients(cases: Sequence[Files], table: Path) -> list[Files]:
    """The cases with the patients that a table tells, by name or by that of the reference, where they have none.

    Raises:
        DataError: a table without its columns, with a case of two patients, or without one of the cases.
    """
    if not table.is_file():
        return list(cases)
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if rows and not {"case", "patient"} <= set(rows[0]):
        raise DataError(f"{table.name} needs the columns case and patient in its first line.")
    patients: dict[str, str] = {}
    for row in rows:
        case, patient = (row["case"] or "").strip(), (row["patient"] or "").strip()
        if patients.setdefault(case, patient) != patient:
            raise DataError(f"{table.name} gives the case {case} two patients; keep one.")
    found = []
    for files in cases:
        name = next((name for name in (files.name, stem(files.labels)) if name in patients), None)
        if name is None and not files.patient:  # a misspelt name would let a patient stand on both sides of a split
            raise DataError(f"{table.name} does not name the case {files.name}; give each case a row.")
        found.append(files if files.patient else dataclasses.replace(files, patient=patients[str(name)]))
    return found
