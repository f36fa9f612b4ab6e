"""Convolutions in slabs are nn.Conv3d's, but for rounding; what they do not fit is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hilum_search import convolution
from hilum_search.architecture import C2FNAS, C2FNAS_PANC, VNAS
from hilum_search.convolution import quick_convolutions
from hilum_search.network import build

KERNELS = [(1, 1, 1), (3, 3, 3), (3, 3, 1), (1, 1, 3), (5, 5, 5), (5, 1, 3)]


@pytest.fixture
def thin_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slabs of two or three planes, whatever the size."""
    monkeypatch.setattr(convolution, "SLAB_BYTES", 0)
    monkeypatch.setattr(convolution, "SMALLEST", 100)


def gradients(model: nn.Module, image: Tensor) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    image = image.clone().requires_grad_()
    answer = model(image)
    weights = torch.linspace(-1, 2, answer.numel()).view_as(answer)
    (answer * weights).sum().backward()
    found = [image.grad, *(p.grad for p in model.parameters())]
    return answer.detach(), [each.clone() for each in found if each is not None]


def assert_same(model: nn.Module, image: Tensor) -> None:
    plain, wanted = gradients(model, image)
    with quick_convolutions(model):
        quick, found = gradients(model, image)
    assert len(found) == len(wanted)
    for a, b in zip([quick, *found], [plain, *wanted], strict=True):
        assert torch.linalg.norm(a - b) <= 1e-5 * torch.linalg.norm(b) + 1e-6


@pytest.mark.usefixtures("thin_slabs")
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_values_and_gradients_are_those_of_the_whole_volume(
    kernel: tuple[int, int, int], bias: bool, batch: int
) -> None:
    torch.manual_seed(1)
    around = [side // 2 for side in kernel]
    layer = nn.Conv3d(5, 7, kernel, padding=around, bias=bias)  # type: ignore[arg-type]
    image = torch.randn(batch, 5, 13, 10, 9)
    assert len(convolution._Slabs.of(image, layer.weight).bounds) > 2
    assert_same(layer, image)
    assert_same(nn.Sequential(nn.ReLU(), layer), image)


@pytest.mark.usefixtures("thin_slabs")
def test_weights_that_are_held_still_get_no_gradient() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Conv3d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv3d(3, 1, 3, padding=1))
    model[3].requires_grad_(False)
    _, wanted = gradients(model, torch.ones(1, 2, 9, 8, 8))
    with quick_convolutions(model):
        _, found = gradients(model, torch.ones(1, 2, 9, 8, 8))
    assert len(found) == 3
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("thin", [False, True])
def test_networks_learn_the_same(thin: bool, request: pytest.FixtureRequest) -> None:
    if thin:
        request.getfixturevalue("thin_slabs")
    torch.manual_seed(2)
    narrow = C2FNAS(4, C2FNAS_PANC.levels, C2FNAS_PANC.operators)
    assert_same(build(narrow, 1, 3), torch.rand(1, 1, 32, 32, 32))


def test_a_slab_never_has_fewer_planes_than_onednn_takes() -> None:
    for depth in range(1, 100):
        x, weight = torch.empty(1, 32, depth, 40, 40, device="meta"), torch.empty(64, 32, 3, 3, 3, device="meta")
        bounds = convolution._Slabs.of(x, weight).bounds
        assert [start for start, _ in bounds] == [0, *(stop for _, stop in bounds[:-1])]
        assert bounds[-1][1] == depth
        if len(bounds) > 1:
            assert min(stop - start for start, stop in bounds) * 32 * 40 > convolution.SMALLEST


def kinds(model: nn.Module) -> list[str]:
    return [type(each).__name__ for each in model.modules()]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv3d(4, 4, 3, stride=2, padding=1),
        nn.Conv3d(4, 4, 3, padding=2, dilation=2),
        nn.Conv3d(4, 4, 3, padding=1, groups=2),
        nn.Conv3d(4, 4, 3, padding=1, padding_mode="replicate"),
        nn.Conv3d(4, 4, 3, padding="same"),
        nn.Conv3d(4, 4, 2, padding=1),
        nn.Conv3d(4, 4, 3),
    ],
)
def test_other_convolutions_are_left_alone(layer: nn.Conv3d) -> None:
    model = nn.Sequential(nn.ReLU(), layer)
    with quick_convolutions(model):
        assert kinds(model) == ["_Chain", "ReLU", "Conv3d"]


class Skipping(nn.Module):
    """Calls the members of a chain one by one, and uses what the ReLU answers twice."""

    def __init__(self) -> None:
        super().__init__()
        self.chain = nn.Sequential(nn.ReLU(), nn.Conv3d(2, 2, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        positive = self.chain[0](x)
        found: Tensor = positive + self.chain[1](positive) + self.chain(x)
        return found


def test_a_relu_that_others_call_is_still_one() -> None:
    assert_same(Skipping(), torch.randn(1, 2, 8, 8, 8))


@pytest.mark.parametrize("place", [0, 1])
def test_who_listens_hears_every_call(place: int) -> None:
    model, heard = nn.Sequential(nn.ReLU(), nn.Conv3d(1, 1, 1)), []
    model[place].register_forward_hook(lambda *call: heard.append(call[2].detach()))
    image = torch.randn(1, 1, 4, 4, 4)
    model(image)
    with quick_convolutions(model):
        model(image)
    torch.testing.assert_close(heard[1], heard[0])


def test_the_model_is_as_before_once_it_closes() -> None:
    model = build(VNAS(("3d",) * 16, ("p3d",) * 5), 1, 2)
    before = kinds(model)
    with pytest.raises(RuntimeError), quick_convolutions(model):
        assert "_Quick" in kinds(model)
        raise RuntimeError
    assert kinds(model) == before


def test_without_gradients_the_answer_is_torchs_own() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Conv3d(2, 3, 3, padding=1))
    image = torch.randn(1, 2, 8, 8, 8)
    plain = model(image)
    with quick_convolutions(model), torch.no_grad():
        assert torch.equal(model(image), plain)
    with quick_convolutions(model), torch.autocast("cpu", torch.bfloat16):
        assert model(image).dtype == torch.bfloat16
