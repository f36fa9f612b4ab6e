"""All operators of every cell in one set of weights; a choice for each cell is a path, and a path is a plain network.

Source: C2FNAS (Yu et al., CVPR 2020), the fine stage; the single path is that of Guo et al. (SPOS, ECCV 2020).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

from torch import nn

from hilum_search.network import Network, build
from hilum_search.ops import OPERATORS
from hilum_search.space import wiring
from hilum_search.spaces import C2FNASSpace, Genotype


class SuperNet(nn.Module):
    """Every path of one topology; what is no operator is shared by all.

    A parameter's name is that in a path's network with the operator's index put in: ``body.cells.0.branches.0.1`` is
    the slot of an operator, and the third operator lies in it under ``2``.

    Args:
        space: whose operators and walk.
        topology: index of the walk in it.
        in_channels, classes: of the network, background among the classes.

    Raises:
        ArchitectureError: a topology that the space lacks.
    """

    def __init__(self, space: C2FNASSpace, topology: int, in_channels: int, classes: int) -> None:
        super().__init__()
        self.space, self.topology = space, topology
        first = space.build(Genotype(topology, (0,) * space.cells))
        network = build(first, in_channels, classes)
        self._slots = _slots(first.levels)
        for slot, cell in self._slots.items():
            channels = first.channels(first.levels[cell])
            network.set_submodule(slot, nn.ModuleList(OPERATORS[name](channels) for name in space.operators))
        self.body, self.head = network.body, network.head
        self._shared = tuple(_without(network, self._slots))

    def path(self, choices: Sequence[int]) -> Network:
        """The plain network of a path: its parameters are the super-net's own, its names those of ``network.build``.

        Args:
            choices: index of each cell's operator.

        Raises:
            ArchitectureError: too few or too many choices, or an operator that the space lacks.
        """
        self.space.build(Genotype(self.topology, tuple(choices)))
        taken = {name: name for name in self._shared}
        taken |= {slot: f"{slot}.{choices[cell]}" for slot, cell in self._slots.items()}
        # What deepcopy finds here it takes as it is: it copies the modules around and no parameter.
        there = {id(self.get_submodule(name)): self.get_submodule(own) for name, own in taken.items()}
        return copy.deepcopy(Network(self.body, self.head), there)


def _slots(levels: tuple[int, ...]) -> dict[str, int]:
    """Where each operator stands in a network, by name, and in which cell."""
    return {
        f"body.cells.{cell}.branches.{branch}.1": cell
        for cell, inputs in enumerate(wiring(levels))
        for branch in range(len(inputs))
    }


def _without(module: nn.Module, slots: dict[str, int], above: str = "") -> Iterator[str]:
    """Names of the largest modules in which no slot lies."""
    for name, child in module.named_children():
        here = f"{above}{name}"
        if any(slot.startswith(f"{here}.") for slot in slots):
            yield from _without(child, slots, f"{here}.")
        elif here not in slots:
            yield here
