from __future__ import annotations

import csv
import doctest
import io
import json
import math
from pathlib import Path

import pytest

from hilum_search import evaluation as module
from hilum_search.errors import DataError
from hilum_search.evaluation import Book, CaseScore, Evaluation, LabelScore, Spread, Subject

SUBJECT = Subject("net", "abc", 2.0)


def label(name: str, dice: float, ml: tuple[float, float] = (10.0, 9.0)) -> LabelScore:
    distance = 1.0 if all(ml) else math.nan
    return LabelScore(name, dice, distance, 2 * distance, 0.5, *ml)


def case(name: str, liver: float, part: str = "test", tumour: LabelScore | None = None) -> CaseScore:
    labels = (label("liver", liver), tumour or label("tumour", 0.5))
    return CaseScore(name, part, None, {f"{name}.nii": name}, 1.25, labels)


def test_the_spread_is_that_of_the_slides() -> None:
    spread = Spread.of([0.9118, 0.7037, 0.8515, math.nan])
    assert (spread.n, spread.max, spread.min, spread.median) == (3, 0.9118, 0.7037, 0.8515)
    assert spread.mean == pytest.approx(0.8223, abs=1e-4)
    assert spread.sd == pytest.approx(0.1071, abs=1e-4)  # n - 1
    one = Spread.of([0.5])
    assert (one.mean, one.median) == (0.5, 0.5) and math.isnan(one.sd)
    assert Spread.of([]).n == 0 and math.isnan(Spread.of([]).mean)


def test_what_neither_holds_is_not_counted_and_what_was_missed_is() -> None:
    nan = math.nan
    neither = LabelScore("tumour", nan, nan, nan, nan, 0.0, 0.0)
    found = Evaluation(
        SUBJECT,
        (case("a", 0.9), case("b", 0.8, tumour=neither), case("c", 0.7, tumour=label("tumour", 0.0, (3.0, 0.0)))),
    )
    liver, tumour = found.summary("test")
    assert (liver.dice.n, liver.dice.mean) == (3, 0.8)
    assert (tumour.dice.n, tumour.dice.mean, tumour.hd95_mm.n) == (2, 0.25, 1)
    assert (tumour.missed, tumour.extra, tumour.neither) == (1, 0, 1)
    assert found.mean_dice("test") == pytest.approx((0.8 + 0.25) / 2)
    assert found.cases[1].mean_dice == 0.8


def test_parts_are_never_mixed() -> None:
    found = Evaluation(
        SUBJECT, (case("a", 0.9, "train"), case("b", 0.5), case("c", 0.7, "validation"), case("d", 1, "new"))
    )
    assert found.parts == ("test", "new", "validation", "train")
    assert found.summary("test")[0].dice.mean == 0.5
    assert set(found.to_json()["summary"]) == set(found.parts)


def test_the_book_goes_on_where_it_was(tmp_path: Path) -> None:
    nan = math.nan
    book = Book.open(tmp_path / "out", "evaluation", SUBJECT)
    book.add(case("b", 0.9, tumour=LabelScore("tumour", nan, nan, nan, nan, 0.0, 0.0)))
    book.add(case("a", 0.8))
    book.add(CaseScore("c[4:]", "validation", (4, None), {"c": "c"}, 1.0, (label("liver", 0.1),)))
    again = Book.open(tmp_path / "out", "evaluation", Subject("renamed", "abc", 2.0))
    assert [each.name for each in again.evaluation.cases] == ["a", "b", "c[4:]"]
    assert again.evaluation.cases[2].planes == (4, None)
    assert math.isnan(again.evaluation.cases[1].labels[1].dice)
    assert again.known("a", {"elsewhere/a.nii": "a"}) == case("a", 0.8)
    assert again.known("a", {"a.nii": "changed"}) is None and again.known("z", {}) is None
    for other in (Subject("net", "abd", 2.0), Subject("net", "abc", 1.0)):
        assert Book.open(tmp_path / "out", "evaluation", other).evaluation.cases == ()


def test_the_same_files_as_other_channels_are_scored_anew(tmp_path: Path) -> None:
    book = Book.open(tmp_path, "evaluation", SUBJECT)
    files = {"x.nii": "x", "y.nii": "y", "seg.nii": "seg"}
    book.add(CaseScore("a", "test", None, files, 1.0, (label("liver", 0.9),)))
    again = Book.open(tmp_path, "evaluation", SUBJECT)
    assert again.known("a", files) is not None
    assert again.known("a", {"y.nii": "y", "x.nii": "x", "seg.nii": "seg"}) is None


def test_both_files_say_the_same(tmp_path: Path) -> None:
    book = Book.open(tmp_path, "evaluation", SUBJECT)
    book.add(case("a", 0.8, tumour=label("tumour", 0.0, (3.0, 0.0))))
    data = json.loads((tmp_path / "evaluation.json").read_text())
    assert data["format"] == "hilum.evaluation/1" and data["digest"] == "abc"
    assert data["cases"][0]["labels"][1]["hd95_mm"] is None
    assert data["summary"]["test"]["labels"][1]["missed"] == 1
    rows = list(csv.DictReader(io.StringIO((tmp_path / "evaluation.csv").read_text())))
    assert [(r["case"], r["part"], r["label"], r["dice"], r["hd95_mm"], r["verdict"]) for r in rows] == [
        ("a", "test", "liver", "0.8", "2.0", "both"),
        ("a", "test", "tumour", "0.0", "", "missed"),
    ]


def test_a_foreign_file_is_left_alone(tmp_path: Path) -> None:
    for content in ("{}", "no json", '{"format": "hilum.batch/1"}'):
        (tmp_path / "evaluation.json").write_text(content)
        with pytest.raises(DataError, match="no evaluation of Hilum"):
            Book.open(tmp_path, "evaluation", SUBJECT)


def test_a_book_without_a_folder_keeps_nothing() -> None:
    book = Book.open(None, "evaluation", SUBJECT)
    book.add(case("a", 0.8))
    assert book.path is None and len(book.evaluation.cases) == 1


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(module).failed == 0
