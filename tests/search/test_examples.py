"""The examples of docs/train.md and docs/search.md run as they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from hilum_client.sample import Sample, default_folder
from hilum_inference.repository import Repository
from hilum_search.cases import Files
from hilum_search.sources import find_dataset

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


def run(script: str, *words: Path) -> None:
    command = [sys.executable, str(EXAMPLES / script), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_own_network_loss_and_transform_end_in_a_model(recipe_text: str, files: Files, tmp_path: Path) -> None:
    recipe = tmp_path / "given.toml"
    recipe.write_text(recipe_text.replace("steps = 12", "steps = 2"))
    run("own_training.py", recipe, tmp_path, tmp_path / "run")
    model = Repository([tmp_path / "run" / "models"]).model()
    assert model.name == "phantom"
    assert model.manifest.head is not None


def test_a_search_with_an_evaluator_of_ones_own() -> None:
    run("own_search.py")


@pytest.mark.sample
def test_the_sample_becomes_two_patients_with_liver_and_spleen(tmp_path: Path) -> None:
    sample = Sample(default_folder())
    if not sample.series.is_dir():
        pytest.skip("the CT sample is not there: make sample fetches it")
    run("sample_pairs.py", sample.series.parent, tmp_path / "abdomen")
    dataset = find_dataset(tmp_path / "abdomen")
    assert [case.name for case in dataset.cases] == ["first", "second"]
    for case in dataset.cases:
        assert set(np.unique(np.asarray(nibabel.load(case.labels).dataobj))) == {0, 1, 2}
