"""Modules and optimisers in one safetensors file, written atomically: what is read back goes on bit by bit."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hilum_search.errors import DataError


@dataclass(frozen=True)
class Snapshot:
    """What is carried from step to step, by name."""

    modules: Mapping[str, nn.Module]
    optimisers: Mapping[str, torch.optim.Optimizer] = field(default_factory=dict)


def save(path: Path, snapshot: Snapshot, digest: str, notes: Mapping[str, Any]) -> None:
    """Write the state in place of what the file held.

    Args:
        path: of the file.
        snapshot: the state.
        digest: SHA-256 of what decides the run.
        notes: anything JSON can hold, such as the steps done.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for name, module in snapshot.modules.items():
        tensors |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    for name, optimiser in snapshot.optimisers.items():
        for index, moments in optimiser.state_dict()["state"].items():
            given = {key: torch.as_tensor(value) for key, value in moments.items() if value is not None}
            tensors |= {f"{name}.{index}.{key}": value for key, value in given.items()}
    about = {"digest": digest, "notes": json.dumps(dict(notes))}
    partial = path.with_name(f".{path.name}.partial")
    # A copy of each: a file holds no tensor under two names, and modules may share theirs.
    save_file({key: value.detach().cpu().clone() for key, value in tensors.items()}, partial, about)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def notes_of(path: Path, digest: str) -> dict[str, Any] | None:
    """The notes of a file; None where there is no file.

    Raises:
        DataError: the file belongs to another run.
    """
    from safetensors import safe_open

    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        about = file.metadata()
    if about.get("digest") != digest:
        raise DataError(
            f"The checkpoint in {path.parent.name} belongs to another recipe or other cases; use a new folder."
        )
    notes: dict[str, Any] = json.loads(about["notes"])
    return notes


def restore(path: Path, snapshot: Snapshot, digest: str) -> dict[str, Any] | None:
    """Bring the state back, in place; the notes, None where there is no file.

    Raises:
        DataError: the file belongs to another run.
    """
    from safetensors import safe_open

    notes = notes_of(path, digest)
    if notes is None:
        return None
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    for name, module in snapshot.modules.items():
        module.load_state_dict(_below(tensors, name))
    for name, optimiser in snapshot.optimisers.items():
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in _below(tensors, name).items():
            index, moment = key.split(".", 1)
            moments.setdefault(int(index), {})[moment] = value
        optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
    return notes


def _below(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
