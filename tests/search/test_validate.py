from __future__ import annotations

import numpy as np
import pytest
import torch
from hilum_cases import thresholds

from hilum_search.cases import Files
from hilum_search.data import Case, load_case, normalise
from hilum_search.recipe import Recipe, parse_recipe
from hilum_search.validate import enhanced, validate


def test_thresholds_find_the_phantom(case: Case, recipe: Recipe) -> None:
    scores = validate(thresholds(), recipe, [case])
    assert min(scores.together.values()) > 0.95
    assert scores.per_case == {"phantom": scores.together}


def test_slabs_are_scored_together_and_each_by_itself(case: Case, recipe: Recipe) -> None:
    empty, full = case.planes(0, 4), case.planes(8, 12)  # the ball begins at plane 6
    scores = validate(thresholds(), recipe, [empty, full])
    assert scores.together == pytest.approx(validate(thresholds(), recipe, [full]).together, abs=0.1)
    assert set(scores.per_case) == {"phantom[0:4]", "phantom[8:12]"}
    assert np.isnan(scores.per_case["phantom[0:4]"]["ball"]) or scores.per_case["phantom[0:4]"]["ball"] == 0


def test_a_slab_is_scored_by_the_figures_of_its_whole_case(recipe_text: str, files: Files) -> None:
    text = recipe_text.replace('{ rule = "window", low = 0.0, high = 200.0 }', '{ rule = "z-score", scope = "volume" }')
    recipe = parse_recipe(text)
    slab = load_case(files, recipe.manifest()).planes(4, 12)
    seen: list[torch.Tensor] = []
    network = thresholds()
    network.body.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].clone()))
    validate(network, recipe, [slab])
    expected = normalise(slab.image, slab.normalisers)[:, :16, :16, :8]
    np.testing.assert_allclose(seen[0][0].numpy(), expected, atol=1e-5)


def test_an_enhanced_slab_is_brighter_where_the_recipe_says(case: Case, recipe: Recipe) -> None:
    rise = enhanced(case, recipe, 1.0).image - case.image
    assert float(np.median(rise[0][case.ids == 7])) > 15
    assert abs(float(np.median(rise[0][case.ids == 3]))) < 3
