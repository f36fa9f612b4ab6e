"""torch as a recipe wants it, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hilum_search.recipe import Training


@contextmanager
def settled(training: Training) -> Iterator[None]:
    """While open: the recipe's number of threads, by which sums are ordered, and its determinism."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(training.threads)
    torch.use_deterministic_algorithms(training.deterministic)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
