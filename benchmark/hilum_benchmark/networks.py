"""Networks with random weights, the same for a seed, and model repositories that hold them."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hilum_inference.manifest import Digests, Head, Manifest, Tensors

if TYPE_CHECKING:
    from torch import nn

    from hilum_inference.repository import Model
    from hilum_search.network import Network

NETWORK = "model.onnx"


def manifest(name: str, size: int, classes: int, **changes: Any) -> Manifest:
    """A one-channel CT model with cubic windows of ``size`` and ``classes`` outputs, background included."""
    values: dict[str, Any] = {
        "name": name,
        "channels": [{"name": "ct", "modality": "CT"}],
        "labels": [{"name": f"label {n}", "id": n} for n in range(1, classes)],
        "intensity": {"steps": [[{"rule": "window", "low": -1000, "high": 1000}]]},
        "windows": {"size": (size, size, size)},
    }
    return Manifest.model_validate(values | changes)


def plain(features: int, classes: int) -> Network:
    """One 3x3x3 convolution and leaky ReLU as the body, a 1x1x1 head: nearly all the work lies outside the body."""
    import torch
    from torch import nn

    from hilum_search.network import Network

    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv3d(1, features, 3, padding=1), nn.LeakyReLU(0.01))
    return Network(body, nn.Conv3d(features, classes, 1)).eval()


def searched(classes: int, filters: int) -> Network:
    """A network of the coarse-to-fine space with the demo model's walk."""
    import torch

    from hilum_search.architecture import C2FNAS
    from hilum_search.network import build

    torch.manual_seed(0)
    walk = C2FNAS(filters, (0, 1, 2, 2, 1, 0), ("p3d", "3d", "3d", "3d", "3d", "p3d"), full_resolution_skip=True)
    return build(walk, 1, classes).eval()


def publish(repository: Path, described: Manifest, network: nn.Module) -> Model:
    """Export a network and publish it; one with a ``body`` and a ``head`` also gives its features."""
    from hilum_export.repository import config
    from hilum_inference.repository import Repository
    from hilum_inference.repository import publish as publish_files
    from hilum_search.network import Network

    features = described.classes
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / NETWORK
        if isinstance(network, Network):
            described, features = _with_head(described, network), network.head.in_channels
            _export_network(network, described, path)
        else:
            export_logits(network, described.windows.size, path)
        content = path.read_bytes()
    digests = Digests(weights=hashlib.sha256(content).hexdigest(), preprocessing=described.preprocessing_digest())
    described = described.model_copy(update={"digests": digests})
    publish_files(repository, described.name, config(described, features), {NETWORK: content})
    return Repository([repository]).model(described.name)


def export_logits(network: nn.Module, window: tuple[int, int, int], path: Path, channels: int = 1) -> None:
    """Write any network as ONNX with fixed sizes: ``image`` (1, C, D, H, W) to ``logits``."""
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(
            network.eval(),
            (torch.zeros(1, channels, *window),),
            dynamo=True,
            opset_version=20,
            input_names=["image"],
            output_names=["logits"],
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export with dynamo=True returns a program")
    program.save(path, external_data=False)


def _export_network(network: Network, described: Manifest, path: Path) -> None:
    from hilum_search.to_onnx import to_onnx

    to_onnx(network, len(described.channels), described.windows.size, path)


def _with_head(described: Manifest, network: Network) -> Manifest:
    from hilum_export.gates import head_arrays

    weight, bias = head_arrays(network)
    head = Head.from_arrays(np.ascontiguousarray(weight), bias)
    tensors = Tensors(features="features")
    return Manifest.model_validate(
        described.model_dump() | {"head": head.model_dump(), "tensors": tensors.model_dump()}
    )
