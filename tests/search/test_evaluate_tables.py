from __future__ import annotations

import io
import math
from collections.abc import Sequence

from rich.console import Console

from hilum_search.evaluate_tables import difference, tables
from hilum_search.evaluation import CaseScore, Evaluation, LabelScore, Subject

NAN = math.nan


def score(name: str, dice: float, ml: tuple[float, float] = (10.0, 9.0)) -> LabelScore:
    return LabelScore(name, dice, 1.5 if all(ml) else NAN, 4.25 if all(ml) else NAN, 0.5, *ml)


def case(name: str, part: str, *labels: LabelScore, planes: tuple[int, int | None] | None = None) -> CaseScore:
    return CaseScore(name, part, planes, {}, 2.0, labels)


def shown(evaluation: Evaluation) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(tables(evaluation))
    return console.export_text()


def test_the_table_of_the_slides() -> None:
    cases = [case(str(n), "test", score("pancreas", d)) for n, d in enumerate((0.9118, 0.7037, 0.8515))]
    text = shown(Evaluation(Subject("net", "", 2.0), tuple(cases)))
    assert "82.23 ± 10.71" in text and "91.18" in text and "70.37" in text and "85.15" in text
    assert "1.50 ± 0.00" in text and "4.2 ± 0.0" in text and "50.0 ± 0.0" in text and "NSD 2 mm, %" in text
    assert "mean over labels" not in text, "one label is its own mean"


def test_missed_extra_and_neither_are_told() -> None:
    missed, extra, neither = score("a", 0.0, (3, 0)), score("b", 0.0, (0, 3)), LabelScore("c", NAN, NAN, NAN, NAN, 0, 0)
    text = shown(Evaluation(Subject("net", "", 2.0), (case("x", "", missed, extra, neither),)))
    assert "a 1x: in the reference, not in the answer: Dice 0, no distance." in text
    assert "b 1x: in the answer, not in the reference" in text
    assert "c 1x: in neither: not counted." in text
    row = next(line for line in text.splitlines() if line.strip().startswith("x "))
    assert row.split() == ["x", "missed", "extra", "-", "-", "2.0"]


def test_what_was_trained_on_is_loud_and_slabs_are_named() -> None:
    cases = (
        case("a[0:8]", "train", score("liver", 0.99), planes=(0, 8)),
        case("a[8:]", "validation", score("liver", 0.7), planes=(8, None)),
        case("b", "train", score("liver", 0.98)),
    )
    text = shown(Evaluation(Subject("net", "", 2.0), cases))
    assert "net, 2 cases, 1 of them slabs, TRAINED ON" in text
    assert "net, 1 slab, validation" in text
    assert "b  trained on" in text and "a[0:8]  slab  trained on" in text and "a[8:]  slab " in text


def test_many_labels_show_the_worst() -> None:
    labels = [score(f"[organ{n}]", 0.9 - n / 100) for n in range(8)]
    text = shown(Evaluation(Subject("net", "", 2.0), (case("x", "test", *labels),)))
    assert "[organ7] 83.00" in text and "86.50" in text


def compared(one: Sequence[CaseScore], other: Sequence[CaseScore]) -> list[str]:
    """The lines of the difference that say something, each with single blanks."""
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(difference(*(Evaluation(Subject(name, "", 2.0), tuple(c)) for name, c in (("A", one), ("B", other)))))
    lines = (" ".join(line.split()) for line in console.export_text().splitlines())
    return [line for line in lines if line.strip("─ ")]


def test_models_are_compared_on_what_both_have() -> None:
    one = (case("a", "", score("liver", 0.9)), case("b", "", score("liver", NAN)))
    lines = compared(one, [case("a", "", score("liver", 0.8), score("spleen", 0.1))])
    assert lines == ["A and B, 1 case, training cases unknown", "Dice, % A B difference", "liver 90.00 80.00 -10.00"]
    assert not compared(one, [case("c", "", score("liver", 0.8))])


def test_a_difference_is_that_of_the_means_in_the_tables() -> None:
    """What one model makes up where there is nothing counts for it alone."""
    made_up, nothing = score("tumour", 0.0, (0, 1)), score("tumour", NAN, (0, 0))
    one = [case("c", "test", score("tumour", 0.8)), *(case(name, "test", made_up) for name in "hijk")]
    other = [case("c", "test", score("tumour", 0.7)), *(case(name, "test", nothing) for name in "hijk")]
    lines = compared(one, other)
    assert "tumour 16.00 70.00 +54.00" in lines
    assert lines[-1].startswith("counted for A alone: tumour 4x: in its answer, but neither in the reference nor in")
    assert compared(other, one)[-2:] == ["tumour 70.00 16.00 -54.00", lines[-1].replace("A alone", "B alone")]
    assert compared(other[1:], other[1:])[-1] == "tumour - - -"


def test_a_difference_is_taken_before_rounding() -> None:
    low, high = [case("a", "", score("liver", 0.80004999))], [case("a", "", score("liver", 0.80005001))]
    assert compared(low, high)[-1].endswith("+0.00") and compared(high, low)[-1].endswith("+0.00")


def test_differences_are_told_part_by_part() -> None:
    one = [case(name, part, score("liver", 0.9)) for name, part in (("a", "train"), ("b", "test"), ("c", "test"))]
    other = [
        case(n, p, score("liver", d)) for n, p, d in (("a", "train", 0.8), ("b", "test", 0.4), ("c", "train", 0.7))
    ]
    lines = compared(one, other)
    assert [line for line in lines if not line.startswith("Dice")] == [
        "A and B, 1 case, test: kept for the end",
        "liver 90.00 40.00 -50.00",
        "A (test: kept for the end) and B (TRAINED ON: these cases say nothing about others), 1 case",
        "liver 90.00 70.00 -20.00",
        "A and B, 1 case, TRAINED ON: these cases say nothing about others",
        "liver 90.00 80.00 -10.00",
    ]
