"""Which part of a run each case was: trained on, validated on, kept for the end, or never seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from hilum_search.cases import Dataset, Files, Part
from hilum_search.data import content_digest
from hilum_search.errors import DataError

Choice = Literal["test", "validation", "train", "all"]
CHOICES: Final[tuple[str, ...]] = get_args(Choice)
NEW: Final = "new"
Planes = tuple[int, int | None]


@dataclass(frozen=True)
class Recorded:
    """One line of ``cases`` in a run's training.json.

    Attributes:
        name: of the case.
        part: ``train``, ``validation`` or ``test``.
        planes: of a slab, [first, last), last None: to the end; None: the whole case.
        contents: SHA-256 of each file by its path below the data's folder, channels in order, then the reference;
            empty where the run did not know.
    """

    name: str
    part: str
    planes: Planes | None
    contents: Mapping[str, str]


@dataclass(frozen=True)
class Asked:
    """One case or slab to be scored.

    Attributes:
        what: files and planes.
        part: that it was; ``new`` where the record does not name it; empty where there is no record.
        contents: SHA-256 of each file by its path.
    """

    what: Part
    part: str
    contents: Mapping[str, str]


def read_record(training: Mapping[str, Any]) -> tuple[Recorded, ...] | None:
    """The cases of a training.json; None where it does not name them."""
    listed = training.get("cases")
    if listed is None:
        return None
    return tuple(
        Recorded(each["name"], each["part"], _planes(each.get("planes")), dict(each.get("files") or {}))
        for each in listed
    )


def contents(files: Files, folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a case by its path below ``folder``; by its name where it lies elsewhere.

    Raises:
        DataError: a file that is not there.
    """
    found = {}
    for path in dict.fromkeys((*files.images, files.labels)):
        if not path.exists():
            raise DataError(f"There is no {path}; name an image and its reference that are there.")
        inside = path.is_relative_to(folder)
        found[path.relative_to(folder).as_posix() if inside else path.name] = content_digest(path)
    return found


def parts_of(files: Files, known: Mapping[str, str], record: Sequence[Recorded] | None) -> list[Asked]:
    """The case as the run knew it: whole, or each slab by itself.

    Args:
        files: of the case.
        known: its ``contents``.
        record: of the run; None where there is none.

    Raises:
        DataError: the record names another case so, with other files.
    """
    if record is None:
        return [Asked(Part(files), "", known)]
    found = _matching(files, known, record)
    if not found:
        return [Asked(Part(files), NEW, known)]
    own = [line for line in found if line.name == files.name] or found
    slabs = dict.fromkeys(line.planes for line in own)
    return [Asked(Part(files, planes), _gravest(found, planes), known) for planes in slabs]


def choose(asked: Sequence[Asked], choice: Choice | None) -> list[Asked]:
    """Those of a part. ``new`` counts as test; by default test, else validation, else all."""
    by_part = {
        "test": [each for each in asked if each.part in ("test", NEW, "")],
        "validation": [each for each in asked if each.part == "validation"],
        "train": [each for each in asked if each.part == "train"],
        "all": list(asked),
    }
    if choice is not None:
        return by_part[choice]
    return by_part["test"] or by_part["validation"] or by_part["all"]


def ask(dataset: Dataset, record: Sequence[Recorded] | None, choice: Choice | None, *, each: bool) -> list[Asked]:
    """What is to be scored of a data set.

    Args:
        dataset: the cases.
        record: of the run; None where there is none.
        choice: a part, or None for the default.
        each: take the default case by case, as for cases that were named one by one, and not over the data set.

    Raises:
        DataError: see ``parts_of`` and ``contents``; nothing of that part.
    """
    found = [parts_of(files, contents(files, dataset.folder), record) for files in dataset.cases]
    whole = [one for parts in found for one in parts]
    chosen = [one for parts in found for one in choose(parts, choice)] if each else choose(whole, choice)
    if not chosen:
        there = ", ".join(sorted({one.part for one in whole}))
        raise DataError(f"No case of the data is of the part {choice}; there is: {there or 'no case'}.")
    return chosen


def part_for(one: Asked, record: Sequence[Recorded] | None) -> str:
    """The part that a case or slab was to another run on the same grid: the gravest that shares a plane with it."""
    if record is None:
        return ""
    return _gravest(_matching(one.what.files, one.contents, record), one.what.planes)


def _matching(files: Files, known: Mapping[str, str], record: Sequence[Recorded]) -> list[Recorded]:
    """Lines of the record about this case: by its name, else by the content of its image under any name.

    What was trained on counts beside the name too: of two equal images one may have been learnt from.
    """
    named = [line for line in record if line.name == files.name]
    if any(line.contents and list(line.contents.values()) != list(known.values()) for line in named):
        raise DataError(
            f"The run's record knows {files.name} with other files: their SHA-256 differ, or their order does; "
            "give the data that the run was made from, or the case another name."
        )
    images = set(list(known.values())[:-1])  # the reference comes last
    if not named:
        return [line for line in record if images & set(line.contents.values())]
    learnt = [line for line in record if line.part == "train" and line.name != files.name]
    return named + [line for line in learnt if images and images <= set(line.contents.values())]


def _gravest(lines: Sequence[Recorded], planes: Planes | None) -> str:
    """The part among lines that share a plane with a slab; what was learnt from outranks all."""
    parts = {line.part for line in lines if _meet(line.planes, planes)}
    return next((part for part in ("train", "validation", "test") if part in parts), NEW)


def _planes(value: Any) -> Planes | None:
    return None if value is None else (int(value[0]), None if value[1] is None else int(value[1]))


def _meet(one: Planes | None, other: Planes | None) -> bool:
    """Whether two slabs share a plane; a whole case shares one with every slab."""
    (first, last), (begin, end) = one or (0, None), other or (0, None)
    return first < (math.inf if end is None else end) and begin < (math.inf if last is None else last)
