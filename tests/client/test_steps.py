from __future__ import annotations

from typing import Any

import httpx
import pytest

from hilum_client.steps import EventParser, Retry, refusal


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_events_cut_anywhere(size: int) -> None:
    text = b': hello\r\n\r\nevent: state\r\ndata: {"a":\ndata: 1}\n\ndata: not json\n\ndata: [2]\n\nevent: x\n\n'
    seen: list[tuple[str, Any]] = []
    parser = EventParser(lambda event, data: seen.append((event, data)))
    for start in range(0, len(text), size):
        parser(text[start : start + size])
    assert seen == [("state", {"a": 1}), ("message", [2])]


def test_waits_double_up_to_a_bound() -> None:
    assert [Retry(wait=0.5).seconds(n) for n in range(6)] == [0.5, 1, 2, 4, 8, 8]


def test_refusals_without_a_problem_body() -> None:
    assert "wants a key" in refusal(httpx.Response(401)).message
    assert refusal(httpx.Response(404, json=["x"])).message == "The server answered 404."
    assert refusal(httpx.Response(500, content=b"{", headers={"content-type": "application/json"})).status == 500
