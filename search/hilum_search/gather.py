"""From a recipe and a folder to the cases of a run: found, checked, split, ready to be drawn from."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from hilum_search.cases import Dataset, Files, Part, Split
from hilum_search.data import load_case, recipe_cases
from hilum_search.errors import DataError
from hilum_search.recipe import Recipe, Target
from hilum_search.record import Cases, Origin
from hilum_search.sources import PATIENTS, find_dataset, with_patients
from hilum_search.splits import split_cases
from hilum_search.store import Store
from hilum_search.survey import CaseFacts, Survey, named_channels, parse_survey, survey, to_json

SURVEY, PLANNED = "survey.json", "recipe.survey.json"


def gather(
    recipe: Recipe,
    data: Path,
    out: Path,
    report: Callable[[int, int], None] | None = None,
    surveys: Path | None = None,
) -> Cases:
    """The cases of a run, every one checked before the first is trained on.

    Args:
        recipe: its ``[[cases]]``, or every case in the folder; its ``[split]``.
        data: folder of the cases, in any layout that ``find_dataset`` knows.
        out: folder of the run; prepared cases may be kept there.
        report: cases checked, cases in all.
        surveys: folder that keeps the survey, so that a resumed run does not read everything again; else ``out``.

    Raises:
        DataError: missing, unreadable, mismatched or mislabelled cases; too few of them; a label without a voxel.
    """
    dataset = listed(recipe, data) if recipe.file.cases else find_dataset(data)
    check_names(recipe.labels, dataset)
    found = _survey(dataset, surveys or out, report)
    split = split_cases(dataset.cases, recipe.split)
    if recipe.split.validation_planes or recipe.split.test_planes:
        split = _within(split, recipe)
    _check_apart(split, found)
    _check_channels(recipe, found)
    _check_labels(recipe, split, found)
    # What is scored must be the same each time: no smart cache.
    steady = recipe.with_training(keep="disk") if recipe.training.keep == "smart" else recipe
    validation = Store(split.validation, steady, out) if split.validation else ()
    test = Store(split.test, recipe.with_training(keep="no"), out) if split.test else ()
    return Cases(Store(split.train, recipe, out), validation, tuple(_origins(split, found)), test)


def listed(recipe: Recipe, data: Path) -> Dataset:
    """The cases that a recipe names, with the patients of ``patients.csv`` where it tells none."""
    dataset = recipe_cases(recipe, data)
    return dataclasses.replace(dataset, cases=tuple(with_patients(dataset.cases, data / PATIENTS)))


def check_names(labels: Iterable[Target], dataset: Dataset) -> None:
    """Refuse to take an id for one label where the dataset gives it the name of another.

    Raises:
        DataError: it does.
    """
    plain: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        plain[_plain(label.name)].append(label.name)
    for label in labels:
        for number in label.from_ids:
            others = plain.get(_plain(dataset.labels.get(number, "")), [])
            if others and label.name not in others:
                other = others[0]
                raise DataError(
                    f"The id {number} is {label.name!r} by its from_ids and {other!r} by the names of the data in "
                    f"{dataset.folder.name}; name the ids by a recipe whose from_ids are this data's."
                )


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()


def _within(split: Split, recipe: Recipe) -> Split:
    """The slabs that the cases have; how many planes there are on the model's grid is known once a case is there.

    Raises:
        DataError: a slab to be held back that a case does not have; nothing left to train on.
    """
    files = {part.files.name: part.files for part in (*split.train, *split.validation, *split.test)}
    depths = {name: load_case(each, recipe.manifest()).ids.shape[2] for name, each in files.items()}
    for part in (*split.validation, *split.test):
        if part.planes is not None and (part.planes[1] or 0) > depths[part.files.name]:
            first, last = part.planes
            held = f"{depths[part.files.name]} planes of {part.files.name}"
            raise DataError(f"The slab {first}:{last} lies outside the {held} on the model's grid.")
    train = tuple(part for part in split.train if part.planes is None or part.planes[0] < depths[part.files.name])
    if not train:
        raise DataError("The held-back slabs leave no plane to train on; hold back fewer.")
    return Split(train, split.validation, split.test)


def _survey(dataset: Dataset, out: Path, report: Callable[[int, int], None] | None) -> Survey:
    path = out / SURVEY
    known, names, channels = _known(out), dataset.labels, named_channels(dataset)
    found = survey(dataset.cases, report, known, folder=dataset.folder, labels=names, channels=channels)
    out.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{SURVEY}.{os.getpid()}.partial")  # several processes of one run may write it
    partial.write_text(to_json(found))
    partial.replace(path)
    return found


def _known(out: Path) -> Survey | None:
    """The survey of an earlier start, or of the plan of this run's recipe; one that cannot be read is none."""
    for path in (out / SURVEY, out / PLANNED):
        with contextlib.suppress(OSError, DataError):
            return parse_survey(path.read_bytes())
    return None


def _check_apart(split: Split, found: Survey) -> None:
    """Refuse one image under two names, of which one trains and the other is scored."""
    images = {case.name: tuple(case.files.values())[:-1] for case in found.cases}
    trained = {images[part.files.name]: part.files.name for part in split.train}
    for part in (*split.validation, *split.test):
        name = part.files.name
        other = trained.get(images[name], name)
        if other != name:
            raise DataError(
                f"{other}, which trains, and {name}, which is scored, hold the same image; leave one of them out, or "
                f"give both the same patient ({PATIENTS})."
            )


def _check_channels(recipe: Recipe, found: Survey) -> None:
    wanted = len(recipe.file.channels)
    for case in found.cases:
        if len(case.channels) != wanted:
            raise DataError(f"{case.name} has {len(case.channels)} channels; the recipe {recipe.name} has {wanted}.")


def _check_labels(recipe: Recipe, split: Split, found: Survey) -> None:
    """Every label must occur in what is trained on, as far as whole cases tell."""
    trained = {part.files.name for part in split.train}
    present = {label for case in found.cases if case.name in trained for label, count in case.voxels.items() if count}
    for label in recipe.labels:
        if not present & set(label.from_ids):
            ids = ", ".join(map(str, label.from_ids[:8]))
            raise DataError(
                f"No training case holds the label {label.name!r} (ids {ids}); look at the recipe's from_ids."
            )


def _origins(split: Split, found: Survey) -> Iterable[Origin]:
    surveyed: dict[str, CaseFacts] = {case.name: case for case in found.cases}
    named: tuple[tuple[str, Sequence[Part]], ...] = (
        ("train", split.train),
        ("validation", split.validation),
        ("test", split.test),
    )
    for part, members in named:
        for member in members:
            files: Files = member.files
            yield Origin(files.name, part, member.planes, files.patient, surveyed[files.name].files)
