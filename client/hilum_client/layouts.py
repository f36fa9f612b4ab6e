"""What a batch segments and where each mask goes: any folder of volumes, or a task of the Decathlon or of nnU-Net."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from hilum_client import wire
from hilum_client.errors import InputError
from hilum_client.payload import is_dicom
from hilum_client.segment import own_name, stem

Layout = Literal["flat", "msd"]
LAYOUTS: Final[tuple[str, ...]] = get_args(Layout)
SUFFIXES: Final = (".nii.gz", ".nii", ".nrrd", ".zip")
DATASET: Final = "dataset.json"
IMAGES: Final = "imagesTs"
LARGEST_ID: Final = 255
"""Of a label in the Decathlon's predictions: they are uint8."""
_CHANNEL: Final = re.compile(r"(.+)_(\d{4})")

Source = Path | tuple[Path, ...]


@dataclass(frozen=True)
class Case:
    """One volume.

    Attributes:
        name: its path below the folder, with ``/``; the folder's own name where that is the series.
        path: the file, or the folder of a DICOM series; the first channel where each has a file of its own.
        mask: path of its mask below the output folder.
        further: files of the other channels, in order.
    """

    name: str
    path: Path
    mask: Path
    further: tuple[Path, ...] = ()

    @property
    def source(self) -> Source:
        """The file, or those of all channels."""
        return (self.path, *self.further) if self.further else self.path


@dataclass(frozen=True)
class Task:
    """A test set with its predictions' names.

    Attributes:
        name: of its folder, such as ``Task07_Pancreas``: of the folder of predictions too.
        cases: those whose image is there.
        expected: the mask of every test case, below the output folder.
    """

    name: str
    cases: tuple[Case, ...]
    expected: tuple[Path, ...]

    def first_missing(self, out: Path) -> Path | None:
        """The first mask that is not in the output folder; None where the set is complete."""
        return next((mask for mask in self.expected if not (out / mask).is_file()), None)

    def verdict(self, out: Path) -> str:
        """One sentence: complete, or what is missing."""
        missing = self.first_missing(out)
        count = len(self.expected)
        if missing is None:
            return f"{out / self.name} is complete: {count} of {count} test cases; the folder can be zipped and sent."
        there = sum((out / mask).is_file() for mask in self.expected)
        return f"{out / self.name} is not complete: {there} of {count} test cases, the first missing is {missing.name}."


def find_cases(folder: Path, skip: Path, suffix: wire.MaskFormat = "nii.gz") -> list[Case]:
    """The volumes in a folder and below, by name: NIfTI, NRRD, zips, and folders of DICOM files.

    Args:
        folder: where to look, behind links too; hidden files are passed over. A link that bears a volume's name and
            leads nowhere is a case, so that it is told of.
        skip: a folder inside that is passed over: that of the masks.
        suffix: of the masks.

    Raises:
        InputError: no such folder, no volume in it, or two that would share a mask.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}.", code="no_such_folder")
    found = sorted(_volumes(folder, skip.resolve()))
    if not found:
        raise InputError(f"{folder} holds no volumes ({', '.join(SUFFIXES)} or DICOM).", code="no_volumes")
    own = [Path(own_name(folder)) if path == folder else path.relative_to(folder) for path in found]
    cases = [
        Case(name.as_posix(), path, mask.with_name(f"{mask.name}-mask.{suffix}"))
        for name, path, mask in zip(own, found, _shortened(own), strict=True)
    ]
    _check_masks(cases)
    return cases


def find_task(folder: Path) -> Task:
    """The test cases of a task of the Medical Segmentation Decathlon, or of an nnU-Net raw data set.

    The masks are what the Decathlon's server takes: one folder a task, predictions named as the test images.

    Args:
        folder: that of ``dataset.json``, or ``imagesTs`` below it.

    Raises:
        InputError: no ``dataset.json``, one that cannot be read, no test image, or two that would share a mask.
    """
    root = Path(os.path.abspath(folder))  # noqa: PTH100 - without following links, but with .. taken out
    root = root.parent if root.name == IMAGES and not (root / DATASET).is_file() else root
    listed = _dataset(root).get("test")
    images = root / IMAGES
    if isinstance(listed, list) and listed:
        paths = dict.fromkeys(str(each["image"] if isinstance(each, Mapping) else each) for each in listed)
        cases = [_case(root, images, Path(path).name) for path in paths]
    else:  # nnU-Net lists no test cases: they are what lies there
        there = sorted(path.name for path in images.glob("[!.]*") if path.name.endswith(SUFFIXES[:3]))
        cases = [_case(root, images, name) for name in dict.fromkeys(_without_channel(name) for name in there)]
    _check_masks(cases)
    present = tuple(case for case in cases if case.path.is_file())
    if not present:
        raise InputError(f"{images} holds no test image that {DATASET} names; is the data complete?", code="no_volumes")
    return Task(root.name, present, tuple(case.mask for case in cases))


def check_labels(model: str, labels: Mapping[str, int]) -> None:
    """Refuse a model whose labels do not fit in uint8.

    Raises:
        InputError: an id beyond 255.
    """
    largest = max(labels.values(), default=0)
    if largest > LARGEST_ID:
        raise InputError(
            f"{model} has a label with id {largest}; predictions of --layout msd are uint8, at most {LARGEST_ID}.",
            code="bad_labels",
        )


def named(source: Source, channels: Sequence[str]) -> Path | dict[str, Path]:
    """What a back-end takes: the file, or the model's channel names with the file of each.

    Raises:
        InputError: another number of files than the model has channels.
    """
    if isinstance(source, Path):
        return source
    if len(source) != len(channels):
        raise InputError(
            f"The case has {len(source)} files, one a channel; the model has {len(channels)}: {', '.join(channels)}.",
            code="channel_count",
        )
    return dict(zip(channels, source, strict=True))


def _shortened(paths: Sequence[Path]) -> list[Path]:
    """Paths without the suffix of their format; whole where two would be the same.

    >>> [path.name for path in _shortened([Path("a.nii"), Path("b.nii"), Path("b.nrrd"), Path("b.nii.nii")])]
    ['a', 'b.nii', 'b.nrrd', 'b.nii.nii']
    """
    names = [path.with_name(stem(path)) for path in paths]
    while True:
        count = Counter(names)
        longer = [path if count[name] > 1 else name for path, name in zip(paths, names, strict=True)]
        if longer == names:
            return names
        names = longer


def _check_masks(cases: Sequence[Case]) -> None:
    """Refuse two cases that would write one mask: the second would silently replace the first.

    Raises:
        InputError: names both.
    """
    first: dict[Path, Case] = {}
    for case in cases:
        other = first.setdefault(case.mask, case)
        if other is not case:
            raise InputError(
                f"{other.path} and {case.path} would write one mask, {case.mask}; rename one, or leave it out.",
                code="same_name",
            )


def _dataset(root: Path) -> dict[str, Any]:
    path = root / DATASET
    if not path.is_file():
        raise InputError(
            f"There is no {DATASET} in {root}; --layout msd takes a task's folder, or its {IMAGES}.", code="no_dataset"
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}.", code="bad_dataset") from error
    if not isinstance(data, dict):
        raise InputError(f"{path} must hold an object with the list test.", code="bad_dataset")
    return data


def _case(root: Path, images: Path, name: str) -> Case:
    """A test case by the name of its image; nnU-Net keeps each channel in a file of its own, ``case_0000``..."""
    image = images / name
    short = stem(image)
    suffix = name[len(short) :] or ".nii.gz"
    files = [image]
    if not image.is_file():
        channels = (path for path in images.glob(f"[!.]*{suffix}") if (split := _split(path.name)) and split == short)
        files = sorted(channels) or files
    mask = Path(root.name) / f"{short}.nii.gz"
    return Case(f"{IMAGES}/{name}", files[0], mask, tuple(files[1:]))


def _split(name: str) -> str | None:
    """The case of a channel's file.

    >>> _split("brain_01_0003.nii.gz"), _split("liver_171.nii.gz")
    ('brain_01', None)
    """
    found = _CHANNEL.fullmatch(stem(Path(name)))
    return found[1] if found else None


def _without_channel(name: str) -> str:
    case, short = _split(name), stem(Path(name))
    return name if case is None else case + name[len(short) :]


def _volumes(folder: Path, skip: Path) -> Iterator[Path]:
    """The volumes of a folder and of all below.

    Links to folders are followed last, and a folder that was seen is passed over: no file comes twice, no loop is
    endless.
    """
    seen = {skip}
    waiting = [folder]
    while waiting:
        for root, folders, names in os.walk(waiting.pop(0)):
            here = Path(root)
            real = here.resolve()
            if real in seen or real.is_relative_to(skip):
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            waiting += [here / name for name in folders if (here / name).is_symlink()]
            yield from _volumes_in(here, sorted(name for name in names if not name.startswith(".")))


def _volumes_in(here: Path, names: Sequence[str]) -> Iterator[Path]:
    """The volumes among a folder's files; the folder itself where there are DICOM files."""
    volumes = [name for name in names if name.lower().endswith(SUFFIXES)]
    yield from (here / name for name in volumes if (here / name).is_file() or _leads_nowhere(here / name))
    rest = [here / name for name in names if name not in volumes and name.upper() != "DICOMDIR"]
    if any(is_dicom(path) for path in rest if path.is_file()):
        yield here


def _leads_nowhere(path: Path) -> bool:
    return path.is_symlink() and not path.exists()
