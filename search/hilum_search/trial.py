"""What an evaluation is about: a model, or the folds of one, and the cases that it is asked."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hilum_client.segment import stem
from hilum_search.cases import Dataset, Files
from hilum_search.data import recipe_cases
from hilum_search.errors import DataError, RecipeError
from hilum_search.evaluate import Opened, Report, evaluate, open_folds, open_model
from hilum_search.evaluation import Book, Evaluation
from hilum_search.gather import check_names
from hilum_search.recipe import Recipe, Target, recipe_of
from hilum_search.recorded import Asked, Choice, Recorded, ask, part_for, read_record
from hilum_search.trained import ENSEMBLE, TRAINING


@dataclass(frozen=True)
class Contender:
    """A model to be scored, and the folds that it was joined from, where it was.

    Attributes:
        whole: the model.
        folds: each scores what it did not learn from; empty for a single run.
    """

    whole: Opened
    folds: tuple[Opened, ...] = ()

    @property
    def record(self) -> tuple[Recorded, ...] | None:
        """The cases that the model knows of."""
        return None if self.whole.training is None else read_record(self.whole.training)

    @property
    def left_out(self) -> tuple[Recorded, ...]:
        """What each fold validated on: every case once."""
        lines = [line for fold in self.folds for line in read_record(fold.training or {}) or ()]
        return tuple(line for line in lines if line.part == "validation")

    def asked(self, dataset: Dataset, choice: Choice | None, *, each: bool) -> list[Asked]:
        """The cases to be scored; see ``recorded.ask``.

        The folds of a cross-validation stand in for a test set that was not kept: each case is then scored by the fold
        that did not learn from it.

        Raises:
            DataError: no case of that part, or another case of a recorded name.
        """
        record, left_out = self.record, self.left_out
        kept = any(line.part == "test" for line in record or ())
        if left_out and (choice == "validation" or (choice is None and not kept)):
            return [self._as_it_was(one) for one in ask(dataset, left_out, choice, each=each)]
        return ask(dataset, record, choice, each=each)

    def answering(self, asked: Asked) -> Opened:
        """The fold that left a case out, where it is asked as one that was; else the model."""
        return (self._without(asked) if asked.part == "validation" else None) or self.whole

    def _without(self, asked: Asked) -> Opened | None:
        """The fold that validated on a case; None where each has learnt from it, be it under another name."""
        folds = (fold for fold in self.folds if part_for(asked, read_record(fold.training or {})) == "validation")
        return next(folds, None)

    def _as_it_was(self, asked: Asked) -> Asked:
        """A case that folds left out, unless all have learnt from the same image."""
        learnt = asked.part == "validation" and self.folds and self._without(asked) is None
        return dataclasses.replace(asked, part="train") if learnt else asked

    def by_folds(self, asked: Sequence[Asked]) -> bool:
        """Whether a fold answers for some case, and not the model as a whole."""
        return any(self.answering(one) is not self.whole for one in asked)

    def to_be_asked(self, asked: Sequence[Asked]) -> list[Asked]:
        """Another model's cases, with what they were to this one."""
        found = []
        for one in asked:
            part = part_for(one, self.left_out) if self.left_out else ""
            part = part if part == "validation" else part_for(one, self.record)
            found.append(self._as_it_was(dataclasses.replace(one, part=part)))
        return found

    def evaluate(self, asked: Sequence[Asked], book: Book, report: Report | None = None) -> Evaluation:
        """Score the cases, each by the network that answers for it."""
        scores = [case for one in asked for case in evaluate(self.answering(one), [one], book, report).cases]
        return Evaluation(book.evaluation.subject, tuple(scores))


def contender(
    folder: Path,
    dataset: Dataset,
    recipe: Recipe | None = None,
    beside: Recipe | None = None,
    threads: int | None = None,
) -> Contender:
    """A run, an ensemble of folds, or a model in a repository, with its labels named in the reference's ids.

    Args:
        folder: of the model.
        dataset: what it will be scored on.
        recipe: given by hand; names the ids of every model.
        beside: of the run that it is compared with.
        threads: of the engine of a model in a repository; None: all.

    Raises:
        DataError, ModelError: no model there, or labels that cannot be found in the reference.
    """
    opened = (open_model(folder, threads), *open_folds(folder))
    whole, *folds = (dataclasses.replace(each, labels=targets_of(each, dataset, recipe, beside)) for each in opened)
    return Contender(whole, tuple(folds))


def targets_of(
    opened: Opened, dataset: Dataset, recipe: Recipe | None = None, beside: Recipe | None = None
) -> tuple[Target, ...]:
    """The model's labels and the reference's ids that make them up.

    By the recipe where one is given; a run's by its own recipe; a published model's by name where the data names its
    labels, else by name as in the run beside it, else its own ids.

    Raises:
        DataError: recipe, data or run lack a label of the model, or the data gives its id the name of another.
    """
    names = dict.fromkeys(dataset.labels.values())
    by_name = {name: tuple(i for i, other in dataset.labels.items() if other == name) for name in names}
    if recipe is not None:
        ids, where = _ids(recipe), f"The recipe {recipe.name}"
    elif opened.training is not None:
        check_names(opened.labels, dataset)
        return opened.labels
    elif by_name:
        ids, where = by_name, f"The data in {dataset.folder.name}"
    elif beside is not None:
        ids, where = _ids(beside), f"The run {beside.name} beside it"
    else:
        return opened.labels
    missing = [label.name for label in opened.labels if label.name not in ids]
    if missing:
        known = ", ".join(list(ids)[:8])
        raise DataError(
            f"{where} has no label {missing[0]!r} of {opened.title}, only {known}; name the ids by a recipe (--recipe)."
        )
    return tuple(label.model_copy(update={"from_ids": ids[label.name]}) for label in opened.labels)


def data_of(folder: Path, recipe: Recipe | None, run: Path) -> Dataset:
    """The labelled cases in a folder: those that the recipe names there, else whatever lies there.

    Args:
        folder: of the cases.
        recipe: given by hand; None: the one that the run was made by, where it is a run.
        run: folder of the model.

    Raises:
        DataError: no cases, or files that the recipe knows otherwise.
    """
    from hilum_search.sources import find_dataset

    recipe = recipe or recorded_recipe(run)
    if recipe is not None and recipe.file.cases and (folder / recipe.file.cases[0].image).exists():
        return recipe_cases(recipe, folder)
    return find_dataset(folder)


def pairs_of(images: Sequence[Path], labels: Sequence[Path]) -> Dataset:
    """Cases that were named one by one.

    Raises:
        DataError: a file that is not there, more of the one than of the other, or two cases of one name.
    """
    if len(images) != len(labels):
        raise DataError(f"There are {len(images)} images and {len(labels)} reference segmentations; give one for each.")
    missing = next((path for path in (*images, *labels) if not path.exists()), None)
    if missing is not None:
        raise DataError(f"There is no {missing}; name images and references that are there.")
    counts = Counter(stem(image) for image in images)
    names = [stem(i) if counts[stem(i)] == 1 else f"{i.resolve().parent.name}-{stem(i)}" for i in images]
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"Two images are named {twice}; rename one, or reports cannot tell them apart.")
    folder = Path(os.path.commonpath([path.resolve() for path in (*images, *labels)]))
    triples = zip(images, labels, names, strict=True)
    cases = tuple(Files((image.resolve(),), reference.resolve(), name) for image, reference, name in triples)
    return Dataset(folder, "pairs", cases)


def recorded_recipe(run: Path) -> Recipe | None:
    """The recipe in a run's training.json; None where the folder is no run, or one of an earlier form."""
    folds = sorted(run.glob(f"*/{TRAINING}")) if (run / ENSEMBLE).is_file() else []
    path = next((path for path in (run / TRAINING, *folds) if path.is_file()), None)
    if path is None:
        return None
    try:
        return recipe_of(json.loads(path.read_text()))
    except (RecipeError, ValueError):
        return None


def _ids(recipe: Recipe) -> dict[str, tuple[int, ...]]:
    return {label.name: label.from_ids for label in recipe.labels}
