"""The two search spaces: which topologies there are, which operators each cell chooses from, and how many networks.

A network of a space is a Genotype: the index of a topology and the index of an operator for every cell. Sampling,
mutation and decoding (``sampling.py``) speak genotypes only and know no family.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

from hilum_search import space
from hilum_search.architecture import BASIC, C2FNAS, C2FNAS_PANC, VNAS, Architecture, Operator
from hilum_search.errors import ArchitectureError

_PUBLISHED = VNAS(("2d",) * 16, ("2d",) * 5)


@dataclass(frozen=True)
class Genotype:
    """Indices into a space: of the topology, and of each cell's operator."""

    topology: int
    choices: tuple[int, ...]


@dataclass(frozen=True)
class C2FNASSpace:
    """Walks of ``cells`` cells along ``shape``, each cell with one of ``operators`` (C2FNAS, CVPR 2020).

    Attributes:
        filters: channels of the stem.
        cells: in all; C2FNAS has 12.
        operators: BASIC in the paper, WIDE in the talk.
        shape: the U of the paper, or stacked hourglasses.
    """

    filters: int = C2FNAS_PANC.filters
    cells: int = 12
    operators: tuple[Operator, ...] = BASIC
    shape: tuple[int, ...] = space.SHAPE

    @functools.cached_property
    def walks(self) -> tuple[tuple[int, ...], ...]:
        """Every topology, a level for each cell."""
        return tuple(space.topologies(self.cells, self.shape))

    @property
    def topologies(self) -> int:
        """Number of topologies."""
        return len(self.walks)

    @property
    def size(self) -> int:
        """Number of networks."""
        return space.size(self.cells, len(self.operators), self.shape)

    def build(self, genotype: Genotype) -> C2FNAS:
        """The architecture of a genotype.

        Raises:
            ArchitectureError: an index outside the space.
        """
        chosen = _chosen(self, genotype)
        return C2FNAS(self.filters, self.walks[genotype.topology], chosen)

    def locate(self, architecture: Architecture) -> Genotype:
        """The genotype of an architecture of this space.

        Raises:
            ArchitectureError: an architecture outside it.
        """
        if not isinstance(architecture, C2FNAS):
            raise ArchitectureError("The architecture is not of this C2FNAS space: another family.")
        levels, operators = architecture.levels, architecture.operators
        if levels not in self.walks or not set(operators) <= set(self.operators):
            raise ArchitectureError("The architecture is not of this C2FNAS space: another walk or operator.")
        found = Genotype(self.walks.index(levels), tuple(map(self.operators.index, operators)))
        if self.build(found) != architecture:
            raise ArchitectureError("The architecture is not of this C2FNAS space: other filters or a skip.")
        return found


@dataclass(frozen=True)
class VNASSpace:
    """One topology, an operator for each of 16 encoder cells and 5 decoder blocks (V-NAS, 3DV 2019).

    Attributes:
        template: gives stem, widths, cell style and pooling; its operators do not matter.
    """

    template: VNAS = _PUBLISHED
    operators: tuple[Operator, ...] = BASIC

    @property
    def topologies(self) -> int:
        """Number of topologies."""
        return 1

    @property
    def cells(self) -> int:
        """Cells and blocks that choose."""
        return len(self.template.encoder) + len(self.template.decoder)

    @property
    def size(self) -> int:
        """Number of networks.

        >>> VNASSpace().size
        10460353203
        """
        return int(len(self.operators) ** self.cells)

    def build(self, genotype: Genotype) -> VNAS:
        """The architecture of a genotype, encoder first.

        Raises:
            ArchitectureError: an index outside the space.
        """
        chosen, cells = _chosen(self, genotype), len(self.template.encoder)
        return dataclasses.replace(self.template, encoder=chosen[:cells], decoder=chosen[cells:])

    def locate(self, architecture: Architecture) -> Genotype:
        """The genotype of an architecture of this space.

        Raises:
            ArchitectureError: an architecture outside it.
        """
        if not isinstance(architecture, VNAS):
            raise ArchitectureError("The architecture is not of this V-NAS space: another family.")
        found = Genotype(0, tuple(map(self.operators.index, (*architecture.encoder, *architecture.decoder))))
        if self.build(found) != architecture:
            raise ArchitectureError("The architecture is not of this V-NAS space: other widths, cells or pooling.")
        return found


Space = C2FNASSpace | VNASSpace


def _chosen(of: Space, genotype: Genotype) -> tuple[Operator, ...]:
    if not 0 <= genotype.topology < of.topologies:
        raise ArchitectureError(f"There is no topology {genotype.topology}; the space has {of.topologies}.")
    if len(genotype.choices) != of.cells:
        raise ArchitectureError(f"There are {len(genotype.choices)} choices; the space has {of.cells} cells.")
    if not all(0 <= choice < len(of.operators) for choice in genotype.choices):
        raise ArchitectureError(f"Choices must lie between 0 and {len(of.operators) - 1}.")
    return tuple(of.operators[choice] for choice in genotype.choices)
