from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilum_search.cases import Files, Part, Split
from hilum_search.errors import DataError
from hilum_search.recipe import Splitting
from hilum_search.splits import folds_of, split_cases


def _files(patients: list[str]) -> list[Files]:
    return [Files((Path(f"c{n}.nii"),), Path(f"l{n}.nii"), f"c{n:03}", who) for n, who in enumerate(patients)]


def _names(parts: tuple[Part, ...]) -> list[str]:
    return [part.files.name for part in parts]


def _people(parts: tuple[Part, ...]) -> set[str]:
    return {part.files.patient or part.files.name for part in parts}


patients = st.lists(st.sampled_from(["", "", "anna", "berta", "carla", "dora"]), min_size=9, max_size=40)
rules = st.builds(
    Splitting,
    folds=st.integers(2, 4),
    fold=st.none() | st.integers(0, 1),
    test_share=st.sampled_from([0.0, 0.1, 0.2]),
    seed=st.integers(0, 9),
)


@given(patients, rules, st.randoms(use_true_random=False))
def test_sides_share_no_patient_lose_no_case_and_do_not_depend_on_the_order(
    patients: list[str], rules: Splitting, chance: random.Random
) -> None:
    files = _files([*patients, *([""] * 6)])
    split = split_cases(files, rules)
    sides = (split.train, split.validation, split.test)
    assert sorted(name for side in sides for name in _names(side)) == sorted(each.name for each in files)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not _people(sides[one]) & _people(sides[other])
    assert split.train
    assert bool(split.test) == bool(rules.test_share)
    shuffled = list(files)
    chance.shuffle(shuffled)
    assert split_cases(shuffled, rules) == split


@given(patients, st.integers(2, 6), st.integers(0, 5), st.sampled_from([0.0, 0.2]))
def test_every_patient_validates_once_and_folds_are_near_equal(
    patients: list[str], folds: int, seed: int, share: float
) -> None:
    files = _files([*patients, *([""] * 6)])
    splits = folds_of(files, Splitting(folds=folds, seed=seed, test_share=share))
    assert len({split.test for split in splits}) == 1
    validated = [name for split in splits for name in _names(split.validation)]
    assert len(set(validated)) == len(validated)
    assert sorted([*validated, *_names(splits[0].test)]) == sorted(each.name for each in files)
    counts = [len(_people(split.validation)) for split in splits]
    assert max(counts) - min(counts) <= 1


slabs = st.lists(st.integers(0, 60), min_size=2, max_size=8, unique=True).map(
    lambda cuts: [(a, b) for a, b in zip(sorted(cuts)[::2], sorted(cuts)[1::2], strict=False)]
)


@given(slabs, st.integers(0, 5), st.integers(1, 80))
def test_slabs_share_no_plane_and_keep_the_gap(slabs: list[tuple[int, int]], gap: int, planes: int) -> None:
    rules = Splitting(validation_planes=tuple(slabs[::2]), test_planes=tuple(slabs[1::2]), gap=gap)
    split = split_cases(_files(["", "anna"]), rules)
    assert split_cases(_files(["", "anna"])[::-1], rules) == split
    for files in _files(["", "anna"]):
        owner = ["free"] * 90
        for side, parts in (("train", split.train), ("held", (*split.validation, *split.test))):
            for part in parts:
                if part.files != files:
                    continue
                assert part.planes is not None
                for plane in range(part.planes[0], len(owner) if part.planes[1] is None else part.planes[1]):
                    assert owner[plane] == "free"
                    owner[plane] = side
        for plane, side in enumerate(owner):
            near = owner[max(0, plane - gap) : plane + gap + 1]
            assert side != "train" or "held" not in near
            assert side != "free" or "held" in near  # nothing but the gap is lost
        assert owner[-1] == "train"


def test_slabs_of_a_case() -> None:
    rules = Splitting(validation_planes=((30, 40),), test_planes=((0, 8),), gap=3)
    split = split_cases(_files([""]), rules)
    assert [part.name for part in split.train] == ["c000[11:27]", "c000[43:]"]
    assert [part.name for part in split.validation] == ["c000[30:40]"]
    assert [part.name for part in split.test] == ["c000[0:8]"]


def test_without_fold_and_test_all_train() -> None:
    files = _files(["", "anna", "anna"])
    assert split_cases(files, Splitting()) == Split(tuple(Part(each) for each in files))


def test_one_patient_more_moves_few_others() -> None:
    rules = Splitting(test_share=0.2)
    before = _people(split_cases(_files([f"p{n}" for n in range(50)]), rules).test)
    after = _people(split_cases(_files([f"p{n}" for n in range(51)]), rules).test)
    assert len(before - after) <= 1


def test_another_seed_deals_otherwise() -> None:
    files = _files([""] * 30)
    assert split_cases(files, Splitting(fold=0)) != split_cases(files, Splitting(fold=0, seed=1))


@pytest.mark.parametrize(
    ("patients", "rules", "reason"),
    [
        (["anna"] * 9, Splitting(fold=0), "There are 1 patients; 5 folds need at least 5: add cases"),
        ([""] * 5, Splitting(fold=0, test_share=0.1), "5 folds need at least 5 besides 1 for the test"),
        (["anna"], Splitting(test_share=0.5), "training needs at least 1 besides 1"),
        ([], Splitting(), "no cases"),
    ],
)
def test_too_few_patients(patients: list[str], rules: Splitting, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        split_cases(_files(patients), rules)


def test_two_cases_of_one_name() -> None:
    [one] = _files([""])
    with pytest.raises(DataError, match="Two cases are named c000"):
        split_cases([one, one], Splitting())
