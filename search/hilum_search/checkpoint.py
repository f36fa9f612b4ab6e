"""Checkpoints of a training run; a resumed run equals an undisturbed one."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from hilum_search import snapshot
from hilum_search.snapshot import Snapshot

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
        cpu_seconds, gpu_seconds: spent on them.
        digest: SHA-256 of what is trained, so that another run is not taken up.
        best: the best mean Dice so far, and ``stale``: scorings since.
        ended: whether nothing is left to do.
        loss: its running mean; NaN before the first step, and in a checkpoint of an earlier form.
    """

    step: int = 0
    cpu_seconds: float = 0.0
    digest: str = ""
    best: float = -math.inf
    stale: int = 0
    ended: bool = False
    gpu_seconds: float = 0.0
    loss: float = math.nan


def save(folder: Path, state: State, done: Done) -> None:
    """Write the state in place of the last checkpoint."""
    notes = {"run": dataclasses.asdict(done), "scaler": state.scaler.state_dict()}
    snapshot.save(folder / NAME, _snapshot(state), done.digest, notes)


def restore(folder: Path, state: State, digest: str) -> Done:
    """Bring back the last checkpoint, in place; what was done, nothing where there is none.

    Raises:
        DataError: the checkpoint belongs to another recipe, seed or set of cases.
    """
    notes = snapshot.restore(folder / NAME, _snapshot(state), digest)
    if notes is None:
        return Done(digest=digest)
    if notes["scaler"]:
        state.scaler.load_state_dict(notes["scaler"])
    return Done(**notes["run"])


def _snapshot(state: State) -> Snapshot:
    modules = {"network": state.network, "average": state.average, "best": state.best}
    return Snapshot(modules, {"optimiser": state.optimiser})
