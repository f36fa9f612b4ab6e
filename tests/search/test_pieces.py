from __future__ import annotations

import pytest
import torch

from hilum_search.architecture import C2FNAS, NAMED, VNAS, Architecture
from hilum_search.errors import ArchitectureError
from hilum_search.network import build
from hilum_search.pieces import modules, pieces

WALK = C2FNAS(2, (0, 0, 1, 1, 0, 0), ("2d", "p3d", "3d", "2d", "3d", "p3d"))
SKIP = C2FNAS(2, (0, 1, 2, 1, 0), ("2d", "p3d", "3d", "2d", "3d"), full_resolution_skip=True)
NARROW = VNAS(("2d", "3d", "p3d", "2d") * 4, ("3d", "2d", "p3d", "2d", "3d"), 4, (8, 6, 4, 8), pooling=(1, 2))
BARE = VNAS(("2d",) * 16, ("2d",) * 5, 4, (8, 4, 4, 4), "bottleneck", ())


@pytest.mark.parametrize(("architecture", "side"), [(WALK, 8), (SKIP, 16), (NARROW, 32)])
def test_the_chain_of_pieces_is_the_network(architecture: Architecture, side: int) -> None:
    torch.manual_seed(0)
    network = build(architecture, 2, 3).eval()
    image = torch.randn(1, 2, side, side, side)
    outputs = [image]
    with torch.inference_mode():
        for piece, module in zip(pieces(architecture), modules(network), strict=True):
            outputs.append(module(*(outputs[n] for n in piece.reads)))
            size = side // piece.output.stride
            assert outputs[-1].shape == (1, piece.output.channels, size, size, size), piece.key
        assert torch.equal(network.head(outputs[-1]), network(image))


@pytest.mark.parametrize("architecture", [WALK, SKIP, NAMED["c2fnas-panc"], NARROW, BARE, NAMED["vnas-msd-pancreas"]])
def test_pieces_of_one_key_are_alike(architecture: Architecture) -> None:
    with torch.device("meta"):
        parts = modules(build(architecture, 1, 2))
    chain = pieces(architecture)
    seen: dict[str, object] = {}
    for piece, module in zip(chain, parts, strict=True):
        weights = [(name, tuple(value.shape)) for name, value in module.state_dict().items()]
        structure = (
            [repr(layer) for layer in module.modules() if not list(layer.children())],
            weights,
            [chain[n - 1].output for n in piece.reads if n],
            piece.output,
        )
        assert seen.setdefault(piece.key, structure) == structure, piece.key
    assert len(seen) == len({str(structure) for structure in seen.values()})  # and those of two keys are not


def test_other_families_have_no_pieces() -> None:
    with pytest.raises(ArchitectureError, match="for c2fnas and vnas only, not for vnet"):
        pieces(NAMED["vnet"])
    with torch.device("meta"), pytest.raises(ArchitectureError, match="for c2fnas and vnas only"):
        modules(build(NAMED["unet3d"], 1, 2))
