from __future__ import annotations

import json
from typing import Any

import pytest

from hilum_search.architecture import NAMED, from_fields, parse_architecture, to_json
from hilum_search.baseline_architectures import DINTS_CODE, AHNet, DiNTS, NnUNet, SegResNet, UNet3D, VNet
from hilum_search.errors import ArchitectureError


@pytest.mark.parametrize(
    ("architecture", "stride"),
    [
        (UNet3D(8, 3, 4), 4),
        (VNet(0), 16),
        (AHNet((1, 1, 1, 1), 0), 32),
        (NnUNet(8, 16, "residual", (1, 2, 1, 3), 1), 8),
        (DiNTS(DINTS_CODE, 4), 16),
        (SegResNet(8, (1, 2), (3,)), 2),
    ],
)
def test_json_and_stride(architecture: Any, stride: int) -> None:
    assert parse_architecture(to_json(architecture)) == architecture
    assert architecture.stride == stride


@pytest.mark.parametrize("family", ["unet3d", "vnet", "ahnet", "nnunet", "segresnet"])
def test_a_family_alone_is_its_published_network(family: str) -> None:
    assert from_fields({"family": family}) == NAMED[family]


def test_widths_of_an_nnunet_plan_are_doubled_up_to_the_largest() -> None:
    assert NnUNet().widths == (32, 64, 128, 256, 320)


def test_the_pyramid_of_an_ahnet_asks_for_a_window() -> None:
    assert [AHNet(pooling=levels).smallest_plane for levels in range(5)] == [32, 32, 32, 64, 128]


def test_where_a_dints_network_starts_and_ends() -> None:
    network = DiNTS(DINTS_CODE)
    assert (network.starts(0), network.ends(0), network.ends(2)) == ({0, 1}, {0, 1}, {0, 1, 2, 3})


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("unet3d", {"levels": 1}, "levels is 1; it must lie between 2 and 7"),
        ("unet3d", {"filters": 24}, "half of it must be a multiple of the 8 groups"),
        ("unet3d", {"filters": 64.0}, "filters must be a whole number"),
        ("unet3d", {"groups": 0}, "groups is 0"),
        ("vnet", {"dropout": 1}, "dropout is 1.0; it must lie between 0 and 1"),
        ("vnet", {"dropout": "half"}, "dropout must be a number"),
        ("vnet", {"dropout": float("nan")}, "dropout is nan"),
        ("ahnet", {"pooling": 5}, "pooling is 5"),
        ("ahnet", {"layers": [3, 4, 6]}, "layers has 3 entries; it must have 4"),
        ("ahnet", {"layers": [3, 4, 6, 0]}, "entries of layers must lie between 1 and 64"),
        ("ahnet", {"layers": [3, 4, 6, 3.0]}, "list of whole numbers"),
        ("nnunet", {"encoder": "dense"}, "plain or residual"),
        ("nnunet", {"encoder": 1}, "encoder must be a name"),
        ("nnunet", {"largest": 16}, "largest is 16; it must lie between 32 and 2048"),
        ("nnunet", {"blocks": [2]}, "blocks has 1 entries; it must have 2 to 7"),
        ("nnunet", {"decoder": 0}, "decoder is 0"),
        ("segresnet", {"filters": 12}, "multiple of 8"),
        ("segresnet", {"up": [1, 1]}, "up has 2 entries; it must have 3"),
        ("segresnet", {"down": [1, 2, 2, 0]}, "down and up"),
        ("dints", {"filters": 1}, "filters is 1"),
        ("dints", {"code": ["1.12"]}, "must have 10 letters"),
        ("dints", {"code": ["1.12.....5"]}, "out of .01234"),
        ("dints", {"code": [".........."]}, "no path"),
        (
            "dints",
            {"code": ["1.1.......", "1........."]},
            r"end at the levels \[0, 1\], those of the next start at \[0\]",
        ),
        ("dints", {"code": []}, "code has 0 entries"),
    ],
)
def test_what_lies_outside_a_family_is_refused(name: str, changes: dict[str, Any], reason: str) -> None:
    fields = json.loads(to_json(NAMED[name])) | changes
    with pytest.raises(ArchitectureError, match=reason):
        parse_architecture(json.dumps(fields))


def test_a_dints_network_needs_its_code() -> None:
    with pytest.raises(ArchitectureError, match="needs field 'code'"):
        from_fields({"family": "dints"})
