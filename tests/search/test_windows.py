from __future__ import annotations

import dataclasses

import numpy as np
import torch

from hilum_search.augment import Sample, Slab
from hilum_search.data import Case, targets
from hilum_search.recipe import Recipe
from hilum_search.windows import SEEDS, Windows, prepare, within


def test_a_batch_follows_from_step_and_place_alone(recipe: Recipe, case: Case) -> None:
    prepared = [prepare(case.planes(0, 10), recipe), prepare(case.planes(10, 20), recipe)]
    windows = Windows(prepared, recipe)
    images, classes = windows.batch(7, range(4))
    assert images.shape == (4, 1, 16, 16, 8)
    assert classes.shape == (4, 16, 16, 8)
    Windows(prepared, recipe).batch(3, range(2))
    again, _ = Windows(prepared, recipe).batch(7, range(1, 4, 2))
    assert torch.equal(again, images[1::2])
    assert not torch.equal(windows.batch(8, range(4))[0], images)


def test_every_class_is_drawn_about_as_often(recipe: Recipe, case: Case) -> None:
    still = dataclasses.replace(
        recipe, file=recipe.file.model_copy(update={"augmentation": type(recipe.augmentation)()})
    )
    windows = Windows([prepare(case, still)], still)
    _, classes = windows.batch(0, range(60))
    ball = int((classes == 1).flatten(1).any(1).sum())
    rod = int((classes == 2).flatten(1).any(1).sum())
    assert ball >= 20
    assert rod >= 20


def test_ids_that_no_rule_names_become_background(recipe: Recipe, case: Case) -> None:
    strange = dataclasses.replace(case, ids=np.where(case.ids == 3, 9000, case.ids))
    prepared = prepare(strange, recipe)
    assert set(np.unique(prepared.case.ids)) == {0, 4, 7}
    assert prepared.case.ids.dtype == np.int16
    known = targets(prepared.case.ids, recipe.labels).ravel()
    for label, seeds in enumerate(prepared.seeds):
        assert len(seeds) <= SEEDS
        assert set(known[seeds.numpy()]) == {label}


def test_an_own_transform_sees_stored_values_and_its_chance(recipe: Recipe, case: Case) -> None:
    seen: list[float] = []

    def own(sample: Sample, chance: torch.Generator) -> Sample:
        seen.append(float(sample.image.max()) + 0 * float(torch.rand((), generator=chance)))
        return Sample(torch.full_like(sample.image, 100.0), sample.classes)

    images, _ = Windows([prepare(case, recipe)], recipe, own).batch(0, range(2))
    assert max(seen) > 50  # before the intensity rule
    assert torch.allclose(images, torch.tensor(0.5))  # 100 of the rule's 0 to 200


def test_windows_stand_where_inference_puts_them() -> None:
    slab = Slab(torch.zeros(1, 40, 10, 20), torch.zeros(40, 10, 20, dtype=torch.long))
    side = torch.tensor([16.0, 16.0, 8.0])
    for corner in ([0.0, 0.0, 0.0], [39.0, 9.0, 19.0]):
        centre = within(torch.tensor(corner), side, slab)
        first, last = centre - (side - 1) / 2, centre + (side - 1) / 2
        assert float(first[0]) >= -4 and float(last[0]) <= 39 + 4
        assert abs(float(centre[1]) - 4.5) == 4  # narrower than a window: about its middle
        assert float(centre[2]) == corner[2]
