"""Intensity rules of a manifest, applied in place to float32 blocks; rules of the whole volume read it once first.

Where a step has ``scope: filled`` the blocks come with NaN outside that mask: it is no matter of a voxel's value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hilum_inference.manifest import Clip, Intensity, Percentile, Window, ZScore

Values = NDArray[np.float32]
Step = Clip | Window | ZScore | Percentile


@dataclass(frozen=True)
class Linear:
    """value -> value * gain + shift, then clipped to [low, high]: what every rule comes down to."""

    gain: float = 1.0
    shift: float = 0.0
    low: float = -np.inf
    high: float = np.inf

    def apply(self, block: Values) -> None:
        """Change ``block`` in place."""
        if self.gain != 1.0:
            block *= np.float32(self.gain)
        if self.shift != 0.0:
            block += np.float32(self.shift)
        if self.low > -np.inf or self.high < np.inf:
            np.clip(block, np.float32(self.low), np.float32(self.high), out=block)


@dataclass(frozen=True)
class Normaliser:
    """The rules of one channel, with all figures known."""

    steps: tuple[Linear, ...]
    mask_threshold: float | None = None
    outside: float | None = None
    filled: bool = False

    def apply(self, block: Values) -> None:
        """Normalise a float32 block in place."""
        hidden = None
        if self.filled:
            hidden = np.isnan(block)
        elif self.mask_threshold is not None and self.outside is not None:
            hidden = block <= np.float32(self.mask_threshold)
        for step in self.steps:
            step.apply(block)
        if hidden is not None:
            block[hidden] = np.float32(self.outside or 0.0)


def fit(intensity: Intensity, steps: tuple[Step, ...], blocks: Callable[[], Iterable[Values]]) -> Normaliser:
    """The rules with their figures; ``blocks`` gives the whole channel, block by block, each time it is called."""
    fitted: list[Linear] = []
    scopes = [getattr(step, "scope", "") for step in steps]
    for step, scope in zip(steps, scopes, strict=True):
        threshold = {"mask": intensity.mask_threshold, "filled": -np.inf}.get(scope)  # NaN is above nothing
        fitted.append(_fit_step(step, fitted, threshold, blocks))
    threshold = intensity.mask_threshold if "mask" in scopes else None
    return Normaliser(tuple(fitted), threshold, intensity.outside, "filled" in scopes)


def _fit_step(
    step: Step, before: list[Linear], threshold: float | None, blocks: Callable[[], Iterable[Values]]
) -> Linear:
    if isinstance(step, Clip):
        return Linear(low=step.low, high=step.high)
    if isinstance(step, Window):
        return _between(step.low, step.high, step)
    if isinstance(step, ZScore) and step.scope == "fixed":
        return Linear(1 / step.sd, -step.mean / step.sd)
    if isinstance(step, ZScore):
        mean, sd = _moments(_chosen(before, threshold, blocks))
        return Linear(1 / max(sd, 1e-8), -mean / max(sd, 1e-8))
    low, high = percentiles(lambda: _chosen(before, threshold, blocks), (step.lower, step.upper))
    return _between(low, high, step)


def _between(low: float, high: float, out: Window | Percentile) -> Linear:
    gain = (out.out_high - out.out_low) / max(high - low, 1e-8)
    bounds = sorted((out.out_low, out.out_high)) if out.clip else [-np.inf, np.inf]
    return Linear(gain, out.out_low - low * gain, bounds[0], bounds[1])


def _chosen(
    before: list[Linear], threshold: float | None, blocks: Callable[[], Iterable[Values]]
) -> Iterable[NDArray[np.float32]]:
    for block in blocks():
        keep = block > np.float32(threshold) if threshold is not None else None
        values = block.copy()
        for step in before:
            step.apply(values)
        yield values.reshape(-1) if keep is None else values[keep]


def percentiles(parts: Callable[[], Iterable[Values]], wanted: tuple[float, float]) -> tuple[float, float]:
    """Two percentiles, equal to ``numpy.percentile`` (linear), in two passes and without holding the values.

    A float32's bits, turned so that they sort as the value does, are counted by their upper half first; then, for the
    few upper halves in which a wanted rank falls, by their lower half. (0, 1) where there are no values.
    """
    upper = np.zeros(1 << 16, np.int64)
    for part in parts():
        upper += np.bincount(_sortable(part) >> 16, minlength=1 << 16)
    count = int(upper.sum())
    if count == 0:
        return 0.0, 1.0
    places = [q / 100 * (count - 1) for q in wanted]
    ranks = {rank for place in places for rank in (int(np.floor(place)), int(np.ceil(place)))}
    ends = np.cumsum(upper)
    half = {rank: int(np.searchsorted(ends, rank, side="right")) for rank in ranks}
    lower = {top: np.zeros(1 << 16, np.int64) for top in half.values()}
    for part in parts():
        keys = _sortable(part)
        for top, counts in lower.items():
            counts += np.bincount(keys[keys >> 16 == top] & 0xFFFF, minlength=1 << 16)
    found = {}
    for rank, top in half.items():
        before = int(ends[top] - upper[top])
        low_bits = int(np.searchsorted(np.cumsum(lower[top]), rank - before, side="right"))
        found[rank] = _value(top << 16 | low_bits)
    first, second = (
        found[int(np.floor(p))] + (found[int(np.ceil(p))] - found[int(np.floor(p))]) * (p - np.floor(p)) for p in places
    )
    return float(first), float(second)


def _sortable(values: Values) -> NDArray[np.uint32]:
    """Unsigned integers that sort as the float32 values do."""
    bits = np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint32)
    return np.where(bits >> 31 == 1, ~bits, bits | np.uint32(1 << 31))


def _value(key: int) -> float:
    bits = key & 0x7FFFFFFF if key >> 31 else ~key & 0xFFFFFFFF
    return float(np.array([bits], np.uint32).view(np.float32)[0])


def _moments(parts: Iterable[NDArray[np.float32]]) -> tuple[float, float]:
    """Mean and population standard deviation in one pass, in double precision, merged block by block (Chan et al.)."""
    count, mean, squares = 0, 0.0, 0.0
    for part in parts:
        if part.size == 0:
            continue
        here = float(part.mean(dtype=np.float64))
        spread = float(((part - np.float64(here)) ** 2).sum(dtype=np.float64))
        total = count + part.size
        squares += spread + (here - mean) ** 2 * count * part.size / total
        mean += (here - mean) * part.size / total
        count = total
    return mean, float(np.sqrt(squares / count)) if count else 1.0
