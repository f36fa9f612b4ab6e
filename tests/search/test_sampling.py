from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hilum_networks import as_if_trained, largest_difference

from hilum_search.architecture import VNAS, WIDE, digest, parse_architecture, to_json
from hilum_search.errors import ArchitectureError
from hilum_search.network import build, count, parameters
from hilum_search.sampling import decode, mutate, neighbours, sample
from hilum_search.space import hourglasses
from hilum_search.spaces import C2FNASSpace, Genotype, Space, VNASSpace

NARROW = VNAS(("2d",) * 16, ("2d",) * 5, 4, (8, 8, 8, 8))
SPACES: dict[str, Space] = {
    "vnas": VNASSpace(NARROW),
    "c2fnas": C2FNASSpace(filters=2),
    "c2fnas-wide": C2FNASSpace(filters=2, operators=WIDE),
    "hourglasses": C2FNASSpace(filters=2, shape=hourglasses(2, 2)),
}
EXPORTED = ("vnas", "c2fnas", "c2fnas-wide")


@pytest.mark.parametrize("name", SPACES)
def test_every_sample_is_valid_and_comes_back_from_json(name: str) -> None:
    space, chance = SPACES[name], random.Random(1)
    found = [sample(space, chance) for _ in range(100)]
    assert len(set(found)) > 95
    for genotype in found:
        architecture = space.build(genotype)
        assert parse_architecture(to_json(architecture)) == architecture
        assert space.locate(architecture) == genotype


@pytest.mark.parametrize("name", SPACES)
def test_samples_build_and_are_counted_without_building(name: str) -> None:
    space, chance = SPACES[name], random.Random(2)
    for _ in range(3):
        architecture = space.build(sample(space, chance))
        assert count(architecture, 2, 3) == parameters(build(architecture, 2, 3))


@pytest.mark.parametrize("name", SPACES)
def test_a_mutation_changes_one_thing_and_stays_in_the_space(name: str) -> None:
    space, chance = SPACES[name], random.Random(3)
    genotype = sample(space, chance)
    for _ in range(200):
        changed = mutate(space, genotype, chance)
        space.build(changed)
        operators = sum(a != b for a, b in zip(genotype.choices, changed.choices, strict=True))
        assert operators + (genotype.topology != changed.topology) == 1
        genotype = changed


def test_neighbours_are_mutual() -> None:
    space = SPACES["c2fnas"]
    for topology in range(0, space.topologies, 20):
        assert neighbours(space, topology)
        assert all(topology in neighbours(space, near) for near in neighbours(space, topology))


def test_a_space_of_one_network_cannot_be_mutated() -> None:
    space = C2FNASSpace(cells=7, operators=("3d",))
    with pytest.raises(ArchitectureError, match="one network only"):
        mutate(space, Genotype(0, (0,) * 7), random.Random(0))


def test_decoding_takes_the_highest_score_of_each_cell() -> None:
    space = SPACES["vnas"]
    wanted = sample(space, random.Random(4))
    scores = np.random.default_rng(0).random((21, 3))
    scores[np.arange(21), list(wanted.choices)] += 1
    assert decode(space, scores) == wanted
    for wrong in (scores[:20], scores.T, np.where(scores > 1, np.nan, scores)):
        with pytest.raises(ArchitectureError, match="finite and of shape"):
            decode(space, wrong)


def _largest_difference(space: Space, seed: int, folder: Path) -> float:
    architecture = space.build(sample(space, random.Random(seed)))
    torch.manual_seed(seed)
    network = build(architecture, 1, 3)
    as_if_trained(network, torch.rand(2, 1, 64, 64, 64))
    path = folder / f"{digest(architecture)}.onnx"
    return largest_difference(network, torch.rand(2, 1, 32, 32, 32), path)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", EXPORTED)
def test_samples_export_and_answer_as_torch_does(name: str, seed: int, tmp_path: Path) -> None:
    assert _largest_difference(SPACES[name], seed, tmp_path) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4, 20))
@pytest.mark.parametrize("name", EXPORTED)
def test_more_samples_export_and_answer_as_torch_does(name: str, seed: int, tmp_path: Path) -> None:
    assert _largest_difference(SPACES[name], seed, tmp_path) < 1e-4
