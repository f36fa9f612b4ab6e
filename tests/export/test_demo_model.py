"""The model that is shipped: small, whole, made by the recipe that is in the tree, and one that Triton accepts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from hilum_export import triton_model
from hilum_export.repository import PROGRAM, VARIANTS
from hilum_inference.repository import CONFIG, Model, Repository, shipped_repository
from hilum_search.architecture import digest
from hilum_search.card import card
from hilum_search.recipe import read_recipe


@pytest.fixture
def shipped() -> Model:
    return Repository([shipped_repository()]).model("abdomen-ct-demo")


def test_it_is_whole_and_small(shipped: Model) -> None:
    assert shipped.onnx().stat().st_size <= 10e6
    assert len(shipped.manifest.digests.weights) == 64
    assert len(shipped.manifest.digests.preprocessing) == 64
    assert shipped.manifest.head is not None


def test_it_was_made_by_the_recipe_in_the_tree(shipped: Model) -> None:
    recipe = read_recipe("demo")
    assert shipped.manifest.provenance.recipe == recipe.digest
    assert shipped.manifest.provenance.architecture == digest(recipe.architecture)
    assert shipped.manifest.provenance.seed == recipe.training.seed
    assert shipped.manifest.windows == recipe.manifest().windows
    assert [label.name for label in shipped.manifest.labels] == ["liver", "spleen", "bone"]


def test_its_card_is_made_from_its_record_and_stands_in_the_docs(shipped: Model) -> None:
    folder = shipped.onnx().parents[1] / str(shipped.version)
    record = json.loads((folder / "training.json").read_text())
    text = card(shipped.manifest, record)
    assert (folder / "card.md").read_text() == text
    assert record["recipe_digest"] == shipped.manifest.provenance.recipe
    page = (Path(__file__).resolve().parents[2] / "docs" / "demo-model.md").read_text()
    title, body = text.split("\n", 1)
    assert title == f"# {shipped.manifest.title}"
    assert body.strip().replace("## ", "### ") in page


def test_triton_reads_its_configuration(shipped: Model) -> None:
    config = text_format.Parse((shipped.onnx().parents[1] / CONFIG).read_text(), triton.ModelConfig())
    assert (config.name, config.backend) == ("abdomen-ct-demo", "onnxruntime")
    assert [output.name for output in config.output] == ["logits", "features"]
    assert (Path(shipped.onnx().parents[1]) / str(shipped.version) / config.default_model_filename).is_file()


def test_its_program_is_the_one_in_the_tree(shipped: Model) -> None:
    assert shipped.onnx().with_name(PROGRAM).read_text() == Path(triton_model.__file__).read_text()


def test_it_has_every_variant_and_says_that_it_was_judged_on_what_it_learnt_from(shipped: Model) -> None:
    assert set(shipped.variants) == set(VARIANTS)
    assert shipped.manifest.provenance.dice_gate == "on-training-cases"
