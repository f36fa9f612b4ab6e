"""Several processes that train one network: what ``torchrun`` says of them, and how they agree."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta

import torch
from torch import distributed, nn

PATIENCE = timedelta(days=1)
"""How long the others wait for the first, which alone scores and writes."""


@dataclass(frozen=True)
class Team:
    """This process among those of a run; one process alone is a team of one.

    Attributes:
        rank: from 0; the first alone scores, writes and reports.
        size: number of processes.
        device: where this process computes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network with gradients averaged over the team."""
        if self.size == 1:
            return network
        devices = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(network, devices)

    def agree(self, value: bool) -> bool:
        """What the first process says, told to all."""
        if self.size == 1:
            return value
        told = torch.tensor(int(value), device=self.device)
        distributed.broadcast(told, 0)
        return bool(told.item())

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            distributed.barrier()


@contextlib.contextmanager
def join(device: torch.device | None = None) -> Iterator[Team]:
    """The team that ``torchrun`` started this process in: NCCL where there are GPUs, gloo elsewhere.

    Args:
        device: instead of a GPU for each process, or the CPU where there is none.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device is None:
        device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if size == 1 or distributed.is_initialized():
        yield Team(rank(), size, device)
        return
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Team(rank(), size, device)
    finally:
        distributed.destroy_process_group()


def rank() -> int:
    """The number that ``torchrun`` gave this process; 0 where there is no other."""
    return int(os.environ.get("RANK", "0"))
