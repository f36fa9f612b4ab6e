"""A job that takes long runs where children are trained, and is told of where the search was started."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hilum_cases import phantom

from hilum_search import driver as drivers
from hilum_search.c2fnas.run import SupernetJob, train_supernet
from hilum_search.c2fnas.supernet_run import PATHS
from hilum_search.children import Work
from hilum_search.driver import Place, driving, noting, standing
from hilum_search.errors import RecipeError
from hilum_search.progress import Stage
from hilum_search.recipe import parse_recipe
from hilum_search.spaces import C2FNASSpace

STEPS = 3


@pytest.fixture
def work(recipe_text: str, tmp_path: Path) -> Work:
    for number in range(3):
        phantom(tmp_path / "data", f"p{number}", number)
    start, end = recipe_text.index("[[cases]]"), recipe_text.index("[preprocessing.geometry]")
    text = f"{recipe_text[:start]}{recipe_text[end:]}\n[split]\nfolds = 2\nfold = 0\ntest_share = 0.3\n"
    return Work(parse_recipe(text), tmp_path / "data", tmp_path / "search", "cpu")


def job(work: Work, steps: int = STEPS) -> SupernetJob:
    space = C2FNASSpace(2, 5, ("2d", "3d"), (0, 1, 0))
    return SupernetJob(work, space, 0, steps, os.getpid())


@pytest.mark.parametrize("workers", [1, 2])
def test_a_supernet_is_told_of_here_wherever_it_trains(work: Work, workers: int) -> None:
    seen: list[Stage] = []
    with driving(work, job(work).space, Place(workers), seen.append) as driver:
        driver.follow(train_supernet, job(work))
    assert (seen[-1].name, seen[-1].done, seen[-1].total) == ("supernet", STEPS, STEPS)
    assert json.loads((work.out / "status.json").read_text())["pid"] == os.getpid()
    assert standing(work.out).running
    assert (work.out / "supernet" / PATHS).is_file()


def test_what_goes_wrong_in_the_job_is_raised_here_and_leaves_no_thread(work: Work) -> None:
    before = threading.active_count()
    half = Work(work.recipe.with_training(precision="fp16"), work.data, work.out, "cpu")
    with driving(work, job(work).space, Place()) as driver, pytest.raises(RecipeError, match="f32 or bf16"):
        driver.follow(train_supernet, job(half))
    assert threading.active_count() == before


def test_a_folder_that_cannot_be_read_once_ends_no_progress(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Stage] = []
    looks: list[int] = []
    real = drivers._note

    def flaky(out: Path) -> dict[str, Any] | None:
        looks.append(1)
        if len(looks) == 2:
            raise OSError("stale file handle")
        return real(out)

    monkeypatch.setattr(drivers, "LOOKED_EVERY", 0.01)
    with driving(work, job(work).space, Place(), seen.append) as driver:
        monkeypatch.setattr(drivers, "_note", flaky)
        driver.follow(_slow_notes, work.out)
    assert [stage.done for stage in seen][-1] == 4


def _slow_notes(out: Path) -> None:
    note = noting(out, os.getpid())
    waiting = threading.Event()
    for done in range(1, 5):
        note(Stage("supernet", done, 4))
        waiting.wait(0.05)


def test_notes_are_written_at_most_once_a_second_and_at_the_end(tmp_path: Path) -> None:
    note = noting(tmp_path, 7)
    written: Sequence[int] = [_noted(tmp_path, note, done) for done in (1, 2, 3, 4)]
    assert written == [1, 1, 1, 4]


def _noted(out: Path, note: Any, done: int) -> int:
    note(Stage("supernet", done, 4))
    found: int = json.loads((out / "status.json").read_text())["done"]
    return found
