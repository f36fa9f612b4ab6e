"""A trained model as a folder: architecture.json, weights.safetensors, manifest.json, training.json. No pickle.

A folder with ``ensemble.json`` holds several of them, the folds of a cross-validation, and is read as one model.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hilum_inference.manifest import Manifest, parse_manifest
from hilum_search.architecture import Architecture, parse_architecture, to_json
from hilum_search.errors import DataError
from hilum_search.network import Network, build

ARCHITECTURE, WEIGHTS, MANIFEST, TRAINING = "architecture.json", "weights.safetensors", "manifest.json", "training.json"
ENSEMBLE, ENSEMBLE_FORMAT = "ensemble.json", "hilum.ensemble/1"


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


def write_ensemble(folder: Path, names: Sequence[str]) -> None:
    """Say that the trained models in sub-folders are one ensemble."""
    _write(folder / ENSEMBLE, json.dumps({"format": ENSEMBLE_FORMAT, "folds": list(names)}, indent=2).encode())


def read_trained(folder: Path, network: Network | None = None) -> Trained:
    """A trained model from its folder, in evaluation mode.

    Args:
        folder: of a finished run, or of an ensemble of runs.
        network: to load the weights into, where the architecture is the caller's own.

    Raises:
        DataError: a file is missing or the weights do not fit the architecture.
        ArchitectureError, ModelError: architecture or manifest refused.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if (folder / ENSEMBLE).is_file():
        return _read_ensemble(folder, network)
    missing = [name for name in (ARCHITECTURE, WEIGHTS, MANIFEST, TRAINING) if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{folder.name} is no trained model: {missing[0]} is missing; give the folder of a finished run."
        )
    architecture = parse_architecture((folder / ARCHITECTURE).read_bytes())
    manifest = parse_manifest((folder / MANIFEST).read_bytes())
    built = network or build(architecture, len(manifest.channels), manifest.classes)
    try:
        weights = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise DataError(f"{WEIGHTS} in {folder.name} is damaged: {error}") from error
    try:
        built.load_state_dict(weights)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
        raise DataError(
            f"The weights in {folder.name} do not fit its {ARCHITECTURE} and {MANIFEST}: {lines[0]}{more}"
        ) from error
    return Trained(architecture, built.eval(), manifest, read_training(folder / TRAINING))


def read_training(path: Path) -> dict[str, Any]:
    """The record of a training.

    Raises:
        DataError: the file is damaged.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path.name} in {path.parent.name} is damaged: it is not valid JSON.") from error
    if not isinstance(record, dict):
        raise DataError(f"{path.name} in {path.parent.name} is damaged: it must hold an object.")
    return record


def _read_ensemble(folder: Path, network: Network | None) -> Trained:
    from hilum_search.ensemble import ensemble

    try:
        names = json.loads((folder / ENSEMBLE).read_text())["folds"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder.name}/{ENSEMBLE} names no folds; train them again with --folds.") from error
    folds = [read_trained(folder / Path(name).name, copy.deepcopy(network)) for name in names]
    first = folds[0]
    if any(fold.manifest.labels != first.manifest.labels for fold in folds):
        raise DataError(f"The folds in {folder.name} have different labels; they are no ensemble.")
    manifest = first.manifest.model_copy(update={"folds": len(folds)})
    training = first.training | _shared_record(folds)
    return Trained(first.architecture, ensemble([fold.network for fold in folds]), manifest, training)


def _shared_record(folds: Sequence[Trained]) -> dict[str, Any]:
    """The record of an ensemble: every case scored by the fold that had not seen it, Dice the mean of the folds'."""
    records = [fold.training for fold in folds]
    per_case = {name: scores for record in records for name, scores in record.get("dice_per_case", {}).items()}
    dice: dict[str, float | None] = {}
    for label in records[0]["dice"]:
        found = [record["dice"][label] for record in records if record["dice"].get(label) is not None]
        dice[label] = round(sum(found) / len(found), 5) if found else None
    seconds = sum(record.get("cpu_seconds", 0.0) for record in records)
    shared = {"cases": _shared_cases(folds), "dice": dice, "dice_per_case": per_case, "cpu_seconds": round(seconds, 1)}
    return shared | {"folds": records}


def _shared_cases(folds: Sequence[Trained]) -> list[dict[str, Any]]:
    """Every case once: kept for the end where it was so in every fold, else trained on by some fold."""
    found: dict[str, dict[str, Any]] = {}
    for fold in folds:
        for case in fold.training["cases"]:
            known = found.setdefault(json.dumps([case["name"], case["planes"]]), dict(case))
            if "test" not in (known["part"], case["part"]) or known["part"] != case["part"]:
                known["part"] = "train"
    return list(found.values())


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
