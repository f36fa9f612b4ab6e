from __future__ import annotations

import doctest
import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hilum_search import entropy as module
from hilum_search.entropy import NAME, PICTURE, Trace, entropies, plot, read


def shares(sharpness: float) -> NDArray[np.float64]:
    """(21, 3) probabilities; 0: all alike."""
    logits = sharpness * np.random.default_rng(0).normal(size=(21, 3))
    powers = np.exp(logits)
    found: NDArray[np.float64] = powers / powers.sum(1, keepdims=True)
    return found


def traced(folder: Path) -> Trace:
    trace = Trace(folder, 16, 5)
    trace.begin(0)
    for step in (0, 10, 20):
        trace.add(step, shares(step / 10))
    return trace


def test_entropy_runs_from_ln_of_the_operators_to_zero() -> None:
    found = entropies(np.array([[1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]))
    np.testing.assert_allclose(found, [math.log(3), math.log(2), 0], atol=1e-12)
    assert not np.signbit(found).any()
    assert doctest.testmod(module).failed == 0


def test_a_row_holds_every_cell_and_the_two_means(tmp_path: Path) -> None:
    traced(tmp_path)
    rows = read(tmp_path)
    assert [int(row["step"]) for row in rows] == [0, 10, 20]
    expected = entropies(shares(2))
    assert float(rows[2]["encoder"]) == pytest.approx(expected[:16].mean(), abs=1e-8)
    assert float(rows[2]["decoder"]) == pytest.approx(expected[16:].mean(), abs=1e-8)
    assert float(rows[2]["encoder_16"]) == pytest.approx(expected[15], abs=1e-8)
    assert float(rows[2]["decoder_1"]) == pytest.approx(expected[16], abs=1e-8)
    assert float(rows[0]["encoder"]) == pytest.approx(math.log(3), abs=1e-8)


def test_a_resumed_search_drops_what_it_will_write_again(tmp_path: Path) -> None:
    whole = traced(tmp_path)
    before = (tmp_path / NAME).read_bytes()
    again = Trace(tmp_path, 16, 5)
    again.begin(15)
    assert [row["step"] for row in read(tmp_path)] == ["0", "10"]
    again.add(20, shares(2))
    assert (tmp_path / NAME).read_bytes() == before
    whole.begin(0)
    assert read(tmp_path) == []


@pytest.mark.parametrize("kept", [2, 40])
def test_a_row_cut_off_by_a_sudden_end_is_no_row(tmp_path: Path, kept: int) -> None:
    traced(tmp_path)
    lines = (tmp_path / NAME).read_text().splitlines(keepends=True)
    (tmp_path / NAME).write_text("".join([*lines[:-1], lines[-1][:kept]]))
    assert [row["step"] for row in read(tmp_path)] == ["0", "10"]
    again = Trace(tmp_path, 16, 5)
    again.begin(10)
    again.add(20, shares(2))
    assert (tmp_path / NAME).read_text() == "".join(lines)


def test_the_picture_has_two_panels_and_shows_the_lines(tmp_path: Path) -> None:
    traced(tmp_path)
    plot(tmp_path, 10)
    with Image.open(tmp_path / PICTURE) as picture:
        assert picture.width > 2 * picture.height
        assert len(picture.convert("RGB").getcolors(10**6) or []) > 50  # lines in many colours


def test_no_trace_no_rows(tmp_path: Path) -> None:
    assert read(tmp_path) == []
