from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch import Tensor, nn

from hilum_search.architecture import BASIC, WIDE, Operator
from hilum_search.c2fnas.supernet import SuperNet
from hilum_search.convolution import quick_convolutions
from hilum_search.errors import ArchitectureError
from hilum_search.network import Network, build, count, parameters
from hilum_search.spaces import C2FNASSpace, Genotype

U = (0, 1, 0)
SPACE = C2FNASSpace(filters=2, cells=4, shape=U)
IMAGE = torch.rand(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(1))


def supernet(space: C2FNASSpace = SPACE, topology: int = 1) -> SuperNet:
    torch.manual_seed(3)
    return SuperNet(space, topology, 1, 3)


def plain(space: C2FNASSpace, topology: int, choices: tuple[int, ...]) -> Network:
    return build(space.build(Genotype(topology, choices)), 1, 3)


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


@pytest.mark.parametrize("operators", [BASIC, WIDE], ids=["basic", "wide"])
def test_a_path_answers_as_the_plain_network_with_its_weights(operators: tuple[Operator, ...]) -> None:
    space, chance = C2FNASSpace(filters=2, cells=5, operators=operators, shape=U), random.Random(2)
    whole = supernet(space, 4)
    for _ in range(2):
        choices = tuple(chance.randrange(len(operators)) for _ in range(5))
        path, fresh = whole.path(choices), plain(space, 4, choices)
        assert list(path.state_dict()) == list(fresh.state_dict())
        assert not torch.equal(path(IMAGE), fresh(IMAGE))
        fresh.load_state_dict(path.state_dict())
        assert torch.equal(path(IMAGE), fresh(IMAGE))


def test_every_path_is_there_and_is_one_of_its_own() -> None:
    whole = supernet()
    paths = [whole.path(choices) for choices in itertools.product(range(3), repeat=4)]
    assert len({frozenset(id(value) for value in path.parameters()) for path in paths}) == 81
    seen = {id(value) for path in paths for value in path.parameters()}
    assert seen == {id(value) for value in whole.parameters()}


def test_parameters_are_shared_and_named_as_in_a_path() -> None:
    whole, choices = supernet(), (2, 0, 1, 2)
    own = {id(value): name for name, value in whole.named_parameters()}
    for name, value in whole.path(choices).named_parameters():
        where = name.split(".")
        slot = 6  # body.cells.N.branches.B.1, then the operator's index
        if name.startswith("body.cells.") and where[3] == "branches" and where[5] == "1":
            where.insert(slot, str(choices[int(where[2])]))
        assert own[id(value)] == ".".join(where)


def test_the_super_net_counts_what_is_shared_once() -> None:
    counts = [count(SPACE.build(Genotype(1, (n,) * 4)), 1, 3) for n in range(3)]
    whole = supernet()
    operators = sum(
        value.numel() for name, value in whole.named_parameters() if ".branches." in name and name.split(".")[5] == "1"
    )
    shared = parameters(whole) - operators
    assert sum(counts) == operators + 3 * shared
    assert 0 < shared < min(counts)


def test_a_step_moves_the_path_and_nothing_else() -> None:
    whole, choices = supernet(), (0, 1, 2, 0)
    before = weights(whole)
    path = whole.path(choices)
    optimiser = torch.optim.SGD(whole.parameters(), 0.1, 0.9, weight_decay=0.1)
    path(IMAGE).square().mean().backward()
    optimiser.step()
    on_path = {id(value) for value in path.parameters()}
    for name, value in whole.named_parameters():
        assert torch.equal(value, before[name]) == (id(value) not in on_path), name


def test_making_a_path_draws_no_chance_and_allocates_nothing() -> None:
    whole = supernet()
    before = torch.get_rng_state()
    path = whole.path((0, 1, 2, 0))
    assert torch.equal(torch.get_rng_state(), before)
    assert {value.device.type for value in path.state_dict().values()} == {"cpu"}


def test_paths_made_while_convolutions_are_quick_are_quick() -> None:
    whole, choices = supernet(), (0, 1, 2, 0)
    wanted = whole.path(choices)(IMAGE)
    with quick_convolutions(whole):
        path = whole.path(choices)
        assert {type(module).__name__ for module in path.modules()} >= {"_Quick", "_Chain"}
        found = path(IMAGE)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert not {"_Quick"} & {type(module).__name__ for module in path.modules()}
    assert torch.equal(path(IMAGE), wanted)


def test_choices_outside_the_space_are_refused() -> None:
    whole = supernet()
    with pytest.raises(ArchitectureError, match="3 choices"):
        whole.path((0, 0, 0))
    with pytest.raises(ArchitectureError, match="between 0 and 2"):
        whole.path((0, 0, 0, 3))
    with pytest.raises(ArchitectureError, match="no topology"):
        SuperNet(SPACE, 9, 1, 3)
