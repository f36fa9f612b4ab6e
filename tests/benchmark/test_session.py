from __future__ import annotations

import json
from pathlib import Path

import pytest

from hilum_benchmark import report, table
from hilum_benchmark.figures import Figure, Metric, Rounds, at_most, times_less
from hilum_benchmark.row import Contender, Row
from hilum_benchmark.session import Choice, run

MODULE = """
from pathlib import Path

def prepare(context):
    (context.folder / "ready").write_text("yes")

def ours(context):
    assert (context.folder / "ready").read_text() == "yes"
    with Path("count").open("a") as file:
        file.write("o")
    return {"s": 2.0}

def peer(context):
    with Path("count").open("a") as file:
        file.write("p")
    return {"s": 8.0}

def broken(context):
    raise ValueError("out of luck")
"""


def _figures(rounds: Rounds) -> list[Figure]:
    return [
        *times_less(rounds, "time", Metric("ours", "s"), Metric("peer", "s"), 5),
        *times_less(rounds, "time", Metric("ours", "s"), Metric("broken", "s"), 5),
        *at_most(Metric("ours", "s").values(rounds), "seconds", 3, "s"),
    ]


@pytest.fixture
def row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Row:
    (tmp_path / "two_contenders.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    contenders = {name: Contender(f"two_contenders:{name}") for name in ("ours", "peer")}
    return Row("two", "Two contenders", contenders, _figures, prepare="two_contenders:prepare", note="A note.")


def _nothing(_: str) -> None:
    return None


def test_contenders_take_turns_and_the_file_holds_all_that_is_needed(tmp_path: Path, row: Row) -> None:
    run("volume", [row], tmp_path / "out", Choice(rounds=3), _nothing)
    assert (tmp_path / "count").read_text() == "opopop"
    found = json.loads((tmp_path / "out" / "volume.json").read_text())
    assert found["format"] == "hilum.benchmark/1"
    assert found["quick"] is False
    assert {"cpu", "cores", "memory_gib", "load_average"} <= set(found["machine"])
    measured = found["rows"]["two"]
    assert [len(rounds) for rounds in measured["rounds"].values()] == [3, 3]
    assert measured["medians"]["peer"]["s"] == 8.0
    assert {"python", "numpy"} <= set(measured["versions"])
    assert [(f["value"], f["reach"], f["reached"]) for f in measured["figures"]] == [(4.0, 5, False), (2.0, 3, True)]


def test_what_was_measured_is_kept_until_asked_again_or_more_rounds_are_wanted(tmp_path: Path, row: Row) -> None:
    def count(choice: Choice) -> int:
        before = (tmp_path / "count").read_text() if (tmp_path / "count").exists() else ""
        run("volume", [row], tmp_path / "out", choice, _nothing)
        return len((tmp_path / "count").read_text()) - len(before)

    assert [count(Choice(rounds=1)), count(Choice(rounds=1)), count(Choice(rounds=2))] == [2, 0, 4]
    assert [count(Choice(rounds=1)), count(Choice(rounds=1, again=True))] == [0, 2]
    path = tmp_path / "out" / "volume.json"
    found = json.loads(path.read_text())
    found["rows"]["two"]["versions"]["numpy"] = "1.0"
    path.write_text(json.dumps(found))
    assert count(Choice(rounds=1)) == 2


def test_quick_results_go_to_files_of_their_own_and_say_so(tmp_path: Path, row: Row) -> None:
    result = run("volume", [row], tmp_path / "out", Choice(rounds=1, quick=True), _nothing)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["volume-quick.json"]
    assert table.QUICK in table.markdown(result)


def test_a_contender_that_fails_is_named_and_the_others_are_measured(tmp_path: Path, row: Row) -> None:
    broken = Row("two", row.title, row.contenders | {"broken": Contender("two_contenders:broken")}, _figures)
    result = run("volume", [broken], tmp_path / "out", Choice(rounds=2, work=tmp_path / "work"), _nothing)
    assert "out of luck" in result.rows["two"]["failed"]["broken"]
    assert result.rows["two"]["rounds"]["broken"] == []
    assert "broken gave no result" in table.markdown(result)


def test_table_and_plot_show_every_figure(tmp_path: Path) -> None:
    result = report.Report("volume", False, {"cpu": "C", "cores": 2, "memory_gib": 1, "system": "L"})
    figures = [Figure("fast", "peer", 9.49, 9, 10, 8, "x"), Figure("memory", None, 5, 4, 6, 4.0, "GiB", "less")]
    result.rows["row"] = {"cpu": "C", "note": "A note.", "figures": [report.as_json(figure) for figure in figures]}
    text = table.markdown(result)
    assert "| row | fast | peer | 9.49× | 9 to 10 | ≥ 8× | yes |" in text
    assert "| row | memory |  | 5 GiB | 4 to 6 | ≤ 4 GiB | no, 80 % of it |" in text
    assert "- row: A note." in text
    assert "Measured on C, 2 cores" in text
    result.rows["later"] = {"cpu": "D", "note": "", "figures": []}
    assert "Measured on C (row); D (later), 2 cores" in table.markdown(result)
    table.plot(result, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"


def test_a_failed_preparation_fails_the_row_and_not_the_run(tmp_path: Path, row: Row) -> None:
    broken = Row("two", row.title, row.contenders, _figures, prepare="two_contenders:broken")
    result = run("volume", [broken], tmp_path / "out", Choice(rounds=1), _nothing)
    assert set(result.rows["two"]["failed"]) == {"ours", "peer"}
    assert "out of luck" in result.rows["two"]["failed"]["ours"]


def test_the_source_of_a_row_may_be_a_single_module() -> None:
    from hilum_benchmark.machine import source_digest

    one, two = source_digest(["hilum_benchmark.row"]), source_digest(["hilum_benchmark.child"])
    assert len({one, two, source_digest(["hilum_benchmark"]), source_digest([])}) == 4
