"""A network behind a Triton server, over gRPC; over shared memory where the server is on this machine."""

from hilum_inference.engines.triton.engine import How, TritonEngine

__all__ = ["How", "TritonEngine"]
