from __future__ import annotations

import json
from typing import Any

import pytest

from hilum_search.architecture import C2FNAS, C2FNAS_PANC, digest, from_fields, parse_architecture, to_json
from hilum_search.errors import ArchitectureError

SMALL = C2FNAS(4, (0, 1, 0), ("2d", "3d", "p3d"), full_resolution_skip=True)


@pytest.mark.parametrize("architecture", [SMALL, C2FNAS_PANC])
def test_json_round_trip(architecture: C2FNAS) -> None:
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
