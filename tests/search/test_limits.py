"""What operators cost by a table of pieces, and how a network stands in a Pareto set."""

from __future__ import annotations

import json

import pytest

from hilum_search.architecture import VNAS, parse_architecture
from hilum_search.latency import Setting, Table
from hilum_search.limits import Allowed, Limits, operator_ms, shapes_of
from hilum_search.pieces import pieces
from hilum_search.recipe import parse_recipe
from hilum_search.spaces import Genotype, VNASSpace

SPACE = VNASSpace(VNAS(("2d",) * 16, ("2d",) * 5, 4, (4, 4, 8, 8), pooling=(1, 2)))
MS = {"2d": 1.0, "3d": 5.0, "p3d": 2.0}


def table(recipe_text: str) -> Table:
    """Each operator's milliseconds by its name, one for whatever all networks share; noise made one negative."""
    found = {}
    for operator in range(3):
        for piece in pieces(SPACE.build(Genotype(0, (operator,) * 21))):
            words = piece.key.split()
            found[piece.key] = next((MS[word] for word in words if word in MS), 0.1)
    found["vnas plain 2d 4/4"] = -0.3
    return Table(Setting(shapes_of(parse_recipe(recipe_text))), found)


def test_each_cell_has_the_milliseconds_of_its_operators_encoder_first(recipe_text: str) -> None:
    rows = operator_ms(table(recipe_text), SPACE)
    assert len(rows) == 21
    assert rows[0] == (0.0, 5.0, 2.0)
    assert set(rows[7:]) == {(1.0, 5.0, 2.0)}


def test_costs_follow_the_cell_and_not_the_name_alone(recipe_text: str) -> None:
    known = table(recipe_text)
    rows = operator_ms(known.with_piece("vnas block 3d 8/16", 99.0), SPACE)
    assert [n for n, row in enumerate(rows) if row[1] == 99.0] == [16]


def test_a_candidate_is_counted_and_timed(recipe_text: str) -> None:
    text = recipe_text.replace("size = [16, 16, 8]", "size = [32, 32, 32]")
    recipe = parse_recipe(text)
    network = SPACE.build(Genotype(0, (1,) * 21))
    plain = Allowed(recipe, Limits()).candidate("one", network, 0.5)
    assert (plain.ms, plain.peak_mib) == (None, None)
    assert parse_architecture(json.dumps(plain.architecture)) == network
    timed = Allowed(recipe, Limits(), table(text)).candidate("one", network, 0.5)
    shared = len(pieces(network)) - 21
    assert timed.ms == pytest.approx(21 * 5.0 + shared * 0.1)
    assert timed.params == plain.params > 0 and timed.macs == plain.macs > 0
