"""Transfer learning: a new run starts from the weights of a trained model, whatever labels that one knew."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path

import torch

from hilum_search.errors import DataError
from hilum_search.network import Network
from hilum_search.own_architecture import OwnNetwork
from hilum_search.recipe import Recipe
from hilum_search.trained import WEIGHTS, read_trained


def start_from(folder: Path, network: Network, recipe: Recipe) -> str:
    """Copy a trained model's weights into a network; the SHA-256 of their file.

    The body must be the same; of the head, the rows of background and of labels with the same name are copied, the
    others stay fresh.

    Raises:
        DataError: no trained model, or one with another body.
    """
    own = copy.deepcopy(network) if isinstance(recipe.architecture, OwnNetwork) else None
    before = read_trained(folder, own)
    offsets = before.training.get("recipe", {}).get("training", {}).get("logit_offsets")
    there, here = before.network.body.state_dict(), network.body.state_dict()
    if there.keys() != here.keys() or any(there[key].shape != here[key].shape for key in there):
        raise DataError(
            f"The weights in {folder.name} do not fit this run's network; start from a model of the same architecture "
            "and number of channels."
        )
    network.body.load_state_dict(there)
    old = {"": 0} | {label.name: row for row, label in enumerate(before.manifest.labels, 1)}
    new = {"": 0} | {label.name: label.id for label in recipe.labels}
    with torch.no_grad():
        for name in new.keys() & old.keys():
            network.head.weight[new[name]] = before.network.head.weight[old[name]]
            if network.head.bias is not None and before.network.head.bias is not None:
                offset = offsets[old[name]] if offsets else 0.0  # was added when that run ended, not learnt
                network.head.bias[new[name]] = before.network.head.bias[old[name]] - offset
    with (folder / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
