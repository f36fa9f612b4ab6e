"""From blended channels to labels: the head (where features were blended), then argmax or regions, once a voxel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilum_inference.errors import EngineError
from hilum_inference.manifest import Manifest

CHUNK = 2048
"""Voxels decided at a time, so that their logits stay in the cache."""

Labels = NDArray[np.unsignedinteger[Any]]  # uint8, or uint16 where an id is above 255


class Decider:
    """Decides the label of each voxel from the sums of a Blender.

    Sums are not divided by the weight: W (sum w f) + b (sum w) has the same argmax and the same sign as W f + b.
    """

    def __init__(self, manifest: Manifest, features: bool) -> None:
        self._regions = manifest.output == "sigmoid-regions"
        self._soft = manifest.way_back == "probabilities"
        ids = [label.id for label in manifest.labels]
        self.dtype: type[np.uint8] | type[np.uint16] = np.uint8 if max(ids) < 256 else np.uint16
        self._ids = np.array(ids if self._regions else [0, *ids], self.dtype)
        self._order = [(ids.index(i), i) for i in manifest.region_order]
        self._head: NDArray[np.float32] | None = None
        if features and manifest.head is not None:
            weight, bias = manifest.head.arrays()
            self._head = np.ascontiguousarray(np.vstack([weight.T, bias]), np.float32)  # (C + 1, K)

    def labels(self, sums: NDArray[np.float32], weights: NDArray[np.float32]) -> Labels:
        """(..., C) sums and (...) weights to (...) label ids.

        Raises:
            EngineError: a sum is not finite: the back-end answered nonsense.
        """
        flat, weight = sums.reshape(-1, sums.shape[-1]), weights.reshape(-1)
        if not np.isfinite(flat.sum()):  # one infinite or NaN summand makes the sum so
            raise EngineError("The network answered values that are not finite; nothing was saved.", code="not_finite")
        out = np.empty(len(flat), self.dtype)
        joined = np.empty((CHUNK, flat.shape[1] + 1), np.float32)
        for first in range(0, len(flat), CHUNK):
            part = slice(first, first + CHUNK)
            out[part] = self._decide(self._logits(flat[part], weight[part], joined))
        return out.reshape(weights.shape)

    def resampled(self, means: NDArray[np.float32]) -> None:
        """Turn (..., K) blended logits, in place, into what is resampled: themselves, or their softmax."""
        if self._soft:
            means -= means.max(axis=-1, keepdims=True)
            np.exp(means, out=means)
            means /= means.sum(axis=-1, keepdims=True)

    def _logits(
        self, sums: NDArray[np.float32], weights: NDArray[np.float32], joined: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """(n, K) logits, each times the voxel's weight; ``joined`` is scratch for one matrix product with the bias."""
        if self._head is None:
            return sums
        both = joined[: len(sums)]
        both[:, :-1] = sums
        both[:, -1] = weights
        return np.asarray(both @ self._head)

    def _decide(self, logits: NDArray[np.float32]) -> Labels:
        if not self._regions:
            return np.asarray(self._ids[logits.argmax(axis=1)])
        labels = np.zeros(len(logits), self.dtype)
        for channel, label in self._order:  # a later region overwrites an earlier one
            labels[logits[:, channel] > 0] = label
        return labels
