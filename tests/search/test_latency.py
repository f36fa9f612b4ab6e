from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import torch

from hilum_search.architecture import C2FNAS, NAMED, WIDE
from hilum_search.cost import cost
from hilum_search.errors import ArchitectureError, SearchError
from hilum_search.latency import Setting, Table, check, covering, measured_table, read_table, write_table
from hilum_search.on_engine import Shapes
from hilum_search.pieces import pieces
from hilum_search.progress import Stage
from hilum_search.sampling import sample
from hilum_search.spaces import C2FNASSpace, Genotype, Space, VNASSpace

SHAPES = Shapes(1, 2, (8, 8, 8))
SETTING = Setting(SHAPES, "a machine", "an engine 1")
TINY = C2FNAS(2, (0, 1, 0), ("2d", "3d", "3d"), full_resolution_skip=True)


def table(setting: Setting = SETTING) -> Table:
    """Every piece of TINY takes its place in the chain in milliseconds: 1 + 2 + ... + 6."""
    return Table(setting, {piece.key: n + 1.0 for n, piece in enumerate(pieces(TINY))})


def test_a_network_takes_as_long_as_its_pieces() -> None:
    assert table().ms(TINY) == 21.0
    deeper = C2FNAS(2, (0, 0, 1, 0), ("2d", "2d", "3d", "3d"))
    with pytest.raises(SearchError, match=r"lacks 'c2fnas/2 cell 0,0>0 2d'"):
        table().ms(deeper)
    with pytest.raises(ArchitectureError, match="not for vnet"):
        table().ms(NAMED["vnet"])


def test_a_prediction_holds_what_is_counted_too() -> None:
    predicted, counted = table().predict(TINY), cost(TINY, 1, 2, (8, 8, 8))
    assert (predicted.ms, predicted.params, predicted.macs) == (21.0, counted.parameters, counted.macs)
    assert 4 * counted.parameters < 2**20 * predicted.peak_mib < 4 * counted.parameters + counted.activation_bytes


@pytest.mark.parametrize(
    ("space", "topologies"),
    [(C2FNASSpace(cells=8), None), (C2FNASSpace(operators=WIDE), [17]), (VNASSpace(), None)],
)
def test_few_networks_cover_a_space(space: Space, topologies: list[int] | None) -> None:
    needed, chance = Table(SETTING).missing(covering(space, topologies)), random.Random(0)
    for _ in range(50):
        drawn = sample(space, chance)
        genotype = Genotype(topologies[0] if topologies else drawn.topology, drawn.choices)
        assert {piece.key for piece in pieces(space.build(genotype))} <= set(needed)
    assert len(needed) < 100


def test_a_table_comes_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    assert read_table(path, SETTING) == Table(SETTING)
    write_table(path, table())
    assert read_table(path, SETTING) == table()


@pytest.mark.parametrize(
    "other",
    [
        Setting(SHAPES, "another machine", "an engine 1"),
        Setting(SHAPES, "a machine", "an engine 2"),
        Setting(Shapes(1, 2, (16, 8, 8)), "a machine", "an engine 1"),
    ],
)
def test_figures_of_another_setting_are_not_used(tmp_path: Path, other: Setting) -> None:
    write_table(tmp_path / "latency.json", table())
    assert read_table(tmp_path / "latency.json", other) == Table(other)
    (tmp_path / "latency.json").write_text("half a fi")
    assert read_table(tmp_path / "latency.json", SETTING) == Table(SETTING)


def test_only_what_is_missing_is_measured_and_it_is_kept(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    path, known = tmp_path / "latency.json", dict(table().pieces_ms)
    absent = ["c2fnas/2 head with skip"]
    for key in absent:
        del known[key]
    write_table(path, Table(SETTING, known))
    stages: list[Stage] = []
    found = measured_table(path, SETTING, [TINY], stages.append)
    assert {key: found.pieces_ms[key] for key in known} == known
    assert set(found.pieces_ms) == set(table().pieces_ms)
    assert all(math.isfinite(found.pieces_ms[key]) for key in absent)
    assert [(stage.done, stage.total) for stage in stages] == [(0, 1), (1, 1)]
    assert json.loads(path.read_text())["pieces_ms"] == found.pieces_ms


def test_a_measured_piece_is_on_disk_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "latency.json"

    def stop(stage: Stage) -> None:
        if stage.done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured_table(path, SETTING, [TINY], stop)
    assert list(read_table(path, SETTING).pieces_ms) == ["c2fnas/2 stem"]


def test_a_whole_network_is_measured_beside_its_prediction() -> None:
    (result,) = check(table(), [TINY])
    assert result.predicted == table().predict(TINY)
    assert result.error == pytest.approx(21.0 / result.measured.ms - 1)


def test_a_setting_names_this_machine_and_engine() -> None:
    here = Setting(SHAPES)
    assert here.machine
    assert here.engine.startswith("openvino 20")
    assert (here.threads, here.precision) == (1, "f32")
