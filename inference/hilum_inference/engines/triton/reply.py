"""What an answer must be; nothing else is ever blended into a mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hilum_inference.engines import Batch, Output
from hilum_inference.engines.triton.memory import Region
from hilum_inference.engines.triton.wire import Reply
from hilum_inference.errors import EngineError
from hilum_inference.manifest import Manifest

TYPES: Final[dict[str, type[np.floating[Any]]]] = {"FP32": np.float32, "FP16": np.float16}
"""What windows and answers travel in, as Triton names it."""


@dataclass(frozen=True)
class Expected:
    """What a model promises for one batch.

    Attributes:
        model: its name and version, as Triton writes them.
        tensor: the name of the output.
        shape: (N, K or F, D, H, W).
        type: a key of TYPES.
    """

    model: tuple[str, str]
    tensor: str
    shape: tuple[int, ...]
    type: str = "FP32"

    @classmethod
    def of(cls, manifest: Manifest, version: int, batch: Batch, output: Output) -> Expected:
        """For one batch of windows.

        Raises:
            ValueError: windows of another size or number of channels, or features of a model that has none.
        """
        if batch.ndim != 5 or batch.shape[1:] != (len(manifest.channels), *manifest.windows.size):
            wanted = (len(manifest.channels), *manifest.windows.size)
            raise ValueError(f"the network takes (N, {', '.join(map(str, wanted))}), got {batch.shape}")
        name, channels = manifest.tensors.logits, manifest.classes
        if output == "features":
            if manifest.head is None or manifest.tensors.features is None:
                raise ValueError(f"the model {manifest.name} gives no features")
            name, channels = manifest.tensors.features, manifest.head.features
        return cls((manifest.name, str(version)), name, (len(batch), channels, *batch.shape[2:]))

    @property
    def bytes(self) -> int:
        """Of the answer."""
        return np.dtype(TYPES[self.type]).itemsize * int(np.prod(self.shape))


def checked(reply: Reply, expected: Expected, region: Region | None) -> Batch:
    """The answer in a reply, or in shared memory, as float32; read-only, or good until the region is given back.

    Raises:
        EngineError: of another model, name, type, shape or size than promised, or not finite; ``bad_reply``.
    """
    message = reply.message
    if (message.model_name, message.model_version) != expected.model:
        raise _bad(f"it is of {message.model_name} {message.model_version}", expected)
    found = [(n, output) for n, output in enumerate(message.outputs) if output.name == expected.tensor]
    if len(found) != 1:
        raise _bad(f"it holds {[output.name for output in message.outputs]}", expected)
    place, output = found[0]
    if output.datatype != expected.type or tuple(output.shape) != expected.shape:
        raise _bad(f"it is {output.datatype} {tuple(output.shape)}", expected)
    content = reply.contents[place] if place < len(reply.contents) else memoryview(b"")
    values = _wired(content, expected) if region is None else _shared(content, region, expected)
    answer = values.astype(np.float32, copy=False)
    if not all(np.isfinite(channel).all() for window in answer for channel in window):
        raise _bad("it holds values that are not finite", expected)
    return answer


def _wired(content: memoryview, expected: Expected) -> NDArray[Any]:
    if len(content) != expected.bytes:
        raise _bad(f"it has {len(content)} bytes", expected)
    return np.frombuffer(content, TYPES[expected.type]).reshape(expected.shape)


def _shared(content: memoryview, region: Region, expected: Expected) -> NDArray[Any]:
    """The answer in a region; the server does not say that it wrote it there, but the poison is gone if it did."""
    if len(content):
        raise _bad("it came over the wire, not where it was asked to be", expected)
    return region.get(expected.shape, TYPES[expected.type])


def _bad(got: str, expected: Expected) -> EngineError:
    name, version = expected.model
    promised = f"{expected.tensor} {expected.type} {expected.shape} of {name} {version}"
    return EngineError(f"Triton's answer cannot be used: {got}; the model promises {promised}.", code="bad_reply")
