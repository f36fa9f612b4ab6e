"""A trained model as a folder: architecture.json, weights.safetensors, manifest.json, training.json. No pickle."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hilum_inference.manifest import Manifest, parse_manifest
from hilum_search.architecture import Architecture, parse_architecture, to_json
from hilum_search.errors import DataError
from hilum_search.network import Network, build

ARCHITECTURE, WEIGHTS, MANIFEST, TRAINING = "architecture.json", "weights.safetensors", "manifest.json", "training.json"


@dataclass(frozen=True)
class Trained:
    """A trained network with what belongs to it; ``training`` is the free-form record of how it was made."""

    architecture: Architecture
    network: Network
    manifest: Manifest
    training: dict[str, Any]


def write_trained(folder: Path, trained: Trained) -> None:
    """Write the four files, each atomically, the weights last: a folder with weights is complete."""
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / ARCHITECTURE, to_json(trained.architecture).encode())
    _write(folder / MANIFEST, trained.manifest.to_json(indent=2).encode())
    _write(folder / TRAINING, json.dumps(trained.training, indent=2).encode())
    tensors = {key: value.detach().contiguous() for key, value in trained.network.state_dict().items()}
    _write(folder / WEIGHTS, save(tensors))


def read_trained(folder: Path) -> Trained:
    """A trained model from its folder, in evaluation mode.

    Raises:
        DataError: a file is missing or the weights do not fit the architecture.
        ArchitectureError, ModelError: architecture or manifest refused.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    missing = [name for name in (ARCHITECTURE, WEIGHTS, MANIFEST, TRAINING) if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{folder.name} is no trained model: {missing[0]} is missing; give the folder of a finished run."
        )
    architecture = parse_architecture((folder / ARCHITECTURE).read_bytes())
    manifest = parse_manifest((folder / MANIFEST).read_bytes())
    network = build(architecture, len(manifest.channels), manifest.classes)
    try:
        network.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, RuntimeError) as error:
        raise DataError(f"The weights in {folder.name} do not fit the architecture: {error}") from error
    return Trained(architecture, network.eval(), manifest, json.loads((folder / TRAINING).read_text()))


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
