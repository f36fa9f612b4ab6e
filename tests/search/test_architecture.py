from __future__ import annotations

import json
from typing import Any

import pytest

from hilum_search.architecture import (
    C2FNAS,
    C2FNAS_PANC,
    NAMED,
    VNAS,
    Architecture,
    digest,
    from_fields,
    parse_architecture,
    to_json,
)
from hilum_search.errors import ArchitectureError

SMALL = C2FNAS(4, (0, 1, 0), ("2d", "3d", "p3d"), full_resolution_skip=True)


@pytest.mark.parametrize("architecture", [SMALL, *NAMED.values()])
def test_json_round_trip(architecture: Architecture) -> None:
    assert parse_architecture(to_json(architecture)) == architecture
    assert json.loads(to_json(architecture))["format"] == "hilum.architecture/1"


def test_stride_and_channels_follow_the_deepest_level() -> None:
    assert (SMALL.stride, C2FNAS_PANC.stride) == (4, 16)
    assert [C2FNAS_PANC.channels(level) for level in range(4)] == [64, 128, 256, 512]


def test_digest_names_the_architecture_not_the_object() -> None:
    assert digest(parse_architecture(to_json(SMALL))) == digest(SMALL) != digest(C2FNAS_PANC)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"family": "unet"}, "Unknown family 'unet'"),
        ({"family": ["c2fnas"]}, "Unknown family"),
        ({"depth": 3}, "no field 'depth'"),
        ({"filters": 0}, "between 1 and 256"),
        ({"filters": True}, "whole number"),
        ({"filters": 2.5}, "whole number"),
        ({"levels": [0, 2, 0]}, "at most one"),
        ({"levels": [0, 1, 1]}, "start and end at 0"),
        ({"levels": [0, 1]}, "2 levels and 3 operators"),
        ({"levels": "010"}, "list of whole numbers"),
        ({"levels": [], "operators": []}, "start and end at 0"),
        ({"levels": [0, 1, 2, 3, 4, 3, 2, 1, 0], "operators": ["2d"] * 9}, "between 0 and 3"),
        ({"operators": ["2d", "4d", "2d"]}, "Unknown operator '4d'"),
        ({"operators": ["2d", 3, "2d"]}, "list of names"),
        ({"full_resolution_skip": 1}, "true or false"),
    ],
)
def test_what_lies_outside_the_space_is_refused(changes: dict[str, Any], reason: str) -> None:
    fields = json.loads(to_json(SMALL)) | changes
    with pytest.raises(ArchitectureError, match=reason):
        parse_architecture(json.dumps(fields))


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ArchitectureError, match="needs field 'operators'"):
        from_fields({"family": "c2fnas", "filters": 4, "levels": [0]})


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format": "hilum.architecture/2"}'])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ArchitectureError):
        parse_architecture(text)


def test_the_published_code_for_the_pancreas() -> None:
    found = NAMED["vnas-msd-pancreas"]
    assert isinstance(found, VNAS)
    assert [{"2d": 0, "3d": 1, "p3d": 2}[name] for name in found.encoder] == [
        0, 2, 2, 2, 0, 0, 0, 2, 2, 1, 2, 1, 1, 0, 1, 1,
    ]  # fmt: skip
    assert found.decoder == ("3d", "2d", "p3d", "2d", "3d")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"encoder": ["2d"] * 15}, "encoder has 15 entries; it must have 16"),
        ({"decoder": "00000"}, "list of names"),
        ({"decoder": ["3d5"] * 5}, "Unknown operator '3d5'"),
        ({"widths": [40, 60, 80]}, "widths has 3 entries"),
        ({"widths": [2, 60, 80, 160]}, "between 4 and 2048"),
        ({"stem": 24.5}, "whole number"),
        ({"cell_style": "dense"}, "plain or bottleneck"),
        ({"pooling": [1, 3]}, "different sides"),
        ({"pooling": [2, 2]}, "different sides"),
        ({"filters": 3}, "no field 'filters'"),
    ],
)
def test_what_lies_outside_vnas_is_refused(changes: dict[str, Any], reason: str) -> None:
    fields = json.loads(to_json(NAMED["vnas-2d"])) | changes
    with pytest.raises(ArchitectureError, match=reason):
        parse_architecture(json.dumps(fields))
