"""What callers read."""

from __future__ import annotations

import pytest

from hilum_inference.errors import EngineError, OutOfMemoryError
from hilum_server.problems import ProblemError, problem_of, shutting_down


@pytest.mark.parametrize(
    ("problem", "code"),
    [
        (problem_of(OutOfMemoryError("no room for 0x7f")), "out_of_memory"),
        (problem_of(EngineError("pipe 7 is closed", code="decoder_failed")), "decoder_failed"),
        (shutting_down(), "shutting_down"),
    ],
)
def test_what_passes_by_itself_says_when_to_come_back(problem: ProblemError, code: str) -> None:
    assert (problem.status, problem.code) == (503, code) and int(problem.headers["Retry-After"]) > 0
    assert "0x7f" not in problem.detail and "pipe" not in problem.detail


def test_a_known_time_is_kept_and_other_answers_have_none() -> None:
    assert ProblemError(503, "queue_full", "…", {"Retry-After": "30"}).headers == {"Retry-After": "30"}
    assert problem_of(EngineError("lost")).status == 502 and not problem_of(EngineError("lost")).headers
