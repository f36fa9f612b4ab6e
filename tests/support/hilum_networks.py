"""Networks that answer as trained ones do, and how far an exported file is from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hilum_search.network import Network
from hilum_search.to_onnx import to_onnx


def as_if_trained(network: nn.Module, image: Tensor) -> None:
    """Norms with gains, offsets and statistics of their own, so that none can be lost or swapped unseen.

    Their offsets are positive: a chain of fresh norms and half-closed ReLUs is chaotic, and float32 in torch itself is
    1e-4 to 1e-3 of the largest logit off float64, no matter who computes it. Leaves the network in evaluation mode.
    """
    for module in network.modules():
        if isinstance(module, nn.InstanceNorm3d | nn.BatchNorm3d | nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1)
            nn.init.uniform_(module.bias, 1, 2)
    network.train()
    with torch.no_grad():
        network(image)
    network.eval()


def largest_difference(network: Network, image: Tensor, path: Path) -> float:
    """Of features and logits in ONNX Runtime to torch's, as shares of the largest value; writes ``path``."""
    import onnxruntime

    depth, height, width = image.shape[2:]
    to_onnx(network, image.shape[1], (depth, height, width), path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)
    logits, features = session.run(["logits", "features"], {"image": image.numpy()})
    with torch.inference_mode():
        expected = network.body(image)
        pairs = ((logits, network.head(expected)), (features, expected))
    return max(float(np.abs(found - right.numpy()).max() / right.abs().max()) for found, right in pairs)
