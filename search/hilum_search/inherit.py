"""A new network of the C2FNAS space starts from the weights of one that is like it and was trained.

A cell's weights go to the cell that stands in the same place: in the same stretch of cells on one level (the first one
going down, the second one...) and at the same place within the stretch. An operator's weights go to the same operator
only. Whatever has no counterpart of the same shape stays fresh. No paper of the two says this; it is our choice.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import torch
from torch import Tensor

from hilum_search.architecture import C2FNAS, digest
from hilum_search.errors import ArchitectureError
from hilum_search.network import Network, build
from hilum_search.recipe import Recipe
from hilum_search.train import Own
from hilum_search.trained import WEIGHTS, Trained, read_trained, write_trained

CELLS = ["body", "cells"]
FOLDER = "inherited"


def inherit(network: Network, architecture: C2FNAS, parent: Network, parent_architecture: C2FNAS) -> float:
    """Copy every weight whose role and shape agree, in place; the share of the network's parameters that were.

    Args:
        network: fresh, of ``architecture``.
        architecture: of the network.
        parent: trained, of ``parent_architecture``; left as it is.
        parent_architecture: of the parent.
    """
    trained = _roles(parent, parent_architecture)
    copied = 0
    with torch.no_grad():
        for role, values in _roles(network, architecture).items():
            found = trained.get(role)
            if found is not None and found.shape == values.shape:
                values.copy_(found)
                copied += values.numel()
    return copied / sum(values.numel() for values in network.parameters())


def inherited_start(own: Own, folder: Path, recipe: Recipe) -> Own:
    """What a child brings along to start from a trained model, of its own architecture or of a similar one.

    Of a similar one, what fits is copied into a fresh network that is written below ``folder``, once.

    Args:
        own: what it brings else.
        folder: of the trained model.
        recipe: of the child.

    Raises:
        ArchitectureError: two networks that are not both of the C2FNAS space.
        DataError: no trained model in the folder.
    """
    parent = read_trained(folder)
    if parent.architecture == recipe.architecture:
        return dataclasses.replace(own, start=folder)
    start = folder / FOLDER / f"{digest(recipe.architecture)[:16]}-{recipe.training.seed}"
    if not (start / WEIGHTS).is_file():
        write_trained(start, _heir(parent, recipe))
    return dataclasses.replace(own, start=start)


def _heir(parent: Trained, recipe: Recipe) -> Trained:
    """A fresh network with the parent's weights where they fit; its record names the share."""
    one, other = recipe.architecture, parent.architecture
    if not (isinstance(one, C2FNAS) and isinstance(other, C2FNAS)):
        raise ArchitectureError("Weights are inherited between networks of the C2FNAS space only; start afresh.")
    _without_offsets(parent)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.training.seed)
        network = build(one, len(recipe.file.channels), recipe.classes)
    share = inherit(network, one, parent.network, other)
    return Trained(one, network, parent.manifest, {"inherited": share, "from": digest(other)})


def _without_offsets(parent: Trained) -> None:
    """Take back what was added to the head when the parent's run ended."""
    offsets = parent.training.get("recipe", {}).get("training", {}).get("logit_offsets")
    if offsets and parent.network.head.bias is not None:
        with torch.no_grad():
            parent.network.head.bias -= torch.tensor(offsets)


def _roles(network: Network, architecture: C2FNAS) -> dict[str, Tensor]:
    """Every parameter by what it is for; names outside the cells are roles already."""
    places = _places(architecture.levels)
    found: dict[str, Tensor] = {}
    for name, values in network.named_parameters():
        parts = name.split(".")
        if parts[:2] != CELLS:
            found[name] = values
            continue
        cell, rest = int(parts[2]), parts[3:]
        operator = architecture.operators[cell] if rest[0] == "branches" and rest[2] == "1" else ""
        found[" ".join(map(str, (*places[cell], operator, *rest)))] = values
    return found


def _places(levels: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Of each cell: the stretch of cells on one level that it stands in, that level, its place within the stretch."""
    stretches = enumerate(itertools.groupby(levels))
    return [(n, level, place) for n, (level, cells) in stretches for place, _ in enumerate(cells)]
