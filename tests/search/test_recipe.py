from __future__ import annotations

from pathlib import Path

import pytest

from hilum_inference.manifest import parse_manifest
from hilum_search.architecture import C2FNAS
from hilum_search.errors import ArchitectureError, RecipeError
from hilum_search.network import count
from hilum_search.recipe import Recipe, parse_recipe, read_recipe


def test_the_manifest_repeats_the_recipes_preprocessing(recipe: Recipe) -> None:
    manifest = parse_manifest(recipe.manifest().to_json())
    assert manifest == recipe.manifest()
    assert manifest.windows.size == (16, 16, 8)
    assert manifest.windows.padding == "edge"
    assert [(label.name, label.id) for label in manifest.labels] == [("ball", 1), ("rod", 2)]
    assert "from_ids" not in manifest.to_json()


def test_figures_may_be_changed_for_one_run(recipe: Recipe) -> None:
    changed = recipe.with_training(seed=5).with_split(validation_planes=[(1, 4)])
    assert (changed.training.seed, changed.split.validation_planes) == (5, ((1, 4),))
    assert (recipe.training.seed, recipe.split.validation_planes) == (0, ())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"fold": 5}, "between 0 and 4"),
        ({"fold": 0, "test_planes": [(1, 4)]}, "not both"),
        ({"validation_planes": [(4, 4)]}, "rising plane numbers"),
        ({"validation_planes": [(4, 8)], "test_planes": [(11, 14)]}, "at least 4 planes"),
        ({"validation_planes": [(4, 8)], "gap": 3}, "the 4 planes that augmentation reaches"),
    ],
)
def test_a_split_that_contradicts_itself_is_refused(recipe: Recipe, changes: dict[str, object], reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        recipe.with_split(**changes)


def test_labels_with_sides_are_not_mirrored_unless_their_pairs_are_named(recipe_text: str) -> None:
    sided = recipe_text.replace('"ball"', '"kidney left"').replace('"rod"', '"kidney right"')
    parse_recipe(sided.replace("[augmentation]", "[augmentation]\nflips = [1, 2]"))
    with pytest.raises(RecipeError, match="has a side"):
        parse_recipe(sided.replace("[augmentation]", "[augmentation]\nflips = [0]"))
    swap = '[augmentation]\nflips = [0]\nswap = [["kidney left", "kidney right"]]'
    recipe = parse_recipe(sided.replace("[augmentation]", swap))
    assert (recipe.sided_axis, recipe.swapped) == (0, (0, 2, 1))
    with pytest.raises(RecipeError, match="no label or is named twice"):
        parse_recipe(sided.replace("[augmentation]", swap.replace('"kidney right"', '"spleen"')))


def test_a_lumbar_vertebra_has_no_side(recipe_text: str) -> None:
    for names, lies in ((("vertebrae_L1", "vertebrae_L2"), False), (("LeftKidney", "spleen"), True)):
        text = recipe_text.replace('"ball"', f'"{names[0]}"').replace('"rod"', f'"{names[1]}"')
        text = text.replace("[augmentation]", "[augmentation]\nflips = [0, 1, 2]")
        if not lies:
            assert parse_recipe(text).augmentation.flips == (0, 1, 2)
            continue
        with pytest.raises(RecipeError, match="'LeftKidney' has a side"):
            parse_recipe(text)


def test_sides_follow_the_windows_axes(recipe_text: str) -> None:
    turned = recipe_text.replace('orientation = "RAS"', 'orientation = "RAS"\naxes = [2, 1, 0]')
    assert parse_recipe(turned).sided_axis == 2
    sided = turned.replace('"ball"', '"kidney_left"')
    parse_recipe(sided.replace("[augmentation]", "[augmentation]\nflips = [0, 1]"))
    with pytest.raises(RecipeError, match="has a side"):
        parse_recipe(sided.replace("[augmentation]", "[augmentation]\nflips = [2]"))


@pytest.mark.parametrize(("field", "value"), [("steps", 0), ("threads", 0), ("batch", "two")])
def test_a_figure_outside_its_bounds_is_one_sentence(recipe: Recipe, field: str, value: object) -> None:
    with pytest.raises(RecipeError, match=rf"^training\.{field} cannot be {value!r}: [^\n]*$"):
        recipe.with_training(**{field: value})


def test_another_architecture_must_fit_the_window(recipe: Recipe) -> None:
    deeper = C2FNAS(2, (0, 1, 2, 1, 0), ("2d",) * 5)
    assert recipe.with_architecture(deeper).architecture == deeper
    with pytest.raises(RecipeError, match="multiples of 16"):
        recipe.with_architecture(C2FNAS(2, (0, 1, 2, 3, 2, 1, 0), ("2d",) * 7))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("steps = 12", "steps = 0", r"training\.steps"),
        ("steps = 12", "stepz = 12", r"training\.ste"),
        ("steps = 12", "steps = ", "not valid TOML"),
        ("[1.0, 2.0, 2.0]", "[1.0, 2.0]", "class_weights has 2 figures"),
        ("steps = 12", "steps = 12\nlogit_offsets = [1.0]", "no figure or 3"),
        ("id = 2", "id = 3", "1, 2, 3"),
        ("[16, 16, 8]", "[16, 16, 6]", "multiples of 4"),
        ("spacing = [2.0, 2.0, 2.0]", "", "spacing must be given"),
        ('name = "phantom"', 'name = "Phantom CT"', "no valid manifest"),
        ("steps = 12", 'steps = 12\nschedule = "steps"', "milestones"),
        ("steps = 12", "steps = 12\nmilestones = [0.5]", "milestones"),
        ('name = "rod"', 'name = "ball"', "no valid manifest"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(recipe_text: str, old: str, new: str, reason: str) -> None:
    assert old in recipe_text
    with pytest.raises(RecipeError, match=reason):
        parse_recipe(recipe_text.replace(old, new, 1))


def test_an_architecture_outside_its_space_is_refused(recipe_text: str) -> None:
    with pytest.raises(ArchitectureError):
        parse_recipe(recipe_text.replace("[0, 1, 0]", "[0, 2, 0]"))


def test_recipes_are_found_by_name_or_file(tmp_path: Path, recipe_text: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(recipe_text)
    assert read_recipe(path) == parse_recipe(recipe_text)
    with pytest.raises(RecipeError, match=r"one of: .*demo"):
        read_recipe("nowhere")


def test_the_demo_recipe_is_small_enough_for_the_repository() -> None:
    demo = read_recipe("demo")
    assert demo.name == "abdomen-ct-demo"
    assert [label.name for label in demo.labels] == ["liver", "spleen", "bone"]
    assert 4 * count(demo.architecture, 1, demo.classes) < 10e6
