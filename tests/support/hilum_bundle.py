"""MONAI Bundles of a few thousand weights, made by MONAI's own networks, that see bright blobs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hilum_nnunet import blobs
from torch import nn

UNET: dict[str, Any] = {
    "_target_": "UNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 3,
    "channels": [6, 12],
    "strides": [2],
    "num_res_units": 1,
    "norm": "instance",
}
SEGRESNET: dict[str, Any] = {
    "_target_": "monai.networks.nets.SegResNet",
    "spatial_dims": 3,
    "init_filters": 8,
    "in_channels": 1,
    "out_channels": 3,
    "blocks_down": [1, 1],
    "blocks_up": [1],
}


def config(network: dict[str, Any] = UNET) -> dict[str, Any]:
    """An inference.json as MONAI's zoo has them, ``$`` expressions included where nobody reads them."""
    return copy.deepcopy(
        {
            "bundle_root": ".",
            "device": "$torch.device('cpu')",
            "network_def": network,
            "network": "$@network_def.to(@device)",
            "spacing": [1.5, 1.5, 2.0],
            "preprocessing": {
                "_target_": "Compose",
                "transforms": [
                    {"_target_": "LoadImaged", "keys": "image"},
                    {"_target_": "EnsureChannelFirstd", "keys": "image"},
                    {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
                    {"_target_": "Spacingd", "keys": "image", "pixdim": "@spacing", "mode": "bilinear"},
                    {
                        "_target_": "ScaleIntensityRanged",
                        "keys": "image",
                        "a_min": -57,
                        "a_max": 200,
                        "b_min": 0,
                        "b_max": 1,
                        "clip": True,
                    },
                    {"_target_": "EnsureTyped", "keys": "image"},
                ],
            },
            "inferer": {
                "_target_": "SlidingWindowInferer",
                "roi_size": [16, 16, 16],
                "sw_batch_size": 2,
                "overlap": 0.5,
                "mode": "gaussian",
                "sw_device": "@device",
            },
            "postprocessing": {
                "_target_": "Compose",
                "transforms": [
                    {"_target_": "Activationsd", "keys": "pred", "softmax": True},
                    {
                        "_target_": "Invertd",
                        "keys": "pred",
                        "transform": "@preprocessing",
                        "orig_keys": "image",
                        "nearest_interp": False,
                        "to_tensor": True,
                    },
                    {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
                    {"_target_": "SaveImaged", "keys": "pred", "output_dir": "$@bundle_root + '/eval'"},
                ],
            },
        }
    )


def metadata() -> dict[str, Any]:
    """Its metadata.json, as far as it is read."""
    image = {"type": "image", "modality": "CT", "num_channels": 1, "channel_def": {"0": "image"}}
    pred = {"num_channels": 3, "channel_def": {"0": "background", "1": "liver", "2": "spleen"}}
    return {
        "name": "Tiny CT segmentation",
        "version": "0.1.0",
        "monai_version": "1.6.0",
        "copyright": "Copyright (c) nobody",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}},
    }


def make_bundle(
    folder: Path, inference: dict[str, Any], *, told: dict[str, Any] | None = None, steps: int = 60
) -> Path:
    """A bundle whose network has learnt two levels of brightness."""
    from monai.networks import nets

    arguments = {k: v for k, v in inference["network_def"].items() if k != "_target_"}
    torch.manual_seed(0)
    network = getattr(nets, inference["network_def"]["_target_"].rpartition(".")[2])(**arguments)
    teach(network, steps)
    for part in ("configs", "models"):
        (folder / part).mkdir(parents=True)
    (folder / "configs" / "inference.json").write_text(json.dumps(inference))
    (folder / "configs" / "metadata.json").write_text(json.dumps(told or metadata()))
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    return folder


def teach(network: nn.Module, steps: int) -> None:
    """Windows scaled as the bundle scales them."""
    optimiser = torch.optim.Adam(network.parameters(), 0.01)
    rng = np.random.default_rng(0)
    for _ in range(steps):
        values = np.stack([blobs((16, 16, 16), rng)[0] for _ in range(2)])[:, None]
        window = torch.from_numpy(np.clip((values + 57) / 257, 0, 1).astype(np.float32))
        target = (window[:, 0] > 0.42).long() + (window[:, 0] > 0.75).long()
        loss = nn.functional.cross_entropy(network(window), target)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
