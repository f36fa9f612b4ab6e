"""What is carried from step to step comes back bit by bit, and never into another run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from hilum_search import snapshot
from hilum_search.errors import DataError
from hilum_search.snapshot import Snapshot


def stepped(count: int, start: Path | None = None, kind: str = "adam") -> tuple[Snapshot, int]:
    """A layer after some steps, taken up where a file is given; the steps it began with."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    layer.register_buffer("seen", torch.zeros(()))
    optimiser = (
        torch.optim.Adam(layer.parameters()) if kind == "adam" else torch.optim.SGD(layer.parameters(), 0.1, 0.9)
    )
    state = Snapshot({"layer": layer}, {kind: optimiser})
    notes = snapshot.restore(start, state, "mine") if start else None
    begun = notes["step"] if notes else 0
    for step in range(begun, count):
        optimiser.zero_grad()
        layer(torch.full((1, 3), float(step))).square().sum().backward()
        optimiser.step()
    return state, begun


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_a_run_that_is_taken_up_ends_with_the_same_bits(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    half, _ = stepped(4, kind=kind)
    snapshot.save(path, half, "mine", {"step": 4})
    resumed, begun = stepped(9, path, kind)
    whole, _ = stepped(9, kind=kind)
    assert begun == 4
    for a, b in zip(resumed.modules["layer"].parameters(), whole.modules["layer"].parameters(), strict=True):
        assert torch.equal(a, b)


def test_nothing_there_is_nothing_done(tmp_path: Path) -> None:
    state, _ = stepped(0)
    assert snapshot.restore(tmp_path / "none.safetensors", state, "mine") is None


def test_another_runs_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    state, _ = stepped(1)
    snapshot.save(path, state, "mine", {"step": 1})
    with pytest.raises(DataError, match="belongs to another recipe"):
        snapshot.restore(path, state, "yours")
    assert snapshot.notes_of(path, "mine") == {"step": 1}
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_modules_may_share_a_tensor(tmp_path: Path) -> None:
    one = nn.Linear(2, 2)
    two = nn.Sequential(one)
    snapshot.save(tmp_path / "s", Snapshot({"one": one, "two": two}), "", {})
    fresh = nn.Linear(2, 2)
    snapshot.restore(tmp_path / "s", Snapshot({"one": fresh}), "")
    assert torch.equal(fresh.weight, one.weight)
