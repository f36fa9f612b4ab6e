"""How far two ways of judging the same networks agree on their order: Kendall's tau-b with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hilum_search.errors import SearchError

FEWEST: Final = 3
RESAMPLES: Final = 2000
LEVEL: Final = 0.95


@dataclass(frozen=True)
class Agreement:
    """Of two orders.

    Attributes:
        tau: Kendall's tau-b, -1 to 1; ties count as neither agreement nor contradiction.
        low, high: the 95 % interval, by the percentiles of a bootstrap over the networks.
        count: of networks.
    """

    tau: float
    low: float
    high: float
    count: int


def kendall(one: Sequence[float], other: Sequence[float], seed: int = 0) -> Agreement:
    """Agreement of two rows of scores, larger is better in both.

    A resample that holds one score only, in either row, has no tau and is left out.

    Args:
        one: a finite score for each network, of one way of judging.
        other: of the other way, in the same order.
        seed: of the bootstrap.

    Raises:
        SearchError: fewer than three networks, rows of different lengths, scores that are not finite or all equal.
    """
    scores = _checked(one, other)
    signs = np.sign(scores[:, :, None] - scores[:, None, :]).astype(np.int64)
    count, chance = len(one), np.random.default_rng(seed)
    drawn = (chance.integers(count, size=count) for _ in range(RESAMPLES))
    taus = [_tau(signs[:, these[:, None], these]) for these in drawn]
    low, high = np.nanquantile(taus, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Agreement(_tau(signs), float(low), float(high), count)


def _checked(one: Sequence[float], other: Sequence[float]) -> NDArray[np.float64]:
    """(2, n) scores."""
    if len(one) != len(other):
        raise SearchError(f"There are {len(one)} scores of one kind and {len(other)} of the other; give one of each.")
    if len(one) < FEWEST:
        raise SearchError(f"{len(one)} networks have no rank correlation; score at least {FEWEST}.")
    scores = np.asarray([one, other], dtype=np.float64)
    if not np.isfinite(scores).all():
        raise SearchError("A score is not finite; leave that network out of the rank correlation.")
    if (np.ptp(scores, axis=1) == 0).any():
        raise SearchError("All scores of one kind are equal, so they rank nothing; use another score.")
    return scores


def _tau(signs: NDArray[np.int64]) -> float:
    """Of the two rows' (2, n, n) signs of all differences; NaN where one row is all equal."""
    one, other = signs
    pairs = np.sqrt(float(np.abs(one).sum()) * float(np.abs(other).sum()))
    return float((one * other).sum() / pairs) if pairs else math.nan
