"""Checkpoints of a training run: one safetensors file, written atomically; a resumed run equals an undisturbed one."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hilum_search.errors import DataError

NAME = "checkpoint.safetensors"


@dataclass(frozen=True)
class State:
    """What a run carries from step to step; ``best`` holds the weights of the best scoring so far."""

    network: nn.Module
    average: nn.Module
    best: nn.Module
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler


@dataclass(frozen=True)
class Done:
    """Where a run stands.

    Attributes:
        step: steps done.
        cpu_seconds: spent on them.
        digest: SHA-256 of what is trained, so that another run is not taken up.
        best: the best mean Dice so far, and ``stale``: scorings since.
        ended: whether nothing is left to do.
    """

    step: int = 0
    cpu_seconds: float = 0.0
    digest: str = ""
    best: float = -math.inf
    stale: int = 0
    ended: bool = False


def save(folder: Path, state: State, done: Done) -> None:
    """Write the state in place of the last checkpoint."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for name, module in _modules(state):
        tensors |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    for index, moments in state.optimiser.state_dict()["state"].items():
        given = {key: torch.as_tensor(value) for key, value in moments.items() if value is not None}
        tensors |= {f"optimiser.{index}.{key}": value for key, value in given.items()}
    notes = {"run": json.dumps(dataclasses.asdict(done)), "scaler": json.dumps(state.scaler.state_dict())}
    partial = folder / f".{NAME}.partial"
    # A copy of each: the best weights may be the averaged ones, and a file holds no tensor under two names.
    save_file({key: value.detach().cpu().clone() for key, value in tensors.items()}, partial, notes)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(folder / NAME)


def look(folder: Path, digest: str) -> Done:
    """How far the run in a folder is; nothing done where there is none.

    Raises:
        DataError: the checkpoint belongs to another recipe, seed or set of cases.
    """
    from safetensors import safe_open

    path = folder / NAME
    if not path.is_file():
        return Done(digest=digest)
    with safe_open(path, "pt") as file:
        done = Done(**json.loads(file.metadata()["run"]))
    if done.digest != digest:
        raise DataError(f"The checkpoint in {folder.name} belongs to another recipe or other cases; use a new folder.")
    return done


def restore(folder: Path, state: State, digest: str) -> Done:
    """Bring back the last checkpoint, in place; what was done, nothing where there is none.

    Raises:
        DataError: the checkpoint belongs to another recipe, seed or set of cases.
    """
    from safetensors import safe_open

    done = look(folder, digest)
    if not done.step:
        return done
    with safe_open(folder / NAME, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        scaler = json.loads(file.metadata()["scaler"])
    for name, module in _modules(state):
        module.load_state_dict(_below(tensors, name))
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in _below(tensors, "optimiser").items():
        index, field = key.split(".", 1)
        moments.setdefault(int(index), {})[field] = value
    groups = state.optimiser.state_dict()["param_groups"]
    state.optimiser.load_state_dict({"state": moments, "param_groups": groups})
    if scaler:
        state.scaler.load_state_dict(scaler)
    return done


def _modules(state: State) -> tuple[tuple[str, nn.Module], ...]:
    return ("network", state.network), ("average", state.average), ("best", state.best)


def _below(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
