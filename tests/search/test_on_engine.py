from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from hilum_search.errors import SearchError
from hilum_search.network import Network
from hilum_search.on_engine import Shapes, made_up_window, milliseconds, open_network, use
from hilum_search.to_onnx import to_onnx

SHAPES = Shapes(2, 3, (8, 8, 16))


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return Network(nn.Conv3d(2, 4, 3, padding=1), nn.Conv3d(4, 3, 1)).eval()


@pytest.fixture(scope="module")
def path(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "network.onnx"
    to_onnx(network, 2, SHAPES.window, path)
    return path


def test_the_engine_runs_the_network_in_float32(network: Network, path: Path) -> None:
    engine, image = open_network(path, SHAPES), made_up_window(SHAPES)
    assert engine.precision == "f32"
    with torch.inference_mode():
        right = network(torch.from_numpy(image))
    assert torch.allclose(torch.from_numpy(engine.run(image)), right, rtol=1e-4, atol=1e-5)


def test_engines_are_timed_in_turn(path: Path) -> None:
    engine = open_network(path, SHAPES)
    times = milliseconds([engine, engine], made_up_window(SHAPES))
    assert len(times) == 2
    assert all(ms > 0 for ms in times)


def test_a_process_of_its_own_tells_time_and_memory(path: Path) -> None:
    used = use(path, SHAPES)
    assert used.ms > 0
    if sys.platform == "linux":
        assert used.opened_mib is not None and used.opened_mib > 1
        assert used.window_mib is not None and used.window_mib >= 0


def test_a_network_that_does_not_run_is_told_in_a_sentence(path: Path) -> None:
    with pytest.raises(SearchError, match="could not be measured"):
        use(path, Shapes(1, 3, (8, 8, 16)))
