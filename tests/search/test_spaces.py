from __future__ import annotations

import doctest

import pytest

from hilum_search import spaces
from hilum_search.architecture import BASIC, C2FNAS, C2FNAS_PANC, NAMED, VNAS, WIDE
from hilum_search.errors import ArchitectureError
from hilum_search.space import hourglasses
from hilum_search.spaces import C2FNASSpace, Genotype, VNASSpace


def test_sizes() -> None:
    assert VNASSpace().size == 3**21 == 10_460_353_203
    assert C2FNASSpace().size == 462 * 3**12
    assert C2FNASSpace(operators=WIDE).size == 462 * 6**12
    assert C2FNASSpace().topologies == 462
    stacked = C2FNASSpace(cells=14, shape=hourglasses(2, 2))
    assert stacked.size == stacked.topologies * 3**14


def test_published_networks_lie_in_their_spaces() -> None:
    published = [architecture for name, architecture in NAMED.items() if name != "c2fnas-small"]
    searched = [architecture for architecture in published if isinstance(architecture, C2FNAS | VNAS)]
    assert len(searched) == 6
    for architecture in searched:
        space = C2FNASSpace() if isinstance(architecture, C2FNAS) else VNASSpace()
        assert space.build(space.locate(architecture)) == architecture


@pytest.mark.parametrize(
    ("genotype", "reason"),
    [
        (Genotype(462, (0,) * 12), "no topology 462"),
        (Genotype(0, (0,) * 11), "11 choices"),
        (Genotype(0, (3,) * 12), "between 0 and 2"),
        (Genotype(-1, (0,) * 12), "no topology -1"),
    ],
)
def test_indices_outside_the_space_are_refused(genotype: Genotype, reason: str) -> None:
    with pytest.raises(ArchitectureError, match=reason):
        C2FNASSpace().build(genotype)


def test_an_architecture_of_another_space_is_not_located() -> None:
    with pytest.raises(ArchitectureError, match="another family"):
        C2FNASSpace().locate(NAMED["vnas-2d"])
    with pytest.raises(ArchitectureError, match="another family"):
        VNASSpace().locate(C2FNAS_PANC)
    with pytest.raises(ArchitectureError, match="other filters"):
        C2FNASSpace(filters=8).locate(C2FNAS_PANC)
    with pytest.raises(ArchitectureError, match="walk or operator"):
        C2FNASSpace(operators=BASIC[:1]).locate(C2FNAS(32, C2FNAS_PANC.levels, ("3d",) * 12))


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(spaces).failed == 0
