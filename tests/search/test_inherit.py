from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hilum_search.architecture import C2FNAS, VNAS, Architecture
from hilum_search.errors import ArchitectureError
from hilum_search.inherit import inherit, inherited_start
from hilum_search.network import Network, build
from hilum_search.recipe import Recipe
from hilum_search.start import start_from
from hilum_search.train import Own
from hilum_search.trained import Trained, read_trained, write_trained

PARENT = C2FNAS(2, (0, 0, 1, 2, 1, 0), ("3d", "p3d", "2d", "3d", "3d", "2d"))


def _network(architecture: Architecture, seed: int) -> Network:
    torch.manual_seed(seed)
    network = build(architecture, 1, 3)
    with torch.no_grad():
        for values in network.parameters():  # norms begin alike else
            values.add_(torch.randn_like(values), alpha=0.1)
    return network.eval()


def _copy(child: C2FNAS, parent: C2FNAS = PARENT) -> tuple[float, dict[str, bool]]:
    """The share, and of each parameter whether it changed."""
    network, trained = _network(child, 1), _network(parent, 2)
    before = {name: values.clone() for name, values in network.named_parameters()}
    kept = {name: values.clone() for name, values in trained.named_parameters()}
    share = inherit(network, child, trained, parent)
    assert all(torch.equal(kept[name], values) for name, values in trained.named_parameters())
    changed = {name: not torch.equal(before[name], values) for name, values in network.named_parameters()}
    assert share == pytest.approx(
        sum(values.numel() for name, values in network.named_parameters() if changed[name])
        / sum(values.numel() for values in network.parameters())
    )
    return share, changed


def _unchanged(changed: dict[str, bool]) -> Iterator[str]:
    return (name for name, did in changed.items() if not did)


def test_the_same_architecture_inherits_everything_and_answers_alike() -> None:
    network, parent, image = _network(PARENT, 1), _network(PARENT, 2), torch.rand(1, 1, 16, 16, 16)
    assert not torch.equal(network(image), parent(image))
    assert inherit(network, PARENT, parent, PARENT) == 1
    assert torch.equal(network(image), parent(image))


def test_another_operator_of_one_cell_stays_fresh_and_the_rest_is_inherited() -> None:
    child = dataclasses.replace(PARENT, operators=("3d", "p3d", "3d", "3d", "3d", "2d"))
    share, changed = _copy(child)
    assert set(_unchanged(changed)) == {f"body.cells.2.branches.0.1.{n}" for n in ("1.weight", "2.weight", "2.bias")}
    assert 0.5 < share < 1


def test_an_operator_of_the_same_shape_but_another_meaning_is_not_inherited() -> None:
    child = dataclasses.replace(PARENT, operators=("3d-dilated", *PARENT.operators[1:]))
    _, changed = _copy(child)
    assert not any(did for name, did in changed.items() if name.startswith("body.cells.0.branches.0.1."))
    assert changed["body.cells.0.post.1.weight"]


def test_a_longer_stretch_inherits_cell_by_cell_and_its_extra_cell_stays_fresh() -> None:
    child = C2FNAS(2, (0, 0, 1, 1, 2, 1, 0), ("3d", "p3d", "2d", "3d", "3d", "3d", "2d"))
    network, parent = _network(child, 1), _network(PARENT, 2)
    fresh = [values.clone() for values in network.body.cells[3].parameters()]  # type: ignore[index, union-attr]
    inherit(network, child, parent, PARENT)
    for mine, theirs in ((0, 0), (1, 1), (2, 2), (4, 3), (5, 4), (6, 5)):
        one, other = (net.body.cells[n].state_dict() for net, n in ((network, mine), (parent, theirs)))  # type: ignore[index, union-attr]
        assert all(torch.equal(one[name], other[name]) for name in one), mine
    now = list(network.body.cells[3].parameters())  # type: ignore[index, union-attr]
    assert all(torch.equal(a, b) for a, b in zip(fresh, now, strict=True))
    for part in ("stem", "down", "narrow", "last"):
        one, other = (getattr(net.body, part).state_dict() for net in (network, parent))
        assert all(torch.equal(one[name], other[name]) for name in one), part
    assert torch.equal(network.head.weight, parent.head.weight)


def test_the_way_down_does_not_inherit_from_the_way_up() -> None:
    parent = C2FNAS(2, (0, 1, 2, 1, 1, 0), ("3d",) * 6)
    child = C2FNAS(2, (0, 1, 1, 2, 1, 0), ("3d",) * 6)
    _, changed = _copy(child, parent)
    cells = {name.split(".")[2] for name in _unchanged(changed)}
    assert cells == {"2"}


def test_other_filters_inherit_nothing_but_the_last_bias() -> None:
    _, changed = _copy(dataclasses.replace(PARENT, filters=3))
    assert [name for name, did in changed.items() if did] == ["head.bias"]


def _folder(out: Path, recipe: Recipe, offsets: list[float]) -> Path:
    record = {"recipe": {"training": {"logit_offsets": offsets}}}
    write_trained(out, Trained(recipe.architecture, _network(recipe.architecture, 2), recipe.manifest(), record))
    return out


def test_a_child_of_another_architecture_starts_from_what_it_inherits(recipe: Recipe, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "parent", recipe, [0.5, 0.25, -1.0])
    child = recipe.with_architecture(C2FNAS(6, (0, 0, 1, 0), ("2d", "3d", "p3d", "3d"), True))
    own = inherited_start(Own(device=torch.device("cpu")), folder, child)
    assert own.device == torch.device("cpu")
    assert own.start is not None
    started, parent = _network(child.architecture, 3), read_trained(folder).network
    start_from(own.start, started, child)
    assert torch.equal(started.head.weight, parent.head.weight)
    assert started.head.bias is not None
    assert parent.head.bias is not None
    assert torch.allclose(started.head.bias, parent.head.bias - torch.tensor([0.5, 0.25, -1.0]))
    one, other = (net.body.cells[n].state_dict() for net, n in ((started, 2), (parent, 1)))  # type: ignore[index, union-attr]
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert 0.5 < read_trained(own.start).training["inherited"] < 1


def test_what_a_child_inherits_follows_from_its_seed_and_is_written_once(recipe: Recipe, tmp_path: Path) -> None:
    child = recipe.with_architecture(C2FNAS(6, (0, 0, 1, 0), ("2d", "3d", "p3d", "3d"), True))
    starts: list[Path] = []
    for name in ("one", "other"):
        torch.manual_seed(len(starts))
        own = inherited_start(Own(), _folder(tmp_path / name, recipe, []), child)
        assert own.start is not None
        starts.append(own.start / "weights.safetensors")
    assert starts[0].read_bytes() == starts[1].read_bytes()
    written = starts[0].stat().st_mtime_ns
    inherited_start(Own(), tmp_path / "one", child)
    assert starts[0].stat().st_mtime_ns == written
    other = inherited_start(Own(), tmp_path / "one", child.with_training(seed=9))
    assert other.start not in (None, starts[0].parent)


def test_a_child_of_the_same_architecture_starts_from_the_folder_itself(recipe: Recipe, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "parent", recipe, [])
    assert inherited_start(Own(), folder, recipe) == Own(start=folder)


def test_networks_of_other_spaces_do_not_inherit(recipe: Recipe, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "parent", recipe, [])
    other = dataclasses.replace(recipe, architecture=VNAS(("2d",) * 16, ("2d",) * 5, 4, (8, 8, 8, 8)))
    with pytest.raises(ArchitectureError, match="C2FNAS space only"):
        inherited_start(Own(), folder, other)
