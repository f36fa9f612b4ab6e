"""The engine that lets a Triton run the network, and outlives its restarts.

A window is tried again only where the failure says nothing about it: no server, no answer in time, a server that was
started anew. A refused one is not. What comes back is checked before it is used. After every failure, and each half
second while windows are computed, the engine looks whether the server still serves the very same model, so that no mask
is made of two.
"""

from __future__ import annotations

import hashlib
import logging
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hilum_inference.blend import weigh
from hilum_inference.engines import Batch, Output, Weighted, check_fits_half
from hilum_inference.engines.triton.breaker import Breaker, Patience
from hilum_inference.engines.triton.channel import CallError, Channel, failure_of, parameter_of, types_of
from hilum_inference.engines.triton.memory import Region, Regions
from hilum_inference.engines.triton.reply import TYPES, Expected, checked
from hilum_inference.errors import CancelledError, EngineError, HilumError, ModelError
from hilum_inference.layout import VARIANT_PARAMETER
from hilum_inference.manifest import PARAMETER, parse_manifest
from hilum_inference.repository import digest_of
from hilum_inference.windows import weight_map

if TYPE_CHECKING:
    from hilum_inference.repository import Model

INTERACTIVE, BATCH = 1, 2
"""Priorities in Triton's queue; a model without levels ignores them."""
CHANGED = "model_changed"
BACK_SECONDS = 1.0
LOOK_SECONDS = 0.5
"""Between two looks at what the server serves: one takes 2 ms, and no server changes its model and back so fast."""
TICK = 0.05
"""Seconds between two looks at whether a window is still wanted."""

_NAMES = {np.dtype(kind): name for name, kind in TYPES.items()}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class How:
    """How windows are sent.

    Attributes:
        timeout: seconds without any answer after which the server is taken to hang.
        patience: seconds for which a window is tried again, from its first failure.
        in_flight: batches of one job that are under way at a time.
        shared_memory: whether to try it; the wire is taken where it cannot be had.
    """

    timeout: float = 120.0
    patience: float = 30.0
    in_flight: int = 4
    shared_memory: bool = True


@dataclass(frozen=True)
class Order:
    """Whose windows: how urgent, whether they are still wanted, and what the server must serve (None: whatever)."""

    priority: int = BATCH
    cancelled: Callable[[], bool] | None = None
    identity: str | None = None

    def check(self) -> None:
        """Stop where they are not wanted any more."""
        if self.cancelled is not None and self.cancelled():
            raise CancelledError("The segmentation was cancelled.")


ANYBODY = Order()


class TritonEngine:
    """One model and version of a running Triton.

    Args:
        model: what the server serves under ``model.manifest.name`` and ``model.version``.
        address: ``host:port`` of the gRPC endpoint.
        how: windows are sent.

    Attributes:
        precision: the server's variant, where its configuration names one.

    Raises:
        EngineError: the server does not answer, or does not serve that model.
        ModelError: it serves another model under that name and version.
    """

    def __init__(self, model: Model, address: str, how: How | None = None) -> None:
        self.precision = "server"
        self._model = model
        self._how = how or How()
        self.in_flight = self._how.in_flight
        self._weights = weight_map(model.manifest.windows.size, model.manifest.windows.weights)
        self._lock = threading.Lock()
        self._looked = self._lost = -math.inf
        self._identity = ""
        self._types: dict[str, str] = {}
        self._answered = 0.0
        self._breaker = Breaker()
        self._channel = Channel(address)
        self._regions = Regions(self._channel, self._how.shared_memory)
        self._release = weakref.finalize(self, _release, self._regions, self._channel)
        try:
            if not self.ready():
                raise EngineError(
                    f"Triton at {address} does not serve {model.manifest.name} version {model.version}.",
                    code="triton_not_ready",
                )
            self._recognise()
        except CallError as failure:
            self.close()
            raise failure.public() from failure
        except HilumError:
            self.close()
            raise

    def run(self, batch: Batch, output: Output = "logits") -> Batch:
        """(N, C, D, H, W) float32 windows to (N, K or F, D, H, W); the reply's shape, type and values are checked."""
        return self.run_for(ANYBODY, batch, output)

    def run_weighted(self, batch: Batch, output: Output = "logits", out: Weighted | None = None) -> Weighted:
        """(N, C, D, H, W) windows to (N, D, H, W, K or F), weighted here."""
        return self.run_weighted_for(ANYBODY, batch, output, out)

    def run_for(self, order: Order, batch: Batch, output: Output) -> Batch:
        """``run``, for somebody."""
        with self._answer(order, batch, output) as answer:
            return np.array(answer)  # what came is read-only or somebody else's next, and the caller may write

    def run_weighted_for(self, order: Order, batch: Batch, output: Output, out: Weighted | None) -> Weighted:
        """``run_weighted``, for somebody."""
        with self._answer(order, batch, output) as answer:
            return weigh(answer, self._weights, out)

    def for_job(self, urgent: bool, cancelled: Callable[[], bool]) -> JobEngine:
        """This engine for one job: its windows carry its priority, and are called back when it is cancelled.

        Raises:
            EngineError: the server does not say what it serves now.
            ModelError: it is another model.
        """
        self.look()
        return JobEngine(self, Order(INTERACTIVE if urgent else BATCH, cancelled, self._identity))

    def ready(self) -> bool:
        """Whether the server serves the model now."""
        return self._channel.ready(self._model.manifest.name, self._model.version)

    def look(self, order: Order = ANYBODY) -> None:
        """``_recognise``, however short ago that was.

        Raises:
            EngineError: the server does not say what it serves now.
            ModelError: it is another model.
        """
        try:
            self._recognise(order, anew=True)
        except CallError as failure:
            raise failure.public() from failure

    def _back(self) -> bool:
        """Whether a server that was away serves the model again; the connection to it may still be on its way."""
        return self._channel.ready(self._model.manifest.name, self._model.version, BACK_SECONDS)

    @property
    def shares_memory(self) -> bool:
        """Whether windows travel through shared memory."""
        return self._regions.used

    def close(self) -> None:
        """Let the server forget the shared memory, and close the channel."""
        self._release()

    @contextmanager
    def _answer(self, order: Order, batch: Batch, output: Output) -> Iterator[Batch]:
        """The answer to one batch, checked; good until the end of the block."""
        batch = np.ascontiguousarray(batch, np.float32)
        expected = Expected.of(self._model.manifest, self._model.version, batch, output)
        answer, region = self._persist(order, batch, expected)
        try:
            yield answer
        finally:
            self._regions.give_back(region)

    def _persist(self, order: Order, batch: Batch, expected: Expected) -> tuple[Batch, Region | None]:
        """Ask until there is an answer, or no patience left."""
        patience = Patience(self._how.patience)
        while True:
            order.check()
            if not self._breaker.closed(self._back):
                raise CallError("gone", "asked too often in vain").public()
            try:
                answered = self._attempt(order, batch, expected)
            except CallError as failure:
                log.warning("Triton at %s: %s", self._channel.address, failure)
                self._endure(failure, patience, order)
            else:
                self._breaker.succeeded()
                return answered

    def _endure(self, failure: CallError, patience: Patience, order: Order) -> None:
        """Wait until it is worth to try again.

        Raises:
            EngineError: it is not.
        """
        if not failure.passes:
            raise failure.public() from failure
        self._lost = time.monotonic()  # it may be another server by now
        if failure.kind == "region":
            self._regions.renew()
        while patience.lasts():
            order.check()
            patience.rest()
            if failure.kind == "region" or self.ready():
                return
        self._breaker.gave_up()
        raise failure.public() from failure

    def _attempt(self, order: Order, batch: Batch, expected: Expected) -> tuple[Batch, Region | None]:
        self._recognise(order)
        windows, expected = self._typed(batch, expected)
        region = self._regions.take(windows.nbytes, expected.bytes)
        try:
            reply = self._wait(self._channel.infer(self._request(order, windows, expected, region)), order)
            self._recognise(order)
            return checked(reply, expected, region), region
        except BaseException:
            self._regions.drop(region)
            raise

    def _typed(self, batch: Batch, expected: Expected) -> tuple[NDArray[Any], Expected]:
        """Windows and the answer's promise in the types of the server's configuration.

        Raises:
            EngineError: it wants others than FP32 and FP16, or a window does not fit into FP16.
        """
        types = self._types
        image = types.get(self._model.manifest.tensors.image, "FP32")
        expected = replace(expected, type=types.get(expected.tensor, "FP32"))
        for kind in (image, expected.type):
            if kind not in TYPES:
                raise EngineError(f"Triton serves {expected.model[0]} in {kind}; Hilum sends FP32 and FP16.")
        if image == "FP16":
            check_fits_half(batch)
        return batch.astype(TYPES[image], copy=False), expected

    def _request(self, order: Order, batch: NDArray[Any], expected: Expected, region: Region | None) -> Any:
        name, version = expected.model
        request = self._channel.request(model_name=name, model_version=version)
        request.parameters["priority"].uint64_param = order.priority
        waiting = self._how.timeout * (self.in_flight + 1)  # seconds that it may stand in the queue, behind our own
        request.parameters["timeout"].int64_param = int(waiting * 1e6)
        names, kind = self._model.manifest.tensors, _NAMES[batch.dtype]
        image = request.inputs.add(name=names.image, datatype=kind, shape=batch.shape)
        output = request.outputs.add(name=expected.tensor)
        if region is None:
            request.raw_input_contents.append(batch.tobytes())
            return request
        region.put(batch)
        for tensor, size, offset in ((image, batch.nbytes, 0), (output, expected.bytes, region.offset)):
            tensor.parameters["shared_memory_region"].string_param = region.name
            tensor.parameters["shared_memory_byte_size"].int64_param = size
            tensor.parameters["shared_memory_offset"].int64_param = offset
        return request

    def _wait(self, call: Any, order: Order) -> Any:
        """The reply, unless it is not wanted any more or the server answers nobody."""
        import grpc

        started = time.monotonic()
        try:
            while True:
                try:
                    reply = call.result(timeout=TICK)
                except grpc.FutureTimeoutError:
                    order.check()
                    if time.monotonic() - max(started, self._answered) > self._how.timeout:
                        raise CallError("late", f"no answer for {self._how.timeout:g} s") from None
                else:
                    self._answered = time.monotonic()
                    return reply
        except grpc.RpcError as error:
            raise failure_of(error) from error
        except grpc.FutureCancelledError as error:
            raise CallError("gone", "the call was cancelled") from error
        finally:
            call.cancel()  # nothing where it is done; else the server stops working on it

    def _recognise(self, order: Order = ANYBODY, anew: bool = False) -> None:
        """See what the server serves now, and whether it is what the job began with; nothing where that is known.

        Raises:
            CallError: it does not say.
            ModelError: it is another model.
        """
        if anew or self._is_unsure():
            with self._lock:
                if anew or self._is_unsure():  # else another window looked while this one waited
                    self._look_once()
        if order.identity not in (None, self._identity):
            raise ModelError("Triton serves other files of the model than at the start of the job.", code=CHANGED)

    def _look_once(self) -> None:
        now = time.monotonic()
        config = self._channel.config(self._model.manifest.name, self._model.version)
        _check_same(config, self._model)
        self._identity = _identity(config)
        self._types = types_of(config)
        self.precision = parameter_of(config, VARIANT_PARAMETER) or "server"
        self._looked = now

    def _is_unsure(self) -> bool:
        """Whether what the server serves was looked at too long ago, or before a failure."""
        return self._looked <= max(self._lost, time.monotonic() - LOOK_SECONDS)


class JobEngine:
    """A TritonEngine for one job."""

    def __init__(self, engine: TritonEngine, order: Order) -> None:
        self.precision = engine.precision
        self.in_flight = engine.in_flight
        self._engine = engine
        self._order = order

    def run(self, batch: Batch, output: Output = "logits") -> Batch:
        """(N, C, D, H, W) float32 windows to (N, K or F, D, H, W)."""
        return self._engine.run_for(self._order, batch, output)

    def run_weighted(self, batch: Batch, output: Output = "logits", out: Weighted | None = None) -> Weighted:
        """(N, C, D, H, W) windows to (N, D, H, W, K or F), weighted."""
        return self._engine.run_weighted_for(self._order, batch, output, out)

    def ready(self) -> bool:
        """Whether the server serves the model now."""
        return self._engine.ready()

    def settle(self) -> None:
        """Look once more whether the server still serves what the job began with."""
        self._engine.look(self._order)

    def close(self) -> None:
        """Nothing: the engine outlives the job."""


def _release(regions: Regions, channel: Channel) -> None:
    regions.close()
    channel.close()


def _identity(config: Any) -> str:
    """A digest of what decides the masks; how many instances run is not of it."""
    parts = [config.backend, config.platform, config.default_model_filename]
    parts += [f"{name}={parameter_of(config, name)}" for name in sorted(config.parameters)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _check_same(config: Any, model: Model) -> None:
    """Refuse a server whose model of that name and version is another one, or does not say which it is."""
    text = parameter_of(config, PARAMETER)
    if not text:
        raise ModelError(f"Triton does not say which {model.name} {model.version} it serves.", code=CHANGED)
    served = parse_manifest(text)
    if digest_of(served.digests.weights, served) != model.digest:
        raise ModelError(f"Triton serves another {model.name} {model.version} than the repository holds.", code=CHANGED)
    variant = parameter_of(config, VARIANT_PARAMETER)
    if model.variant not in ("", variant):
        raise ModelError(f"Triton serves {model.name} as {variant or 'no variant'}, not {model.variant}.", code=CHANGED)
