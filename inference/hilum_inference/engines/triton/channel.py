"""The calls of Triton's gRPC interface that Hilum makes; each has a deadline, each failure one of a few kinds."""

from __future__ import annotations

from typing import Any, Literal

from hilum_inference.engines.triton.wire import parsed
from hilum_inference.errors import EngineError, OutOfMemoryError

LARGEST_MESSAGE = 2**31 - 1
"""Bytes; gRPC knows no larger one."""
OPTIONS = (
    ("grpc.max_send_message_length", LARGEST_MESSAGE),
    ("grpc.max_receive_message_length", LARGEST_MESSAGE),
    ("grpc.initial_reconnect_backoff_ms", 100),  # the default doubles up to two minutes
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),
)
CALL_SECONDS = 5.0
"""For everything but the network itself."""
READY_SECONDS = 2.0

Kind = Literal["gone", "late", "region", "busy", "memory", "refused"]


class CallError(Exception):
    """A call that failed.

    Attributes:
        kind: ``gone``: no server, or it does not serve the model now; ``late``: no answer in time; ``region``: it does
            not know the shared memory; ``busy``: it still uses that; ``memory``: it ran out; ``refused``: it does not
            want this very request.
    """

    def __init__(self, kind: Kind, text: str) -> None:
        super().__init__(text)
        self.kind = kind

    @property
    def passes(self) -> bool:
        """Whether it says nothing about the window: the same call may succeed a moment later."""
        return self.kind in ("gone", "late", "region")

    def public(self) -> EngineError:
        """What callers may read: the server's own words stay in the log."""
        if self.kind == "memory":
            return OutOfMemoryError("The inference server ran out of memory; try again later.")
        if self.passes:
            return EngineError("The inference server does not answer; try again later.", code="triton_unavailable")
        return EngineError("The inference server refused the window.", code="triton_failed")


class Channel:
    """A connection to one server; it comes back by itself when the server does.

    Args:
        address: ``host:port`` of gRPC.
    """

    def __init__(self, address: str) -> None:
        import grpc
        from tritonclient.grpc import service_pb2, service_pb2_grpc

        self.address = address
        self._messages: Any = service_pb2
        self._channel: Any = grpc.insecure_channel(address, options=OPTIONS)
        self._stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._infer: Any = self._channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer", service_pb2.ModelInferRequest.SerializeToString, parsed
        )

    def live(self) -> bool:
        """Whether a server answers."""
        try:
            return bool(self._call("ServerLive", READY_SECONDS).live)
        except CallError:
            return False

    def ready(self, name: str, version: int, seconds: float = 0.0) -> bool:
        """Whether a version of a model can run now; or within some seconds, for a server that has just come back."""
        fields = {"name": name, "version": str(version)}
        try:
            return bool(self._call("ModelReady", seconds or READY_SECONDS, seconds > 0, **fields).ready)
        except CallError:
            return False

    def config(self, name: str, version: int | None = None) -> Any:
        """The configuration of a model as it is loaded, a ``ModelConfig``; None: of the newest version that is."""
        number = "" if version is None else str(version)
        return self._call("ModelConfig", name=name, version=number).config

    def index(self) -> list[Any]:
        """All that the server's repository holds: messages with name, version, state, reason."""
        return list(self._call("RepositoryIndex").models)

    def shares_memory(self) -> bool:
        """Whether the server says that it can."""
        return "system_shared_memory" in self._call("ServerMetadata").extensions

    def register(self, name: str, key: str, size: int) -> None:
        """Make a region of shared memory known to the server."""
        self._call("SystemSharedMemoryRegister", name=name, key=key, offset=0, byte_size=size)

    def unregister(self, name: str) -> None:
        """Let the server forget a region; one that it does not know is forgotten already."""
        self._call("SystemSharedMemoryUnregister", READY_SECONDS, name=name)

    def regions(self) -> list[str]:
        """Names of the regions that the server knows."""
        return list(self._call("SystemSharedMemoryStatus").regions)

    def request(self, **fields: Any) -> Any:
        """A ``ModelInferRequest``."""
        return self._messages.ModelInferRequest(**fields)

    def infer(self, request: Any) -> Any:
        """Start a request; a future of a ``Reply`` that can be cancelled. Who waits for it keeps the time."""
        return self._infer.future(request)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def _call(self, method: str, timeout: float = CALL_SECONDS, wait: bool = False, **fields: Any) -> Any:
        """One call; ``wait`` for the connection, where it would else fail at once."""
        import grpc

        request = getattr(self._messages, f"{method}Request")(**fields)
        try:
            return getattr(self._stub, method)(request, timeout=timeout, wait_for_ready=wait)
        except grpc.RpcError as error:
            raise failure_of(error) from error
        except ValueError as error:  # the channel was closed
            raise CallError("gone", str(error)) from error


def parameter_of(config: Any, name: str) -> str:
    """A parameter of a ``ModelConfig``; empty where it has none."""
    return str(config.parameters[name].string_value) if name in config.parameters else ""


def types_of(config: Any) -> dict[str, str]:
    """Types of the inputs and outputs of a ``ModelConfig``, as requests name them (``FP32``), by name."""
    from tritonclient.grpc import model_config_pb2

    name_of = model_config_pb2.DataType.Name
    return {each.name: name_of(each.data_type).removeprefix("TYPE_") for each in (*config.input, *config.output)}


def failure_of(error: Any) -> CallError:
    """The kind of a gRPC error, from its status; from its text where Triton has one status for several things."""
    from grpc import StatusCode

    code, text = error.code(), error.details() or ""
    said = f"{code.name}: {text}"
    text = text.lower()
    if "currently in use" in text:
        return CallError("busy", said)
    if "shared memory region" in text:
        return CallError("region", said)
    if code is StatusCode.RESOURCE_EXHAUSTED or any(sign in text for sign in _OUT_OF_MEMORY):
        return CallError("memory", said)
    if code is StatusCode.DEADLINE_EXCEEDED:
        return CallError("late", said)
    if code in (StatusCode.UNAVAILABLE, StatusCode.NOT_FOUND, StatusCode.CANCELLED) or _STUB_DIED in text:
        return CallError("gone", said)
    return CallError("refused", said)


_OUT_OF_MEMORY = ("out of memory", "alloc", "shared memory pool size")
_STUB_DIED = "stub process"
