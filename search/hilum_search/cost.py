"""What a network costs: parameters, multiply-accumulates, memory; counted on tensors without storage."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hilum_search.architecture import Architecture
from hilum_search.network import build, parameters

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Cost:
    """Of one window.

    Attributes:
        parameters: trainable values.
        macs: multiply-accumulates of convolutions, forward; torch counts two operations for each.
        activation_bytes: float32 outputs of all layers of a forward pass together: about what training keeps for the
            way back. Inference frees most of it on the way.
    """

    parameters: int
    macs: int
    activation_bytes: int

    def training_bytes(self, batch: int, optimiser_values: int = 2) -> int:
        """Estimated peak of a training step in float32: activations of the batch, weights, gradients, averages.

        Args:
            batch: windows in a step.
            optimiser_values: that the optimiser keeps for each weight: AdamW 2, SGD with momentum 1.
        """
        return batch * self.activation_bytes + FLOAT_BYTES * self.parameters * (3 + optimiser_values)


def cost(architecture: Architecture, in_channels: int, classes: int, window: tuple[int, int, int]) -> Cost:
    """The cost of one window (1, in_channels, D, H, W), nothing allocated and nothing computed."""
    with torch.device("meta"):
        network = build(architecture, in_channels, classes).eval()  # one deep voxel is too few for batch statistics
        return network_cost(network, torch.empty(1, in_channels, *window))


def network_cost(network: nn.Module, image: Tensor) -> Cost:
    """The cost of any network for ``image`` (1, C, D, H, W); both may lie on the ``meta`` device."""
    held = 0

    def add(module: nn.Module, inputs: object, output: object) -> None:
        nonlocal held
        if isinstance(output, Tensor):
            held += output.numel() * FLOAT_BYTES

    leaves = [module for module in network.modules() if not list(module.children())]
    hooks = [leaf.register_forward_hook(add) for leaf in leaves]
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(image)
    finally:
        for hook in hooks:
            hook.remove()
    return Cost(parameters(network), counter.get_total_flops() // 2, held)
