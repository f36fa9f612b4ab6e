"""The ``config.pbtxt`` of an exported network, written with Triton's own protobuf classes."""

from __future__ import annotations

from hilum_inference.manifest import PARAMETER, Manifest
from hilum_inference.repository import manifest_parameter

NETWORK = "model.onnx"
LARGEST_BATCH = 4
"""Windows that Triton puts together at most."""
BATCH_DELAY_US = 2000
"""How long Triton may wait to fill a batch: a fraction of one window's time on a CPU."""


def config(manifest: Manifest, features: int, max_batch: int = LARGEST_BATCH) -> str:
    """The configuration of one model for Triton's onnxruntime backend, the manifest inside.

    Args:
        manifest: the model's; its window fixes the tensors' sizes.
        features: channels of the ``features`` output.
        max_batch: windows that Triton may put together.
    """
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as triton

    window = list(manifest.windows.size)
    tensors = manifest.tensors
    message = triton.ModelConfig(
        name=manifest.name,
        platform="onnxruntime_onnx",
        backend="onnxruntime",
        max_batch_size=max_batch,
        default_model_filename=NETWORK,
        input=[_input(tensors.image, [len(manifest.channels), *window])],
        output=[_output(tensors.logits, [manifest.classes, *window])],
        dynamic_batching=triton.ModelDynamicBatching(max_queue_delay_microseconds=BATCH_DELAY_US),
        version_policy=triton.ModelVersionPolicy(latest=triton.ModelVersionPolicy.Latest(num_versions=1)),
    )
    if tensors.features is not None:
        message.output.append(_output(tensors.features, [features, *window]))
    message.parameters[PARAMETER].string_value = manifest_parameter(manifest)
    return str(text_format.MessageToString(message))


def _input(name: str, dims: list[int]) -> object:
    from tritonclient.grpc import model_config_pb2 as triton

    return triton.ModelInput(name=name, data_type=triton.TYPE_FP32, dims=dims)


def _output(name: str, dims: list[int]) -> object:
    from tritonclient.grpc import model_config_pb2 as triton

    return triton.ModelOutput(name=name, data_type=triton.TYPE_FP32, dims=dims)
