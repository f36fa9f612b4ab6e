"""A gRPC relay in front of a Triton that passes everything on, and spoils what a test asks it to."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from hilum_inference.engines.triton.channel import OPTIONS

INFER = "/inference.GRPCInferenceService/ModelInfer"

Spoil = Callable[[Any], None]


class Relay(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Listens on a port of its own; ``twist`` may change each ``ModelInfer`` and ``spoil`` its answer on the way."""

    def __init__(self, address: str) -> None:
        self.twist: Spoil | None = None
        self.spoil: Spoil | None = None
        self.infers = 0
        self._target = grpc.insecure_channel(address, options=OPTIONS)
        self._pool = ThreadPoolExecutor(8)
        self._server = grpc.server(self._pool, handlers=[self], options=OPTIONS)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def service(self, details: Any) -> Any:
        """How one method is answered."""
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: self._pass(details.method, request, context)
        )

    def _pass(self, method: str, request: bytes, context: Any) -> bytes:
        if method == INFER and self.twist is not None:
            order = service_pb2.ModelInferRequest.FromString(request)
            self.twist(order)
            request = order.SerializeToString()
        try:
            answer = self._target.unary_unary(method)(request)
        except grpc.RpcError as error:
            context.abort(error.code(), error.details())
        if method != INFER:
            return bytes(answer)
        self.infers += 1
        message = service_pb2.ModelInferResponse.FromString(answer)
        if self.spoil is not None:
            self.spoil(message)
        return bytes(message.SerializeToString())

    def __enter__(self) -> Relay:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(0).wait()
        self._target.close()
        self._pool.shutdown()
