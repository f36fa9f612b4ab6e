from __future__ import annotations

import numpy as np
import pytest
import torch

from hilum_search.augment import Augmenter, Sides, Slab
from hilum_search.data import Case
from hilum_search.recipe import Augmentation, Enhancement, Recipe

TABLE = torch.tensor([0, 0, 0, 2, 2, 0, 0, 1])
SIZE = (16, 16, 8)
CENTRE = torch.tensor([11.5, 9.5, 9.5])


def slab_of(case: Case) -> Slab:
    return Slab(torch.from_numpy(case.image), torch.from_numpy(case.ids))


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_without_rules_a_window_is_a_cut(case: Case) -> None:
    sample = Augmenter(Augmentation(), SIZE, TABLE).draw(slab_of(case), CENTRE, chance())
    cut = (slice(4, 20), slice(2, 18), slice(6, 14))
    np.testing.assert_allclose(sample.image[0], case.image[0][cut], atol=1e-3)
    np.testing.assert_array_equal(sample.classes, TABLE.numpy()[case.ids[cut]])


def test_beyond_the_slab_its_edge_is_repeated(case: Case) -> None:
    sample = Augmenter(Augmentation(), SIZE, TABLE).draw(slab_of(case), torch.tensor([11.5, 9.5, 19.5]), chance())
    for beyond in range(4, 8):
        np.testing.assert_allclose(sample.image[..., beyond], sample.image[..., 3], atol=1e-3)


def test_beyond_the_slab_there_may_be_air(case: Case) -> None:
    rules = Augmentation(outside=-1000.0)
    sample = Augmenter(rules, SIZE, TABLE).draw(slab_of(case), torch.tensor([0.5, 9.5, 9.5]), chance())
    assert bool((sample.image[:, :7] == -1000.0).all())
    assert float(sample.image[:, 8:].min()) > -100
    assert int(sample.classes[:7].max()) == 0


def test_a_short_window_repeats_its_outer_planes(case: Case) -> None:
    rules = Augmentation(short=1.0, smallest_share=0.5)
    repeated = []
    for seed in range(20):
        planes = Augmenter(rules, SIZE, TABLE).draw(slab_of(case), CENTRE, chance(seed)).image[0]
        same = [bool(torch.equal(planes[..., n], planes[..., n + 1])) for n in range(7)]
        inner = "".join("r" if s else "-" for s in same)
        assert "-" not in inner.strip("r") or "r" not in inner.strip("r")
        repeated.append(sum(same))
    assert max(repeated) == 4
    assert min(repeated) < 3


def test_chance_comes_from_the_generator_alone(recipe: Recipe, case: Case) -> None:
    augmenter = Augmenter(recipe.augmentation, SIZE, TABLE)
    torch.manual_seed(1)
    first = augmenter.draw(slab_of(case), CENTRE, chance(3))
    torch.manual_seed(2)
    second = augmenter.draw(slab_of(case), CENTRE, chance(3))
    other = augmenter.draw(slab_of(case), CENTRE, chance(4))
    assert torch.equal(first.image, second.image)
    assert torch.equal(first.classes, second.classes)
    assert not torch.equal(first.image, other.image)


def test_image_and_classes_move_together_and_sides_are_kept(case: Case) -> None:
    rules = Augmentation(rotation=(10.0, 10.0, 20.0), scale=1.3, elastic=1.0)
    for seed in range(10):
        sample = Augmenter(rules, (24, 22, 20), TABLE).draw(
            slab_of(case), torch.tensor([11.5, 10.5, 9.5]), chance(seed)
        )
        image = sample.image[0]
        assert float(image[sample.classes == 1].median()) > 90
        assert float(image[sample.classes == 2].median()) > 140
        ball, rod = ((sample.classes == c).nonzero()[:, 0].float().mean() for c in (1, 2))
        assert ball > rod  # no left-right flip: the ball lies on the high side of the first axis


def test_enhancement_raises_the_named_organ_only(case: Case) -> None:
    rules = Augmentation(enhance=1.0, enhancement=(Enhancement(ids=(7,), rise=100.0),))
    plain = Augmenter(Augmentation(), SIZE, TABLE).draw(slab_of(case), CENTRE, chance(1))
    raised = Augmenter(rules, SIZE, TABLE).draw(slab_of(case), CENTRE, chance(1))
    rise = raised.image[0] - plain.image[0]
    assert 5 < float(rise[plain.classes == 1].median()) <= 150
    assert float(rise[plain.classes == 2].abs().max()) == 0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_flip_mirrors_image_and_classes_about_half_the_time(case: Case, axis: int) -> None:
    plain = Augmenter(Augmentation(), SIZE, TABLE).draw(slab_of(case), CENTRE, chance())
    mirrored = 0
    for seed in range(40):
        sample = Augmenter(Augmentation(flips=(axis,)), SIZE, TABLE).draw(slab_of(case), CENTRE, chance(seed))
        flipped = not torch.equal(sample.classes, plain.classes)
        mirrored += flipped
        image = sample.image.flip(axis + 1) if flipped else sample.image
        classes = sample.classes.flip(axis) if flipped else sample.classes
        torch.testing.assert_close(image, plain.image)
        assert torch.equal(classes, plain.classes)
    assert 10 <= mirrored <= 30


def test_sided_labels_change_places_with_left_and_right_only(case: Case) -> None:
    sides = Sides(0, torch.tensor([0, 2, 1]))
    plain = Augmenter(Augmentation(), SIZE, TABLE).draw(slab_of(case), CENTRE, chance()).classes
    for axis, swaps in ((0, True), (1, False)):
        seen = set()
        for seed in range(20):
            rules = Augmentation(flips=(axis,))
            classes = Augmenter(rules, SIZE, TABLE, sides).draw(slab_of(case), CENTRE, chance(seed)).classes
            if torch.equal(classes, plain):
                continue
            back = classes.flip(axis)
            assert torch.equal(sides.swapped[back] if swaps else back, plain)
            seen.add(seed)
        assert seen
