from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
from PIL import Image

from hilum_search.errors import ArchitectureError
from hilum_search.pareto import (
    Candidate,
    best_first,
    cost_axis,
    draw,
    front,
    hypervolume,
    left_out,
    pick,
    read,
    write,
)

NAN = float("nan")


def net(name: str, dice: float, ms: float | None = 1.0, macs: int = 10**9, params: int = 1000) -> Candidate:
    return Candidate(name, {"family": "c2fnas", "filters": 8}, dice, ms, 20.0, params, macs)


def names(candidates: list[Candidate]) -> list[str]:
    return [candidate.name for candidate in candidates]


def test_only_what_nothing_dominates_stays_cheapest_first() -> None:
    nets = [net("slow", 0.9, 9.0), net("bad", 0.5, 5.0), net("fast", 0.6, 1.0), net("even", 0.8, 5.0)]
    assert names(front(nets, ("ms",))) == ["fast", "even", "slow"]


def test_equal_ones_all_stay_and_the_same_dice_at_more_cost_does_not() -> None:
    nets = [net("a", 0.8, 5.0), net("b", 0.8, 5.0), net("c", 0.8, 6.0), net("d", 0.7, 5.0)]
    assert names(front(nets, ("ms",))) == ["a", "b"]


def test_another_objective_keeps_what_is_best_in_it() -> None:
    nets = [net("a", 0.8, 5.0, params=9), net("b", 0.8, 6.0, params=3), net("c", 0.8, 7.0, params=9)]
    assert names(front(nets, ("ms", "params"))) == ["a", "b"]
    assert names(front(nets, ())) == ["a", "b", "c"]


def test_what_has_no_figure_is_left_out_with_a_reason() -> None:
    nets = [net("a", NAN), net("b", 0.5, None), net("c", 0.4)]
    assert names(front(nets, ("ms",))) == ["c"]
    assert left_out(nets, ("ms",)) == {"a": "its Dice is not a number", "b": "its ms is not known"}
    assert left_out(nets, ("macs",)) == {"a": "its Dice is not a number"}


def test_work_is_the_axis_where_a_latency_is_unknown() -> None:
    assert cost_axis([net("a", 0.5)]) == "ms"
    assert cost_axis([net("a", 0.5), net("b", 0.5, None)]) == "macs"
    assert cost_axis([]) == "macs"


def test_the_best_dice_within_the_limits_is_picked() -> None:
    nets = [net("big", 0.9, 90.0, 9 * 10**9, 900), net("mid", 0.8, 50.0, 5 * 10**9, 500), net("small", 0.7, 10.0)]
    assert pick(nets).name == "big"
    assert pick(nets, max_latency_ms=90.0).name == "big"
    assert pick(nets, max_latency_ms=89.9).name == "mid"
    assert pick(nets, max_gmac=4.9).name == "small"
    assert pick(nets, max_latency_ms=1000.0, max_gmac=1000.0, max_params=500).name == "mid"


def test_of_equal_dice_the_faster_is_picked() -> None:
    nets = [net("c", 0.8, None), net("b", 0.8, 5.0), net("a", 0.8, 4.0), net("z", NAN, 1.0)]
    assert names(best_first(nets)) == ["a", "b", "c"]
    assert pick(nets).name == "a"


def test_no_network_within_the_limits_names_the_nearest() -> None:
    nets = [net("near", 0.7, 11.0), net("far", 0.9, 90.0), net("unknown", 0.9, None)]
    with pytest.raises(ArchitectureError) as raised:
        pick(nets, max_latency_ms=10.0, max_params=2000)
    wanted = "within 10 ms and 2,000 parameters; the nearest is near with 11 ms, 1 GMAC and 1,000 parameters."
    assert wanted in str(raised.value)
    with pytest.raises(ArchitectureError, match="no network with a Dice"):
        pick([net("a", NAN)])


def test_the_hypervolume_is_the_area_under_the_steps() -> None:
    nets = [net("a", 0.5, 2.0), net("b", 0.8, 5.0), net("dominated", 0.4, 6.0), net("beyond", 0.9, 12.0)]
    assert hypervolume(nets, "ms", 10.0) == pytest.approx((0.5 * 8 + 0.3 * 5) / 10)
    assert hypervolume([], "ms", 10.0) == 0.0
    assert hypervolume(nets, "ms", 100.0) > hypervolume(nets[:2], "ms", 100.0)
    with pytest.raises(ArchitectureError, match="most is 0"):
        hypervolume(nets, "ms", 0)


def test_files_hold_every_network_and_come_back(tmp_path: Path) -> None:
    nets = [net("a, <b>", 0.5, 2.0), net("unscored", NAN, 1.0), net("worse", 0.4, 3.0)]
    write(tmp_path, nets, ("ms", "params"))
    content = json.loads((tmp_path / "pareto.json").read_text())
    assert content["objectives"] == ["ms", "params"]
    assert [row["front"] for row in content["candidates"]] == [True, False, False]
    assert content["left_out"] == {"unscored": "its Dice is not a number"}
    back = read(tmp_path / "pareto.json")
    assert [back[0], back[2]] == [nets[0], nets[2]]
    assert math.isnan(back[1].dice)
    with (tmp_path / "pareto.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["name"], row["family"], row["dice"]) for row in rows] == [
        ("a, <b>", "c2fnas", "0.5"),
        ("unscored", "c2fnas", ""),
        ("worse", "c2fnas", "0.4"),
    ]
    with Image.open(tmp_path / "pareto.png") as picture:
        assert picture.size[0] > 500


@pytest.mark.parametrize("text", [None, "{}", '{"format": "hilum.pareto/1", "candidates": [{"dice": 1}]}', "no JSON"])
def test_a_file_without_networks_is_refused_in_a_sentence(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "pareto.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ArchitectureError, match="holds no networks to pick from"):
        read(path)


@pytest.mark.parametrize("nets", [[], [net("only", 0.5)], [net("unscored", NAN)], [net("a", 0.5, None)]])
def test_few_networks_are_drawn_too(tmp_path: Path, nets: list[Candidate]) -> None:
    draw(tmp_path / "few.png", nets)
    assert (tmp_path / "few.png").stat().st_size > 1000
