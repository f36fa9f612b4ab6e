from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hilum_cases import line, phantom, renamed

from hilum_search.cases import Dataset, Part
from hilum_search.errors import DataError
from hilum_search.recorded import Recorded, ask, contents, part_for, parts_of, read_record


def record(*lines: dict[str, Any]) -> tuple[Recorded, ...]:
    found = read_record({"cases": list(lines)})
    assert found is not None
    return found


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return Dataset(tmp_path, "pairs", tuple(phantom(tmp_path, name, move) for move, name in enumerate("abc")))


def shown(dataset: Dataset, known: tuple[Recorded, ...] | None, choice: Any, *, each: bool = False) -> list[str]:
    return [f"{one.what.name} {one.part}".strip() for one in ask(dataset, known, choice, each=each)]


def test_each_case_is_what_the_record_says(data: Dataset) -> None:
    a, b, c = data.cases
    known = record(line(a, "train"), line(b, "validation"), line(c, "test"))
    assert shown(data, known, "all") == ["a train", "b validation", "c test"]
    assert shown(data, known, None) == shown(data, known, "test") == ["c test"]
    assert shown(data, known[:2], None) == ["c new"], "what the record does not name counts as test"
    assert shown(dataclasses.replace(data, cases=(a, b)), known, None) == ["b validation"]
    assert shown(dataclasses.replace(data, cases=(a,)), known, None) == ["a train"]
    assert shown(data, known, None, each=True) == ["a train", "b validation", "c test"]
    with pytest.raises(DataError, match="No case of the data is of the part validation; there is: train"):
        ask(dataclasses.replace(data, cases=(a,)), known, "validation", each=False)


def test_without_a_record_nothing_is_known(data: Dataset) -> None:
    assert read_record({"recipe": {}}) is None
    assert shown(data, None, None) == ["a", "b", "c"]


def test_slabs_of_one_case_are_parts_of_their_own(data: Dataset) -> None:
    a = data.cases[0]
    known = record(line(a, "train", (0, 8)), line(a, "validation", (10, 14)), line(a, "train", (16, None)))
    only = dataclasses.replace(data, cases=(a,))
    assert shown(only, known, None) == ["a[10:14] validation"]
    assert shown(only, known, "all") == ["a[0:8] train", "a[10:14] validation", "a[16:] train"]


def test_a_recorded_name_with_other_files_is_refused(data: Dataset) -> None:
    a, b, _ = data.cases
    known = record(line(renamed(b, "a"), "train"))
    with pytest.raises(DataError, match="knows a with other files: their SHA-256 differ"):
        parts_of(a, contents(a, data.folder), known)


def test_an_image_that_was_trained_on_is_known_under_another_name(data: Dataset) -> None:
    a = data.cases[0]
    known = record(line(a, "train"))
    disguised = dataclasses.replace(a, name="new", labels=data.cases[1].labels)
    assert [one.part for one in parts_of(disguised, contents(disguised, data.folder), known)] == ["train"]


def test_an_image_that_was_trained_on_is_known_under_another_recorded_name(data: Dataset) -> None:
    a = data.cases[0]
    copy = renamed(a, "z")
    only = dataclasses.replace(data, cases=(copy,))
    known = record(line(a, "train"), line(copy, "validation"))
    assert shown(only, known, None) == ["z train"]
    assert part_for(parts_of(copy, contents(copy, data.folder), None)[0], known) == "train"
    slabs = record(line(a, "train", (0, 8)), line(copy, "validation", (6, 10)), line(copy, "test", (10, None)))
    assert shown(only, slabs, "all") == ["z[6:10] train", "z[10:] test"], (
        "planes that nobody learnt from stay held back"
    )
    twins = record(line(a, "validation"), line(copy, "train"))
    other = dataclasses.replace(data, cases=(renamed(a, "new"),))
    assert shown(other, twins, "all") == ["new train"]


def test_an_image_of_which_one_channel_was_trained_on_keeps_its_own_part(data: Dataset) -> None:
    """Some data sets have one empty file for every channel that is missing."""
    a, b, c = data.cases
    one, other = (dataclasses.replace(each, images=(each.images[0], c.images[0])) for each in (a, b))
    known = record(line(one, "train"), line(other, "validation"))
    assert shown(dataclasses.replace(data, cases=(other,)), known, None) == ["b validation"]


def test_a_recorded_case_with_its_channels_exchanged_is_refused(data: Dataset) -> None:
    a, b, _ = data.cases
    both = dataclasses.replace(a, images=(*a.images, *b.images))
    exchanged = dataclasses.replace(a, images=(*b.images, *a.images))
    with pytest.raises(DataError, match="knows a with other files: their SHA-256 differ, or their order does"):
        parts_of(exchanged, contents(exchanged, data.folder), record(line(both, "test")))


def test_a_record_without_digests_goes_by_names(data: Dataset) -> None:
    known = record({"name": "a", "part": "validation", "planes": None})
    assert shown(data, known, "validation") == ["a validation"]


def test_what_a_slab_was_to_another_run(data: Dataset) -> None:
    a = data.cases[0]
    known = record(line(a, "train", (0, 8)), line(a, "validation", (8, 14)), line(a, "test", (16, None)))
    asked = {planes: parts_of(a, contents(a, data.folder), None)[0] for planes in [(0, 8), (7, 9), (8, 10), (14, 16)]}
    parts = {planes: part_for(dataclasses.replace(one, what=Part(a, planes)), known) for planes, one in asked.items()}
    assert parts == {(0, 8): "train", (7, 9): "train", (8, 10): "validation", (14, 16): "new"}
    whole = asked[0, 8]
    assert part_for(whole, known) == "train" and part_for(whole, None) == ""
    assert part_for(dataclasses.replace(whole, what=Part(a, (30, None))), known) == "test"


def test_contents_are_named_below_the_folder(data: Dataset, tmp_path: Path) -> None:
    a = data.cases[0]
    assert list(contents(a, tmp_path)) == ["a.nii.gz", "a_seg.nii.gz"]
    assert list(contents(a, tmp_path / "elsewhere")) == ["a.nii.gz", "a_seg.nii.gz"]
    gone = dataclasses.replace(a, labels=tmp_path / "gone.nii")
    with pytest.raises(DataError, match=r"There is no .*gone\.nii"):
        contents(gone, tmp_path)
