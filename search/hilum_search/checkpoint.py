"""Checkpoints of a training run: one safetensors file, written atomically; a resumed run equals an undisturbed one."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hilum_search.errors import DataError

NAME = "checkpoint.safetensors"


@dataclass(frozen=True)
class State:
    """What a run carries from step to step: weights, their average, the optimiser and the source of chance."""

    network: nn.Module
    average: nn.Module
    optimiser: torch.optim.Optimizer
    chance: torch.Generator


@dataclass(frozen=True)
class Done:
    """Steps done, CPU seconds spent, and the SHA-256 of what is trained, so that another run is not taken up."""

    step: int = 0
    cpu_seconds: float = 0.0
    digest: str = ""


def save(folder: Path, state: State, done: Done) -> None:
    """Write the state in place of the last checkpoint."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {"chance": state.chance.get_state()}
    for name, module in (("network", state.network), ("average", state.average)):
        tensors |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    for index, moments in state.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{key}": torch.as_tensor(value) for key, value in moments.items()}
    partial = folder / f".{NAME}.partial"
    save_file({k: v.contiguous() for k, v in tensors.items()}, partial, {"run": json.dumps(dataclasses.asdict(done))})
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(folder / NAME)


def restore(folder: Path, state: State, digest: str) -> Done:
    """Bring back the last checkpoint, in place; what was done, nothing where there is none.

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
            raise DataError(
                f"The checkpoint in {folder.name} belongs to another recipe or other cases; use a new folder."
            )
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    for name, module in (("network", state.network), ("average", state.average)):
        module.load_state_dict(_below(tensors, name))
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in _below(tensors, "optimiser").items():
        index, field = key.split(".", 1)
        moments.setdefault(int(index), {})[field] = value
    groups = state.optimiser.state_dict()["param_groups"]
    state.optimiser.load_state_dict({"state": moments, "param_groups": groups})
    state.chance.set_state(tensors["chance"])
    return done


def _below(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
