from __future__ import annotations

import io
import math

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


def test_models_are_compared_on_what_both_have() -> None:
    one = Evaluation(Subject("one", "", 2.0), (case("a", "", score("liver", 0.9)), case("b", "", score("liver", NAN))))
    other = Evaluation(Subject("other", "", 2.0), (case("a", "", score("liver", 0.8), score("spleen", 0.1)),))
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(difference(one, other))
    text = console.export_text()
    assert "spleen" not in text
    assert next(line for line in text.splitlines() if "liver" in line).split() == ["liver", "90.00", "80.00", "-10.00"]
