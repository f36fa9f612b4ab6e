"""Whether the parts of a recipe fit together."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from pydantic import ValidationError

from hilum_search.errors import RecipeError
from hilum_search.sides import sided

if TYPE_CHECKING:
    from hilum_search.recipe import Recipe


def check(recipe: Recipe) -> None:
    """Refuse a recipe whose parts contradict each other.

    Raises:
        RecipeError: the first contradiction.
    """
    if len(recipe.training.class_weights) != recipe.classes:
        raise RecipeError(
            f"training.class_weights has {len(recipe.training.class_weights)} figures; "
            f"background and {len(recipe.labels)} labels need {recipe.classes}."
        )
    if len(recipe.training.logit_offsets) not in (0, recipe.classes):
        raise RecipeError(f"training.logit_offsets needs no figure or {recipe.classes}, one for each class.")
    if [target.id for target in recipe.labels] != list(range(1, recipe.classes)):
        raise RecipeError("The labels' ids must be 1, 2, 3... in order: they are the network's channels.")
    size, stride = recipe.preprocessing.windows.size, recipe.architecture.stride
    if any(side % stride for side in size):
        raise RecipeError(f"The window {size} must have sides that are multiples of {stride}, the network's stride.")
    if recipe.preprocessing.geometry.spacing is None:
        raise RecipeError("preprocessing.geometry.spacing must be given: training needs one spacing for all cases.")
    _check_flips(recipe)
    _check_split(recipe)
    t = recipe.training
    rising = all(a < b for a, b in itertools.pairwise((0.0, *t.milestones, 1.0)))
    if not rising or (t.schedule == "steps") != bool(t.milestones):
        raise RecipeError("training.milestones are rising shares between 0 and 1, for schedule steps and only for it.")
    try:
        recipe.manifest()
    except ValidationError as error:
        raise RecipeError(f"The recipe makes no valid manifest: {error.errors()[0]['msg']}.") from error


def _check_split(recipe: Recipe) -> None:
    split = recipe.split
    slabs = sorted((*split.validation_planes, *split.test_planes))
    if slabs and (split.fold is not None or split.test_share):
        raise RecipeError("split takes either folds of patients or planes of every case, not both.")
    if split.fold is not None and split.fold >= split.folds:
        last = split.folds - 1
        raise RecipeError(f"split.fold is {split.fold}; with {split.folds} folds it must lie between 0 and {last}.")
    if any(first < 0 or first >= last for first, last in slabs):
        raise RecipeError("Each slab of split is two rising plane numbers, the second one past the last plane.")
    if any(before[1] + split.gap > after[0] for before, after in itertools.pairwise(slabs)):
        raise RecipeError(f"The slabs of split must lie at least {split.gap} planes (split.gap) apart.")
    margin = recipe.augmentation.margin
    if slabs and split.gap < margin:
        raise RecipeError(
            f"split.gap is {split.gap}; it must be at least the {margin} planes that augmentation reaches."
        )


def _check_flips(recipe: Recipe) -> None:
    names = {label.name for label in recipe.labels}
    swapped = [name for pair in recipe.augmentation.swap for name in pair]
    for name in swapped:
        if name not in names or swapped.count(name) > 1:
            raise RecipeError(f"augmentation.swap names {name!r}, which is no label or is named twice.")
    flips, axis = recipe.augmentation.flips, recipe.sided_axis
    if not flips or (axis is not None and axis not in flips):
        return
    if swapped and axis is None:
        raise RecipeError("augmentation.swap needs an orientation: else nobody knows which axis runs left to right.")
    alone = [name for name in sided(sorted(names)) if name not in swapped]
    if alone:
        raise RecipeError(
            f"The label {alone[0]!r} has a side, and augmentation.flips mirrors left and right; "
            "leave that axis out or name the pairs in augmentation.swap."
        )
