from __future__ import annotations

import json

from typer.testing import CliRunner

from hilum_search.search_cli import search_app

RUNNER = CliRunner()


def _facts(*arguments: str) -> dict[str, object]:
    answer = RUNNER.invoke(search_app, ["space", *arguments, "--json"])
    assert answer.exit_code == 0, answer.output
    facts: dict[str, object] = json.loads(answer.output)
    return facts


def test_spaces_as_json() -> None:
    vnas = _facts("vnas")
    assert vnas["size"] == 10_460_353_203
    assert vnas["operators"] == ["2d", "3d", "p3d"]
    paper, talk = _facts("c2fnas"), _facts("c2fnas", "--operators", "talk")
    assert (paper["topologies"], paper["size"]) == (462, 462 * 3**12)
    assert talk["size"] == 462 * 6**12
    assert _facts("c2fnas", "--hourglasses", "2", "--cells", "14")["formula"] == "13 x 3^14"


def test_a_space_as_text() -> None:
    answer = RUNNER.invoke(search_app, ["space", "vnas"])
    assert "1 x 3^21 = 10460353203 networks" in answer.output
    assert "widths       40 60 80 160" in answer.output


def test_what_does_not_fit_is_said() -> None:
    for arguments, reason in (
        (["vnas", "--cells", "9"], "belong to c2fnas"),
        (["c2fnas", "--cells", "6"], "too few"),
    ):
        answer = RUNNER.invoke(search_app, ["space", *arguments])
        assert answer.exit_code == 2
        assert reason in answer.output
