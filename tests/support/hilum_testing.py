"""Tiny real models for tests: an ONNX network in a repository, and the same function in numpy or torch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from hilum_inference.manifest import Digests, Head, Manifest
from hilum_inference.repository import Model, Repository, manifest_parameter, publish

SIZE = (16, 16, 16)


def manifest(**changes: Any) -> Manifest:
    """A manifest of a one-channel, three-class model with windows of SIZE."""
    values: dict[str, Any] = {
        "name": "tiny",
        "channels": [{"name": "ct"}],
        "labels": [{"name": "soft", "id": 1}, {"name": "hard", "id": 2}],
        "intensity": {"steps": [[{"rule": "window", "low": -200, "high": 300}]]},
        "windows": {"size": SIZE},
    }
    return Manifest.model_validate(values | changes)


class Tiny(torch.nn.Module):
    """conv 3x3x3 -> leaky ReLU -> head 1x1x1, with weights that depend on the sizes alone."""

    def __init__(self, channels: int = 1, features: int = 4, classes: int = 3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(channels * 100 + features * 10 + classes)
        self.body = torch.nn.Conv3d(channels, features, 3, padding=1)
        self.head = torch.nn.Conv3d(features, classes, 1)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                scale = 0.1 if name.endswith("bias") else 1.0  # small, so that no class wins everywhere
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = torch.nn.functional.leaky_relu(self.body(x), 0.1)
        logits: torch.Tensor = self.head(features)
        return logits


def onnx_bytes(net: Tiny, size: tuple[int, int, int]) -> bytes:
    """The network as ONNX with outputs ``logits`` and ``features`` and a free batch axis."""
    weights = {name: numpy_helper.from_array(value.numpy(), name) for name, value in net.state_dict().items()}
    channels, features, classes = net.body.in_channels, net.body.out_channels, net.head.out_channels
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "body.weight", "body.bias"], ["body"], pads=[1] * 6),
            helper.make_node("LeakyRelu", ["body"], ["features"], alpha=0.1),
            helper.make_node("Conv", ["features", "head.weight", "head.bias"], ["logits"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", channels, *size])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes, *size]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", features, *size]),
        ],
        list(weights.values()),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def ensemble_of(first: Tiny, second: Tiny) -> Tiny:
    """One network with the features of both side by side, and a head that averages their logits."""
    one, two = first.state_dict(), second.state_dict()
    joined = Tiny(first.body.in_channels, 2 * first.body.out_channels, first.head.out_channels)
    joined.load_state_dict(
        {
            "body.weight": torch.cat([one["body.weight"], two["body.weight"]]),
            "body.bias": torch.cat([one["body.bias"], two["body.bias"]]),
            "head.weight": torch.cat([one["head.weight"], two["head.weight"]], dim=1) / 2,
            "head.bias": (one["head.bias"] + two["head.bias"]) / 2,
        }
    )
    return joined


def publish_tiny(
    folder: Path, described: Manifest, features: int = 4, with_head: bool = False, net: Tiny | None = None
) -> tuple[Model, Tiny]:
    """Publish a Tiny network for ``described``; the model, and the network in torch."""
    net = net or Tiny(len(described.channels), features, described.classes)
    if with_head:
        weight = net.head.weight.detach().numpy()[:, :, 0, 0, 0]
        head = Head.from_arrays(weight, net.state_dict()["head.bias"].numpy())
        tensors = described.tensors.model_copy(update={"features": "features"})
        described = Manifest.model_validate(described.model_dump() | {"head": head, "tensors": tensors})
    data = onnx_bytes(net, described.windows.size)
    digests = Digests(weights=hashlib.sha256(data).hexdigest(), preprocessing=described.preprocessing_digest())
    described = described.model_copy(update={"digests": digests})
    publish(folder, described.name, config_text(described), {"model.onnx": data})
    return Repository([folder]).model(described.name), net


def config_text(described: Manifest, variant: str = "", network: str = "", weights: bytes | None = None) -> str:
    """A ``config.pbtxt`` for a model, or for a variant of it that runs the file ``network`` of these ``weights``."""
    if weights is not None:
        digests = described.digests.model_copy(update={"weights": hashlib.sha256(weights).hexdigest()})
        described = described.model_copy(update={"digests": digests})
    text = manifest_parameter(described).replace("\\", "\\\\").replace('"', '\\"')
    size = ", ".join(map(str, described.windows.size))
    outputs = [("logits", described.classes)]
    if described.head is not None:
        outputs.append(("features", described.head.features))
    tensors = [("input", "image", len(described.channels)), *(("output", *output) for output in outputs)]
    return (
        f'name: "{described.name}"\nbackend: "onnxruntime"\nmax_batch_size: 4\n'
        + (f'default_model_filename: "{network}"\n' if network else "")
        + "".join(f'{kind} {{ name: "{n}" data_type: TYPE_FP32 dims: [ {c}, {size} ] }}\n' for kind, n, c in tensors)
        + f'parameters {{ key: "hilum_manifest" value {{ string_value: "{text}" }} }}\n'
        + "".join(
            f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
            for key, value in (("hilum_variant", variant), ("hilum_network", network))
            if value
        )
    )


def phantom(shape: tuple[int, int, int], seed: int = 0) -> NDArray[np.int16]:
    """An asymmetric int16 CT-like phantom: noise, one soft box near the low corner, one hard box near the high one."""
    image = np.random.default_rng(seed).normal(-800, 20, shape)
    a, b, c = shape
    image[a // 8 : a // 2, b // 8 : b // 3, c // 8 : c // 2 + 1] = 60
    image[a // 2 : a - a // 8, b // 2 : b - b // 6, c // 3 : c - c // 8] = 700
    return image.astype(np.int16)
