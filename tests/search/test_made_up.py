from __future__ import annotations

import numpy as np
import pytest

from hilum_search.data import targets
from hilum_search.errors import RecipeError
from hilum_search.made_up import made_up_case
from hilum_search.recipe import Recipe, parse_recipe

WINDOW_RULE = '{ rule = "window", low = 0.0, high = 200.0 }'


def test_a_case_holds_every_label_and_is_larger_than_a_window(recipe: Recipe) -> None:
    case = made_up_case(recipe)
    assert case.image.shape == (1, 20, 20, 10)
    assert case.image.dtype == np.float32
    assert set(np.unique(case.ids)) == {0, 3, 4, 7}
    assert set(np.unique(targets(case.ids, recipe.labels))) == {0, 1, 2}


def test_the_same_recipe_makes_the_same_case(recipe: Recipe) -> None:
    one, two = made_up_case(recipe), made_up_case(recipe)
    assert np.array_equal(one.image, two.image)
    assert np.array_equal(one.ids, two.ids)


@pytest.mark.parametrize(
    ("rule", "low", "high"),
    [
        (WINDOW_RULE, 0, 200),
        ('{ rule = "clip", low = -175.0, high = 250.0 }, { rule = "z-score", scope = "volume" }', -175, 250),
        ('{ rule = "z-score", mean = 80.0, sd = 20.0 }', 40, 120),
        ('{ rule = "percentile" }', 0, 1000),
    ],
)
def test_values_fill_the_range_of_the_rule(recipe_text: str, rule: str, low: float, high: float) -> None:
    image = made_up_case(parse_recipe(recipe_text.replace(WINDOW_RULE, rule))).image
    margin = 0.11 * (high - low)
    assert low - margin <= image.min() < image.max() <= high + margin
    assert image.max() - image.min() > 0.5 * (high - low)


def test_a_rule_before_resampling_is_refused_as_training_does(recipe_text: str) -> None:
    early = recipe_text.replace("steps = [[", 'stage = "before-resampling"\nsteps = [[')
    with pytest.raises(RecipeError, match="after-resampling only"):
        made_up_case(parse_recipe(early))
