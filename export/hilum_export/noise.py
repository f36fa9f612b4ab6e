"""Windows that look like a network's input, for checks that have no patient at hand."""

from __future__ import annotations

import numpy as np

from hilum_export.runtimes import Windows

BATCH = 2
"""Windows where nobody asks for more."""


def noise(channels: int, window: tuple[int, int, int], batch: int = BATCH) -> Windows:
    """Smooth shapes and noise in the range of an intensity rule, (batch, channels, *window); always the same."""
    shape = (batch, channels, *window)
    chance = np.random.default_rng(0)
    waves = np.sin(np.indices(shape).sum(0) / 7.0)
    return np.asarray(0.5 + 0.3 * waves + 0.1 * chance.standard_normal(shape), dtype=np.float32)
