from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hilum_networks import as_if_trained, largest_difference
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hilum_search.architecture import NAMED, Architecture
from hilum_search.baseline_architectures import DINTS_CODE, AHNet, DiNTS, NnUNet, SegResNet, UNet3D, VNet
from hilum_search.baselines import dints_library, nnunet_library
from hilum_search.errors import ArchitectureError, SearchError
from hilum_search.network import Network, build, count, parameters

SMALL: dict[str, Architecture] = {
    "unet3d": UNet3D(4, 3, 2),
    "vnet": VNet(),
    "ahnet": AHNet((1, 1, 1, 1), 2),
    "nnunet": NnUNet(4, 12, "plain", (1, 2, 1)),
    "nnunet-resenc": NnUNet(4, 12, "residual", (1, 2, 2), 1),
    "dints": DiNTS(("1.12......", "0..3.4....", "01.02.1..."), 4),
    "segresnet": SegResNet(8, (1, 1, 2), (1, 2)),
}
WINDOWS = {name: (32, 32, 32) if name == "ahnet" else (16, 16, 32) for name in SMALL}


def _network(name: str) -> Network:
    torch.manual_seed(0)
    return build(SMALL[name], 2, 3)


def _library(name: str) -> nn.Module:
    """The network as its library has it, with the weights that ``_network`` gives ours."""
    from monai.networks import nets

    torch.manual_seed(0)
    architecture = SMALL[name]
    if isinstance(architecture, NnUNet):
        return _module(nnunet_library(architecture, 2, 3))
    if isinstance(architecture, DiNTS):
        return _module(dints_library(architecture, 2, 3))
    if isinstance(architecture, AHNet):
        return _module(nets.AHNet(architecture.layers, 3, 2, 3, architecture.pooling, "trilinear"))
    if isinstance(architecture, SegResNet):
        return _module(nets.SegResNet(3, 8, 2, 3, blocks_down=architecture.down, blocks_up=architecture.up))
    return _module(nets.VNet(3, 2, 3))


def _module(library: Any) -> nn.Module:
    module: nn.Module = library
    return module


@pytest.mark.parametrize("name", SMALL)
def test_logits_are_the_head_of_the_features_and_every_weight_learns(name: str) -> None:
    network = _network(name)
    image = torch.rand(2, 2, *WINDOWS[name])
    network(image).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []
    network.eval()
    with torch.inference_mode():
        features = network.body(image)
        assert features.shape == (2, network.head.in_channels, *WINDOWS[name])
        assert network.head.kernel_size == (1, 1, 1)
        assert torch.equal(network.head(features), network(image))
        assert network(image).shape == (2, 3, *WINDOWS[name])
    assert count(SMALL[name], 2, 3) == parameters(network)


@pytest.mark.parametrize("name", [name for name in SMALL if name != "unet3d"])
def test_ours_answers_as_the_library_does_with_the_same_weights(name: str) -> None:
    image = torch.rand(1, 2, *WINDOWS[name])
    with torch.inference_mode():
        ours, theirs = _network(name).eval()(image), _library(name).eval()(image)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_no_weight_has_two_names(name: str) -> None:
    state = _network(name).state_dict()
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)


EXPORTED = [pytest.param(name, marks=pytest.mark.slow) if name == "vnet" else name for name in SMALL]
"""V-Net cannot be narrowed: 45 million weights, written and read several times."""


@pytest.mark.parametrize("name", EXPORTED)
def test_the_exported_file_answers_as_torch_does(name: str, tmp_path: Path) -> None:
    network = _network(name)
    as_if_trained(network, torch.rand(2, 2, *WINDOWS[name]))
    assert largest_difference(network, torch.rand(2, 2, *WINDOWS[name]), tmp_path / "model.onnx") < 1e-4


@pytest.mark.parametrize(
    ("name", "values", "gmac"),
    [
        ("unet3d", 16_320_708, 801.330),
        ("vnet", 45_611_916, 321.011),
        ("ahnet", 27_117_017 + 20, 28.782 + 0.014),  # MONAI's, and our head from logits to logits
        ("nnunet", 16_551_152 - 1_804, 201.719),  # the library's, without the heads of deep supervision
        ("nnunet-resenc", 62_813_488 - 1_804, 302.892),
        ("dints", 33_130_692, 183.459),
        ("segresnet", 18_798_660, 246.650),
    ],
)
def test_named_networks_keep_their_size_and_cost(name: str, values: int, gmac: float) -> None:
    with torch.device("meta"):
        network, image = build(NAMED[name], 4, 4).eval(), torch.empty(1, 4, 96, 96, 96)
    assert parameters(network) == values
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmac, abs=1e-3)  # two operations to a multiply-add


def test_the_librarys_nnunet_carries_heads_that_only_deep_supervision_uses() -> None:
    with torch.device("meta"):
        architecture = NAMED["nnunet"]
        assert isinstance(architecture, NnUNet)
        assert parameters(nnunet_library(architecture, 4, 4)) == 16_551_152


@pytest.mark.parametrize(
    "code",
    [
        DINTS_CODE,
        ("....2.....",),  # from the third level alone to the second: the stems of the others are not built
        ("1........1", "1.1....1.."),
    ],
)
def test_any_dints_code_answers_as_the_library_does(code: tuple[str, ...]) -> None:
    architecture, image = DiNTS(code, 2), torch.rand(1, 1, 32, 32, 32)
    torch.manual_seed(1)
    ours = build(architecture, 1, 2).eval()
    torch.manual_seed(1)
    theirs = dints_library(architecture, 1, 2).eval()
    torch.testing.assert_close(ours(image), theirs(image), rtol=1e-5, atol=1e-5)
    ours(image).sum().backward()
    assert [name for name, p in ours.named_parameters() if p.grad is None] == []


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    _network("dints")
    assert capsys.readouterr() == ("", "")


def test_what_a_network_cannot_take_is_said() -> None:
    with pytest.raises(ArchitectureError, match="cannot take 3; give it 1, 2, 4, 8 or 16"):
        build(VNet(), 3, 2)
    with torch.device("meta"):
        network = build(AHNet(), 1, 2)
        with pytest.raises(ArchitectureError, match="64 voxels or more; enlarge the window or lower pooling"):
            network(torch.empty(1, 1, 32, 64, 32))


def test_without_its_library_nnunet_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dynamic_network_architectures.architectures.unet", None)
    with pytest.raises(SearchError, match=r"pip install --no-deps dynamic-network-architectures==0\.4\.4"):
        build(NnUNet(), 1, 2)
