from __future__ import annotations

import base64
import doctest
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hilum_search import pareto_page
from hilum_search.pareto import Candidate, pick
from hilum_search.pareto_page import page, write_page

NAN = float("nan")
NASTY = "</title><script>alert(1)</script>\" onload='x' &amp; $title"


def net(name: str, dice: float, ms: float | None, macs: int = 10**9) -> Candidate:
    return Candidate(name, {"family": "c2fnas", "note": name}, dice, ms, 12.5, 4321, macs)


NETS = [net("small", 0.6, 10.0), net("large", 0.9, 50.0), net("poor", 0.5, 40.0), net("unscored", NAN, 5.0)]


class Parsed(HTMLParser):
    """Elements with their attributes, and the text of each kind."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self._open = tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self._open, data.strip()))

    def all(self, tag: str, **wanted: str) -> list[dict[str, str]]:
        return [a for t, a in self.elements if t == tag and all(a.get(key) == value for key, value in wanted.items())]

    def rows(self) -> list[dict[str, str]]:
        return [row for row in self.all("tr") if "data-n" in row]


def test_every_network_has_a_row_and_every_scored_one_a_point_with_its_figures() -> None:
    parsed = Parsed(page(NETS, "A search"))
    assert [row["data-name"] for row in parsed.rows()] == ["large", "small", "poor", "unscored"]
    assert [row["data-front"] for row in parsed.rows()] == ["1", "1", "0", "0"]
    assert {point["data-n"] for point in parsed.all("circle")} == {"0", "1", "2"}
    titles = [text for tag, text in parsed.texts if tag == "title"]
    assert "large: Dice 90.0 %, 50 ms, 1 GMAC and 4,321 parameters" in titles
    assert json.loads(parsed.rows()[0]["data-architecture"]) == NETS[1].architecture


def test_a_network_that_cannot_be_drawn_is_named() -> None:
    assert any("Not in the plot: unscored, its Dice is not a number." in t for _, t in Parsed(page(NETS, "x")).texts)


def test_of_many_such_networks_some_are_named() -> None:
    text = page([*NETS, *(net(f"u{n}", NAN, 1.0) for n in range(4))], "x")
    assert "u1, its Dice is not a number; and 2 more." in text


def test_ranks_follow_the_rule_of_pick() -> None:
    nets = [net("b", 0.8, 5.0), net("a", 0.8, 4.0), net("c", 0.9, 9.0)]
    ranked = [row["data-name"] for row in Parsed(page(nets, "x")).rows()]
    assert ranked[0] == pick(nets).name
    assert next(name for name in ranked if name != "c") == pick(nets, max_latency_ms=8).name


def test_limits_are_the_options_of_the_command() -> None:
    def options(nets: list[Candidate]) -> list[str]:
        return [label["data-option"] for label in Parsed(page(nets, "x")).all("label")]

    assert options(NETS) == ["--max-latency-ms", "--max-gmac", "--max-params"]
    assert options([net("a", 0.5, None)]) == ["--max-gmac", "--max-params"]


def test_work_is_the_axis_where_a_latency_is_unknown() -> None:
    text = page([net("a", 0.5, None), net("b", 0.6, 3.0, 2 * 10**9)], "x")
    assert "Dice against multiply-accumulates of one window, GMAC" in text
    assert len(Parsed(text).all("circle")) == 2


def test_text_of_others_stays_text() -> None:
    text = page([Candidate(NASTY, {"family": NASTY}, 0.5, 1.0, None, 1, 1), *NETS], NASTY)
    parsed = Parsed(text)
    assert len(parsed.all("script")) == 1
    assert not any("onload" in attributes for _, attributes in parsed.elements)
    assert NASTY in {row["data-name"] for row in parsed.rows()}
    assert text.count("alert(1)") == text.count("&lt;script&gt;alert(1)")


def test_the_page_needs_nothing_and_runs_its_own_script_only(tmp_path: Path) -> None:
    write_page(tmp_path / "pareto.html", NETS, "A search")
    text = (tmp_path / "pareto.html").read_text()
    assert not re.search(r"(src|href)=|url\(|https?:|@import", text)
    script = text.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [meta["content"] for meta in Parsed(text).all("meta") if "content" in meta and "default" in str(meta)]
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


@pytest.mark.parametrize("nets", [[], [net("only", 0.5, 1.0)], [net("unscored", NAN, None)], [net("zero", 0.0, 0.0)]])
def test_few_networks_make_a_page_too(nets: list[Candidate]) -> None:
    assert len(Parsed(page(nets, "x")).rows()) == len(nets)


def test_points_lie_within_the_plot_and_better_ones_higher() -> None:
    points = {point["data-n"]: point for point in Parsed(page(NETS, "x")).all("circle")}
    assert float(points["0"]["cy"]) < float(points["1"]["cy"]) < float(points["2"]["cy"])
    assert float(points["1"]["cx"]) < float(points["2"]["cx"]) < float(points["0"]["cx"])
    for point in points.values():
        assert 0 < float(point["cx"]) < pareto_page.WIDTH
        assert 0 < float(point["cy"]) < pareto_page.HEIGHT


def test_ticks() -> None:
    assert pareto_page.ticks(0, 1) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert pareto_page.ticks(71.2, 74.9) == [72.0, 73.0, 74.0]
    assert doctest.testmod(pareto_page).failed == 0
