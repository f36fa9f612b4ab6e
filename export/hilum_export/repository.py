"""The configurations of an exported model, one for each back-end that can run it, written with Triton's own classes.

All have the model's name, tensors and sizes: whoever asks Triton need not know which of them answers. Those of FP16 may
have FP16 at the door, which a client reads in the configuration.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hilum_export.errors import ExportError
from hilum_export.precision import Precision, Wire
from hilum_inference.layout import NETWORK_PARAMETER, VARIANT_PARAMETER
from hilum_inference.manifest import PARAMETER, Manifest
from hilum_inference.repository import manifest_parameter

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import (
        ModelConfig,
        ModelDynamicBatching,
        ModelQueuePolicy,
        ModelWarmup,
    )

NETWORK = "model.onnx"
NETWORKS: Final[dict[Precision, str]] = {"fp32": NETWORK, "fp16": "model_fp16.onnx", "int8": "model_int8.onnx"}
"""Precision -> file in the version's folder."""
TYPES: Final[dict[Wire, str]] = {"fp32": "TYPE_FP32", "fp16": "TYPE_FP16"}
"""As Triton's configurations name them."""
PLAN = "model.plan"
CAPABILITIES: Final = ("7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "10.3", "11.0", "12.0", "12.1")
"""Of the GPUs that TensorRT knows. Each has a plan of its own; all are named beforehand: what is signed stays so."""
PROGRAM = "model.py"
"""What Triton's python back-end runs."""

LARGEST_BATCH = 4
"""Windows that Triton puts together at most."""
BATCH_DELAY_US = 2000
"""How long Triton may wait to fill a batch: a fraction of one window's time on a CPU."""
INTERACTIVE, BATCH = 1, 2
"""Priority levels: somebody waits in front of a viewer; a job of the night. Who names none is of the latter."""
WAITING_SECONDS: Final = {INTERACTIVE: 30, BATCH: 120}
"""How long a window may wait in Triton's queue before it is refused; a request may ask for less."""
WAITING: Final = {INTERACTIVE: 64, BATCH: 256}
"""Windows that may wait; more are refused at once."""

RUNTIME_PARAMETER = "hilum_runtime"
"""Names the library that runs the network in the python back-end."""
RUNTIME = "openvino"
"""As the embedded engine, so that both give the same masks."""
TENSORRT_WORKSPACE = 4 * 2**30
"""Bytes of the GPU that TensorRT may use while it looks for the fastest kernels: 3D convolutions need room."""
TENSORRT_CACHE = "tensorrt-cache-"
"""Folder of built engines, relative to where Triton was started; the network's digest follows. ONNX Runtime names an
engine after the graph's names and not after its weights (its issue 6455): a retrained network must not find it."""


@dataclass(frozen=True)
class Profile:
    """Windows in one call that an engine is built for.

    Attributes:
        least, usual, most: the smallest batch, the one it is made fast for, the largest.
    """

    least: int = 1
    usual: int = LARGEST_BATCH
    most: int = LARGEST_BATCH


DEFAULT_PROFILE: Final = Profile()


@dataclass(frozen=True)
class _Kind:
    """A variant: who runs which precision, and where."""

    backend: str
    precision: Precision
    file: str
    place: str

    @property
    def network(self) -> str:
        return NETWORKS[self.precision]


DEFAULT_VARIANT: Final = "onnxruntime-fp32"
"""Also the model's ``config.pbtxt``."""
TENSORRT_PROVIDER: Final = "onnxruntime-trt-fp16"
VARIANTS: Final = {
    DEFAULT_VARIANT: _Kind("onnxruntime", "fp32", NETWORKS["fp32"], "KIND_AUTO"),
    "onnxruntime-fp16": _Kind("onnxruntime", "fp16", NETWORKS["fp16"], "KIND_GPU"),
    TENSORRT_PROVIDER: _Kind("onnxruntime", "fp16", NETWORKS["fp16"], "KIND_GPU"),
    "tensorrt-fp16": _Kind("tensorrt", "fp16", PLAN, "KIND_GPU"),
    "python-fp32": _Kind("python", "fp32", PROGRAM, "KIND_CPU"),
    "python-int8": _Kind("python", "int8", PROGRAM, "KIND_CPU"),
}
"""By name, from the plainest. FP16 on a CPU would be computed as FP32, so the python back-end has none."""


def config(manifest: Manifest, features: int, max_batch: int = LARGEST_BATCH) -> str:
    """The configuration that is used where nobody asks for a variant: ONNX Runtime, FP32, the manifest inside.

    Args:
        manifest: the model's; its window fixes the tensors' sizes.
        features: channels of the ``features`` output.
        max_batch: windows that Triton may put together.

    Raises:
        ExportError: no such batch or window.
    """
    return _text(manifest, features, DEFAULT_VARIANT, Profile(usual=max_batch, most=max_batch))


def configs(
    manifest: Manifest,
    features: int,
    networks: Mapping[Precision, str],
    profile: Profile = DEFAULT_PROFILE,
    wire: Wire = "fp32",
) -> dict[str, str]:
    """The configurations of all variants of the precisions that are published, by name.

    Args:
        manifest: the model's; its digest of the weights is replaced by each variant's.
        features: channels of the ``features`` output.
        networks: precision (``fp32``, ``fp16``, ``int8``) -> SHA-256 of its file.
        profile: batches that engines are built for.
        wire: what the FP16 file takes and gives; the others take and give FP32.

    Raises:
        ExportError: an unknown precision, no such batch or window.
    """
    unknown = set(networks) - set(NETWORKS)
    if unknown:
        raise ExportError(f"There is no precision {min(unknown)!r}; there are {', '.join(NETWORKS)}.")
    texts = {}
    for variant, kind in VARIANTS.items():
        if kind.precision in networks:
            digests = manifest.digests.model_copy(update={"weights": networks[kind.precision]})
            own = manifest.model_copy(update={"digests": digests})
            texts[variant] = _text(own, features, variant, profile, wire if kind.precision == "fp16" else "fp32")
    return texts


def plan_name(capability: str) -> str:
    """File of the plan for GPUs of one compute capability."""
    stem, dot, suffix = PLAN.rpartition(".")
    return f"{stem}_{capability}{dot}{suffix}"


def _text(manifest: Manifest, features: int, variant: str, profile: Profile, wire: Wire = "fp32") -> str:
    from google.protobuf import text_format

    _check(manifest, features, profile)
    message = _tensors(manifest, features, wire)
    kind = VARIANTS[variant]
    message.backend = kind.backend
    message.default_model_filename = kind.file
    message.max_batch_size = profile.most
    message.version_policy.latest.num_versions = 1
    message.dynamic_batching.CopyFrom(_batching(profile))
    group = message.instance_group.add(count=1)
    group.kind = group.Kind.Value(kind.place)
    message.model_warmup.extend(_warmup(manifest, batch, wire) for batch in sorted({profile.least, profile.most}))
    texts = {
        PARAMETER: manifest_parameter(manifest),
        VARIANT_PARAMETER: variant,
        NETWORK_PARAMETER: kind.network,
    }
    if kind.backend == "python":
        texts[RUNTIME_PARAMETER] = RUNTIME
    if kind.backend == "tensorrt":
        group.profile.append("0")
        message.cc_model_filenames.update({capability: plan_name(capability) for capability in CAPABILITIES})
    if variant == TENSORRT_PROVIDER:
        _accelerate(message, manifest, profile)
    for key in sorted(texts):
        message.parameters[key].string_value = texts[key]
    return str(text_format.MessageToString(message))


def _check(manifest: Manifest, features: int, profile: Profile) -> None:
    """Refuse what no back-end could run."""
    batches = (profile.least, profile.usual, profile.most)
    if profile.least < 1 or list(batches) != sorted(batches):
        raise ExportError(f"A profile takes 1 <= least <= usual <= most windows, not {', '.join(map(str, batches))}.")
    window = manifest.windows.size
    if min(window) < 1 or features < 1:
        raise ExportError(f"A network of {features} features cannot have windows of {window} voxels.")
    channels = max(len(manifest.channels), manifest.classes, features)
    elements = profile.most * channels * math.prod(window)
    if elements >= 2**31:
        raise ExportError(
            f"{profile.most} windows of {window} voxels and {channels} channels are {elements} values; TensorRT takes "
            f"less than {2**31} in one tensor."
        )


def _tensors(manifest: Manifest, features: int, wire: Wire) -> ModelConfig:
    """Name, input and outputs: the same for every variant but for the type."""
    from tritonclient.grpc import model_config_pb2 as triton

    window = list(manifest.windows.size)
    names = manifest.tensors
    outputs = {names.logits: manifest.classes}
    if names.features is not None:
        outputs[names.features] = features
    return triton.ModelConfig(
        name=manifest.name,
        input=[triton.ModelInput(name=names.image, data_type=TYPES[wire], dims=[len(manifest.channels), *window])],
        output=[
            triton.ModelOutput(name=name, data_type=TYPES[wire], dims=[channels, *window])
            for name, channels in outputs.items()
        ],
    )


def _batching(profile: Profile) -> ModelDynamicBatching:
    """Two lanes: the interactive one goes first, and neither may grow without end."""
    from tritonclient.grpc import model_config_pb2 as triton

    return triton.ModelDynamicBatching(
        preferred_batch_size=[profile.usual],
        max_queue_delay_microseconds=BATCH_DELAY_US,
        priority_levels=len(WAITING),
        default_priority_level=BATCH,
        default_queue_policy=_policy(BATCH),
        priority_queue_policy={level: _policy(level) for level in WAITING},
    )


def _policy(level: int) -> ModelQueuePolicy:
    from tritonclient.grpc import model_config_pb2 as triton

    return triton.ModelQueuePolicy(
        timeout_action=triton.ModelQueuePolicy.REJECT,
        default_timeout_microseconds=WAITING_SECONDS[level] * 1_000_000,
        allow_timeout_override=True,
        max_queue_size=WAITING[level],
    )


def _warmup(manifest: Manifest, batch: int, wire: Wire) -> ModelWarmup:
    """An empty batch, run before the first request: kernels are chosen and memory is taken then."""
    from tritonclient.grpc import model_config_pb2 as triton

    shape = [len(manifest.channels), *manifest.windows.size]
    image = triton.ModelWarmup.Input(data_type=TYPES[wire], dims=shape, zero_data=True)
    return triton.ModelWarmup(name=f"{batch} empty", batch_size=batch, inputs={manifest.tensors.image: image})


def _accelerate(message: ModelConfig, manifest: Manifest, profile: Profile) -> None:
    """TensorRT inside ONNX Runtime, for exactly the batches of the profile: other shapes would build another engine.

    No precision is asked for: FP16 is in the network itself, and TensorRT 11 takes the types that it finds.
    """
    shape = "x".join(map(str, (len(manifest.channels), *manifest.windows.size)))
    batches = {"min": profile.least, "opt": profile.usual, "max": profile.most}
    cache = TENSORRT_CACHE + manifest.digests.weights[:16]
    accelerator = message.optimization.execution_accelerators.gpu_execution_accelerator.add(name="tensorrt")
    accelerator.parameters.update(
        {
            "max_workspace_size_bytes": str(TENSORRT_WORKSPACE),
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": cache,
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": cache,
        }
        | {f"trt_profile_{name}_shapes": f"{manifest.tensors.image}:{batch}x{shape}" for name, batch in batches.items()}
    )
