"""Training from Python with a network, a loss and a transform of one's own.

Usage: python docs/examples/own_training.py RECIPE DATA OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from hilum_export.export import Wishes, export
from hilum_search.augment import Sample
from hilum_search.gather import gather
from hilum_search.losses import soft_dice_loss
from hilum_search.network import Network
from hilum_search.own_architecture import OwnNetwork
from hilum_search.recipe import read_recipe
from hilum_search.train import Own, train


def network(channels: int, classes: int) -> Network:
    """Any body that keeps the window's size, and a 1x1x1 convolution to the classes."""
    body = nn.Sequential(
        nn.Conv3d(channels, 8, 3, padding=1),
        nn.InstanceNorm3d(8, affine=True),
        nn.LeakyReLU(),
        nn.Conv3d(8, 8, 3, padding=1),
        nn.ReLU(),
    )
    return Network(body, nn.Conv3d(8, classes, 1))


def loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Logits (N, K, D, H, W) and classes (N, D, H, W) to one value."""
    return soft_dice_loss(logits, classes)


def darker(sample: Sample, chance: torch.Generator) -> Sample:
    """A window's values before the intensity rule, changed by ``chance`` alone, so that runs repeat."""
    return Sample(sample.image - 20 * torch.rand((), generator=chance), sample.classes)


def main(recipe_file: Path, data: Path, out: Path) -> None:
    """Train, and publish what came out."""
    recipe = read_recipe(recipe_file).with_architecture(OwnNetwork("two-convolutions"))
    channels = len(recipe.file.channels)
    own = Own(network(channels, recipe.classes), loss, darker)
    train(recipe, gather(recipe, data, out), out, own=own)
    export(out, out / "models", network(channels, recipe.classes), Wishes(data=data))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
