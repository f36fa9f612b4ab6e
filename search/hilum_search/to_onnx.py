"""The one wrapper of torch's ONNX exporter, used to measure latency and to export."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from hilum_search.network import Network

OPSET = 20
"""All operators of our spaces are native in it, and the runtimes in use know it."""
IMAGE, LOGITS, FEATURES = "image", "logits", "features"


class _TwoOutputs(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features: Tensor = self.network.body(image)
        return self.network.head(features), features


def to_onnx(network: Network, in_channels: int, window: tuple[int, int, int], path: Path) -> None:
    """Write the network as one ONNX file: ``image`` (batch, C, D, H, W) to ``logits`` and ``features``.

    The batch is free, the window is fixed; weights lie inside the file.
    """
    sample = torch.zeros(1, in_channels, *window)
    module = _TwoOutputs(network).eval()
    with warnings.catch_warnings():
        # The exporter's own deprecations and hints about packages it does without are nothing a user can act on.
        warnings.simplefilter("ignore")
        noisy = logging.getLogger("torch.onnx")
        level = noisy.level
        noisy.setLevel(logging.ERROR)
        try:
            program = torch.onnx.export(
                module,
                (sample,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[IMAGE],
                output_names=[LOGITS, FEATURES],
                dynamic_shapes={"image": {0: torch.export.Dim("batch", min=1)}},
                verbose=False,
            )
        finally:
            noisy.setLevel(level)
    if program is None:
        raise RuntimeError("torch.onnx.export with dynamo=True returns a program")
    program.save(path, external_data=False)
    _plain(path)


def _plain(path: Path) -> None:
    """Name the free axes, and drop what the exporter notes about the source files it ran from."""
    import onnx

    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
        for n, name in enumerate(("channel", "depth", "height", "width"), start=1):
            if not value.type.tensor_type.shape.dim[n].dim_value:
                value.type.tensor_type.shape.dim[n].dim_param = name
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.value_info[:]
    for part in (*model.graph.input, *model.graph.output, *model.graph.initializer, model.graph, model):
        del part.metadata_props[:]
    del model.functions[:]
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
