"""The closed vocabulary of a manifest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hilum_testing import manifest

from hilum_inference.errors import ModelError
from hilum_inference.manifest import Head, Manifest, parse_manifest


def test_json_round_trip_keeps_everything_and_the_digest() -> None:
    weight = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    described = manifest(
        head=Head.from_arrays(weight, np.zeros(3, np.float32)).model_dump(),
        tensors={"features": "features"},
        flips=[[0], [1, 2]],
        crop={"kind": "body"},
        intensity={"steps": [[{"rule": "clip", "low": -1, "high": 1}, {"rule": "z-score", "mean": 3, "sd": 2}]]},
    )
    again = parse_manifest(described.to_json())
    assert again == described
    assert again.preprocessing_digest() == described.preprocessing_digest()
    np.testing.assert_array_equal(again.head.arrays()[0] if again.head else 0, weight)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"format": "hilum.manifest/2"}, "format"),
        ({"surprise": 1}, "surprise"),
        ({"name": "../x"}, "name"),
        ({"labels": [{"name": "a", "id": 1}, {"name": "b", "id": 1}]}, "unique"),
        ({"labels": [{"name": "a", "id": 0}]}, "labels.0.id"),
        ({"geometry": {"orientation": "RAR"}}, "orientation"),
        ({"windows": {"size": [16, 16, 16], "overlap": 1.0}}, "overlap"),
        ({"intensity": {"steps": [[{"rule": "gamma"}]]}}, "intensity"),
        ({"flips": [[3]]}, "flip"),
        ({"tensors": {"features": "features"}}, "head"),
        ({"output": "sigmoid-regions"}, "region_order"),
        ({"output": "sigmoid-regions", "way_back": "probabilities"}, "needs output softmax-argmax"),
        ({"intensity": {"steps": [[{"rule": "z-score", "scope": "filled"}]]}}, "before-resampling"),
        ({"post_processing": {"largest_component": ["heart"]}}, "heart"),
    ],
)
def test_what_it_cannot_express_is_refused(changes: dict[str, Any], where: str) -> None:
    import json

    values = json.loads(manifest().to_json()) | changes
    with pytest.raises(ModelError, match=where) as caught:
        parse_manifest(json.dumps(values))
    assert caught.value.code == "bad_manifest"


def test_only_what_decides_the_labels_changes_the_digest() -> None:
    digest = manifest().preprocessing_digest()
    assert manifest(title="x", intended_use="y").preprocessing_digest() == digest
    for changes in ({"way_back": "logits"}, {"crop": {"kind": "body"}}, {"windows": {"size": [16, 16, 8]}}):
        assert manifest(**changes).preprocessing_digest() != digest


def test_features_are_blended_only_where_they_are_fewer_than_classes() -> None:
    def with_head(features: int) -> Manifest:
        head = Head.from_arrays(np.zeros((3, features), np.float32), np.zeros(3, np.float32))
        return manifest(head=head.model_dump(), tensors={"features": "features"})

    assert with_head(2).blends_features
    assert not with_head(3).blends_features
