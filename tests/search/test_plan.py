from __future__ import annotations

import dataclasses
import doctest
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilum_inference.manifest import Clip, ZScore
from hilum_search import plan_text, sides
from hilum_search.architecture import C2FNAS
from hilum_search.cases import Dataset
from hilum_search.cost import cost
from hilum_search.errors import RecipeError
from hilum_search.measure import POINTS, ChannelFacts, Spread
from hilum_search.plan import Wishes, plan
from hilum_search.recipe import Recipe, parse_recipe
from hilum_search.survey import CaseFacts, Survey

TINY = C2FNAS(filters=4, levels=(0, 1, 0), operators=("2d", "p3d", "3d"))  # stride 4
WISHES = Wishes("tiny", TINY, memory_gib=0.25, steps=400)
HU = (-1024.0, -1000.0, 800.0, 2000.0)
SPREAD = Spread(tuple(4 * point - 200 for point in POINTS), 60.0, 80.0)


def _case(
    name: str = "a",
    shape: tuple[int, int, int] = (120, 110, 100),
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    orientation: str = "LPS",
    whole: tuple[float, float, float, float] = HU,
) -> CaseFacts:
    facts = ChannelFacts(SPREAD, whole)
    return CaseFacts(name, "", shape, spacing, orientation, "int16", shape, (facts,), {0: 9000, 1: 500, 2: 30}, {})


def _dataset(modality: str = "CT", *labels: str) -> Dataset:
    names = dict(enumerate(labels or ("liver", "spleen"), start=1))
    return Dataset(Path("data"), "msd", (), ("CT",), (modality,), names)


def _planned(*cases: CaseFacts, dataset: Dataset | None = None, wishes: Wishes = WISHES) -> Recipe:
    cases = cases or tuple(_case(name) for name in "abcdef")
    return parse_recipe(plan(dataset or _dataset(), Survey(cases), wishes))


def test_a_ct_plan() -> None:
    recipe = _planned()
    assert recipe.name == "tiny" and recipe.architecture == TINY
    assert [(label.name, label.id, label.from_ids) for label in recipe.labels] == [
        ("liver", 1, (1,)),
        ("spleen", 2, (2,)),
    ]
    clip, score = recipe.preprocessing.intensity.steps[0]
    assert isinstance(clip, Clip) and (clip.low, clip.high) == (-198, 198)
    assert isinstance(score, ZScore) and (score.scope, score.mean, score.sd) == ("fixed", 60, 80)
    assert (recipe.training.steps, recipe.training.class_weights) == (400, (1, 1, 1))
    assert (recipe.split.folds, recipe.split.fold) == (5, 0)
    assert recipe.augmentation.flips == (0, 1, 2) and recipe.augmentation.noise == 12


@pytest.mark.parametrize(
    ("shape", "spacings", "expected"),
    [
        # The median of each axis.
        ((200, 200, 150), [(0.7, 0.7, 1.0), (0.8, 0.8, 1.5), (0.9, 0.9, 2.0)], (0.8, 0.8, 1.5)),
        # A thick axis: the 10th percentile of its spacings (linear between ranks)...
        ((200, 200, 30), [(0.8, 0.8, 3.0), (0.8, 0.8, 4.0), (0.8, 0.8, 5.0)], (0.8, 0.8, 3.2)),
        # ...but never finer than the others.
        ((200, 200, 30), [(0.8, 0.8, 0.5), (0.8, 0.8, 4.0), (0.8, 0.8, 5.0)], (0.8, 0.8, 1.2)),
        ((200, 200, 30), [(0.8, 0.8, 0.3), (0.8, 0.8, 0.3), (0.8, 0.8, 5.0), *[(0.8, 0.8, 5.0)] * 3], (0.8, 0.8, 0.8)),
        # Thick planes, but as many as rows: not thick in nnU-Net's sense.
        ((200, 200, 200), [(0.8, 0.8, 3.0), (0.8, 0.8, 4.0), (0.8, 0.8, 5.0)], (0.8, 0.8, 4.0)),
    ],
)
def test_spacing(
    shape: tuple[int, int, int], spacings: list[tuple[float, float, float]], expected: tuple[float, float, float]
) -> None:
    recipe = _planned(*(_case(str(n), shape, spacing) for n, spacing in enumerate(spacings)))
    assert recipe.preprocessing.geometry.spacing == expected


@pytest.mark.parametrize(
    ("orientation", "spacing", "letters", "expected"),
    [
        ("LPS", (1.0, 1.1, 1.2), "RAS", (1.0, 1.1, 1.2)),
        ("SLA", (1.2, 1.0, 1.1), "RAS", (1.0, 1.1, 1.2)),
        ("PIR", (0.8, 0.9, 4.0), "ASR", (0.8, 0.9, 4.0)),  # a sagittal stack
        ("RIA", (0.8, 0.9, 4.0), "RSA", (0.8, 0.9, 4.0)),  # a coronal one
    ],
)
def test_the_coarsest_axis_comes_last(
    orientation: str, spacing: tuple[float, float, float], letters: str, expected: tuple[float, float, float]
) -> None:
    recipe = _planned(*(_case(str(n), (99, 98, 97), spacing, orientation) for n in range(3)))
    assert recipe.preprocessing.geometry.orientation == letters
    assert recipe.preprocessing.geometry.spacing == expected


sizes = st.tuples(*[st.integers(4, 300)] * 3)
spacings = st.tuples(*[st.floats(0.3, 6)] * 3)


@settings(deadline=None, max_examples=8)
@given(sizes, spacings, st.floats(0.005, 2), st.sampled_from([1, 4]))
def test_the_window_fits_memory_and_stride(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], memory: float, count: int
) -> None:
    cases = tuple(_case(str(n), shape, spacing) for n in range(count))
    recipe = _planned(*cases, wishes=dataclasses.replace(WISHES, memory_gib=memory))
    size, batch = recipe.preprocessing.windows.size, recipe.training.batch
    assert cost(TINY, 1, 3, size).training_bytes(batch) <= memory * 2**30
    assert all(side % 4 == 0 and side >= 4 for side in size)
    assert size != (4, 4, 4)
    wanted = recipe.preprocessing.geometry.spacing
    assert wanted is not None
    if batch == 1:
        assert max(size) <= 8 or cost(TINY, 1, 3, size).training_bytes(2) > memory * 2**30


def test_the_window_is_a_cube_in_mm_as_far_as_the_case_reaches() -> None:
    recipe = _planned(*(_case(str(n), (200, 200, 30), (1.0, 1.0, 5.0)) for n in range(5)))
    d, h, w = recipe.preprocessing.windows.size
    assert d == h
    assert abs(d * 1.0 - w * 5.0) <= 4 * 5
    # With memory for all, the whole case.
    rich = _planned(*(_case(str(n), (60, 50, 30)) for n in range(5)), wishes=dataclasses.replace(WISHES, memory_gib=99))
    assert rich.preprocessing.windows.size == (60, 52, 32)
    assert rich.training.batch == 2  # 5 % of five cases is less than a window


def test_too_little_memory() -> None:
    with pytest.raises(RecipeError, match=r"One window of 8x8x8 .* 0\.0001 are allowed: allow more"):
        _planned(wishes=dataclasses.replace(WISHES, memory_gib=1e-4))


def _mr(name: str, filled: tuple[int, int, int]) -> CaseFacts:
    return dataclasses.replace(_case(name, whole=(0.0, 0.0, 900.0, 1200.0)), filled=filled)


def test_an_mr_plan() -> None:
    recipe = _planned(*(_mr(name, (118, 110, 100)) for name in "abc"), dataset=_dataset("MR"))
    [[score]] = recipe.preprocessing.intensity.steps
    assert isinstance(score, ZScore) and score.scope == "volume"
    assert recipe.preprocessing.crop.kind == "none"


def test_volumes_that_are_mostly_empty_are_cropped_and_masked() -> None:
    recipe = _planned(*(_mr(name, (60, 70, 80)) for name in "abc"), dataset=_dataset("MR"))
    [[score]] = recipe.preprocessing.intensity.steps
    assert isinstance(score, ZScore) and score.scope == "mask"
    assert (recipe.preprocessing.intensity.outside, recipe.preprocessing.crop.kind) == (0, "non-zero")
    rich = dataclasses.replace(WISHES, memory_gib=99)
    cropped = _planned(*(_mr(name, (60, 70, 80)) for name in "abc"), dataset=_dataset("MR"), wishes=rich)
    assert cropped.preprocessing.windows.size == (60, 72, 80)


def test_a_modality_that_no_name_tells() -> None:
    text = plan(_dataset(""), Survey((_case("a"), _case("b"))), WISHES)
    assert parse_recipe(text).file.channels[0].modality == "CT"
    assert "Guessed from the values" in text
    other = plan(_dataset(""), Survey((_case("a"), _mr("b", (120, 110, 100)))), WISHES)
    assert parse_recipe(other).file.channels[0].modality == "OT"


def test_channels_with_rules_of_their_own() -> None:
    channel = _case().channels[0]
    cases = tuple(dataclasses.replace(_case(name), channels=(channel, channel)) for name in "ab")
    dataset = dataclasses.replace(_dataset(), channels=("CT", "PET"), modalities=("CT", "PT"))
    recipe = _planned(*cases, dataset=dataset)
    assert [len(steps) for steps in recipe.preprocessing.intensity.steps] == [2, 1]
    doubled = dataclasses.replace(dataset, channels=("T1", "T1"), modalities=("MR", "MR"))
    assert [each.name for each in _planned(*cases, dataset=doubled).file.channels] == ["T1", "T1-1"]


def test_labels_without_names_and_labels_without_voxels() -> None:
    nameless = dataclasses.replace(_dataset(), labels={})
    assert [label.name for label in _planned(dataset=nameless).labels] == ["label-1", "label-2"]
    text = plan(_dataset("CT", "liver", "spleen", "ghost"), Survey((_case(),)), WISHES)
    assert [label.name for label in parse_recipe(text).labels] == ["liver", "spleen"]
    assert 'no case holds them: "ghost"' in text
    with pytest.raises(RecipeError, match="nothing to learn"):
        _planned(dataset=dataclasses.replace(_dataset(), labels={9: "ghost"}))


def test_sides() -> None:
    pair = _planned(dataset=_dataset("CT", "kidney_left", "kidney_right"))
    assert pair.augmentation.flips == (0, 1, 2)
    assert pair.augmentation.swap == (("kidney_left", "kidney_right"),)
    lonely = _planned(dataset=_dataset("CT", "Left kidney", "spleen"))
    assert (lonely.augmentation.flips, lonely.augmentation.swap) == ((1, 2), ())


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("LeftKidney", "RightKidney"), (("LeftKidney", "RightKidney"),)),
        (("kidneyLeft", "kidneyRight"), (("kidneyLeft", "kidneyRight"),)),
        (("KIDNEY_LEFT", "kidney_right"), (("KIDNEY_LEFT", "kidney_right"),)),
        (("Lkidney", "Rkidney"), (("Lkidney", "Rkidney"),)),
        (("kidney_l", "kidney_r", "vertebrae_L1"), (("kidney_l", "kidney_r"),)),
        (("rib L1", "rib R1", "spleen"), (("rib L1", "rib R1"),)),
        (("L5", "Lung", "RCA", "LAD"), ()),
        (("leftkidney", "rightkidney", "leftover"), (("leftkidney", "rightkidney"),)),
        (("nerve_L5_left", "nerve_L5_right"), (("nerve_L5_left", "nerve_L5_right"),)),
        (("RV", "MYO", "LV"), ()),
        (("lung left", "liver"), None),
        (("LeftLung", "liver"), None),
    ],
)
def test_pairs_of_sides(names: tuple[str, ...], expected: tuple[tuple[str, str], ...] | None) -> None:
    assert sides.pairs(names) == expected


def test_thick_planes_turn_within_themselves_only() -> None:
    recipe = _planned(*(_case(str(n), (200, 200, 30), (1.0, 1.0, 5.0)) for n in range(5)))
    assert recipe.augmentation.rotation == (0, 0, 20)


def test_one_patient_is_cut_into_slabs() -> None:
    one, two = (dataclasses.replace(_case(name), patient="p") for name in "ab")
    recipe = _planned(one, dataclasses.replace(two, shape=(120, 110, 80)))
    assert recipe.split.validation_planes == ((32, 48),)
    assert recipe.split.gap >= recipe.augmentation.margin
    assert recipe.split.fold is None
    assert recipe.preprocessing.windows.size[2] <= 28
    assert _planned(_case("a", (90, 90, 20))).split.validation_planes == ()
    assert _planned(_case("a"), _case("b")).split.folds == 2


def test_much_data_is_kept_on_disk() -> None:
    assert _planned().training.keep == "memory"
    assert _planned(*(_case(str(n)) for n in range(60))).training.keep == "disk"


def test_a_name_that_no_manifest_takes() -> None:
    with pytest.raises(RecipeError, match="no valid manifest"):
        _planned(wishes=dataclasses.replace(WISHES, name="My Model"))


def test_odd_names_survive_toml() -> None:
    odd = 'le "foie" \\ é \x7f\n😀'
    assert _planned(dataset=_dataset("CT", odd)).labels[0].name == odd


def test_examples_of_the_docstrings() -> None:
    for each in (sides, plan_text):
        found = doctest.testmod(each)
        assert found.attempted > 0 and found.failed == 0
