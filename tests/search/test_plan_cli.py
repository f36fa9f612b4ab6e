from __future__ import annotations

import doctest
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hilum_client.cli import main
from hilum_client.errors import SampleError
from hilum_client.sample import fetch_sample
from hilum_inference.io import write_volume
from hilum_inference.volume import Volume
from hilum_search import plan_cli
from hilum_search.architecture import C2FNAS, to_json
from hilum_search.errors import BadCasesError, DataError
from hilum_search.plan_cli import plan_app, write_plan
from hilum_search.recipe import read_recipe
from hilum_search.survey import parse_survey

RUNNER = CliRunner()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """An nnU-Net folder of three cases."""
    folder = tmp_path / "Dataset003 Spleen"
    for side in ("imagesTr", "labelsTr"):
        (folder / side).mkdir(parents=True)
    labels = {"background": 0, "[bold]spleen": 1}
    fields = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz", "numTraining": 3}
    (folder / "dataset.json").write_text(json.dumps(fields))
    for number in range(3):
        image = np.random.default_rng(number).normal(0, 100, (24, 22, 20)).astype(np.int16)
        ids = np.zeros((24, 22, 20), np.uint8)
        ids[5:12, 5:12, 5 : 12 + number] = 1
        affine = np.diag([1.0, 1.0, 2.0 + number, 1.0])
        write_volume(folder / f"imagesTr/s{number}_0000.nii.gz", Volume.from_array(image, affine))
        write_volume(folder / f"labelsTr/s{number}.nii.gz", Volume.from_array(ids, affine))
    return folder


@pytest.fixture
def arch(tmp_path: Path) -> str:
    path = tmp_path / "tiny.json"
    path.write_text(to_json(C2FNAS(filters=4, levels=(0, 1, 0), operators=("2d", "p3d", "3d"))))
    return str(path)


def test_a_plan_is_shown_and_written(data: Path, arch: str, tmp_path: Path) -> None:
    out = tmp_path / "plans" / "spleen.toml"
    answer = RUNNER.invoke(plan_app, [str(data), "-o", str(out), "--arch", arch, "--steps", "100", "--memory-gib", "1"])
    assert answer.exit_code == 0, answer.output
    assert "3 cases (nnunet), 3 patients" in answer.output
    assert "[bold]spleen" in answer.output and "1176" in answer.output  # 7 x 7 x (7 + 8 + 9)
    assert "windows of 24x24x20 at 1 x 1 x 3 mm (RAS)" in answer.output.replace("\n", " ")
    assert "hilum train --recipe" in answer.output
    recipe = read_recipe(out)
    assert (recipe.name, recipe.training.steps) == ("dataset003-spleen", 100)
    found = parse_survey((tmp_path / "plans" / "spleen.survey.json").read_bytes())
    assert [case.name for case in found.cases] == ["s0", "s1", "s2"]
    assert sorted(found.cases[0].files) == ["imagesTr/s0_0000.nii.gz", "labelsTr/s0.nii.gz"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["spleen.survey.json", "spleen.toml"]


def test_what_was_found_as_json(data: Path, arch: str, tmp_path: Path) -> None:
    answer = RUNNER.invoke(
        plan_app, [str(data), "-o", str(tmp_path / "a.toml"), "--arch", arch, "--name", "mine", "--json"]
    )
    facts = json.loads(answer.stdout)
    assert (facts["cases"], facts["patients"], facts["recipe"]["name"]) == (3, 3, "mine")
    assert facts["axes"][2] == {"axis": "superior-inferior", "voxels": [20, 20, 20], "mm": [2.0, 3.0, 4.0]}
    assert facts["labels"] == [{"id": 1, "name": "[bold]spleen", "cases": 3, "voxels": 1176, "share": 1.0}]
    assert facts["channels"][0]["modality"] == "CT"
    assert facts["recipe"]["split"] == {"folds": 3, "fold": 0}


def test_a_recipe_is_not_replaced_unless_asked(
    data: Path, arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["plan", str(data), "--arch", arch]
    assert main(command) == 0
    before = Path("recipe.toml").read_text()
    assert main([*command, "--steps", "7"]) == 1
    assert "recipe.toml is there already; name another with --out" in capsys.readouterr().err
    assert Path("recipe.toml").read_text() == before
    assert main([*command, "--steps", "7", "--force"]) == 0
    assert read_recipe("recipe.toml").training.steps == 7


def test_unchanged_cases_are_not_read_again(
    data: Path, arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.toml"
    first = write_plan(data, out, arch).found

    def never(path: Path) -> Volume:
        raise AssertionError(path)

    monkeypatch.setattr("hilum_search.survey.read_volume", never)
    assert write_plan(data, out, arch, options=plan_cli.Options(force=True)).found == first
    (tmp_path / "a.survey.json").write_text("{")  # a survey that cannot be read is none
    with pytest.raises(AssertionError):
        write_plan(data, out, arch, options=plan_cli.Options(force=True))


def test_all_bad_cases_are_named(data: Path, arch: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "imagesTr/s0_0000.nii.gz").unlink()
    (data / "labelsTr/s2.nii.gz").write_bytes(b"rubbish")
    with pytest.raises(BadCasesError, match=r"no imagesTr/s0_0000.nii.gz.*the first of 2"):
        write_plan(data, tmp_path / "a.toml", arch)
    assert "labelsTr/s2.nii.gz: This is no volume" in capsys.readouterr().err
    assert not (tmp_path / "a.toml").exists()
    with pytest.raises(DataError, match="no folder"):
        write_plan(tmp_path / "nowhere", tmp_path / "a.toml", arch)


def test_help_shows_an_example() -> None:
    answer = RUNNER.invoke(plan_app, ["--help"])
    assert "Example: hilum plan" in answer.output


def test_examples_of_the_docstrings() -> None:
    found = doctest.testmod(plan_cli)
    assert found.attempted > 0 and found.failed == 0


@pytest.mark.sample
def test_a_plan_for_the_real_series(arch: str, tmp_path: Path) -> None:
    """One patient, twenty thin planes: a DICOM series beside its NIfTI reference."""
    try:
        sample = fetch_sample(Path(__file__).parents[2] / ".samples")
    except SampleError as error:
        pytest.skip(f"the real CT sample is not there: {error.message}")
    case = tmp_path / "data" / "one"
    case.mkdir(parents=True)
    (case / "ct").symlink_to(sample.series)
    (case / "reference.nii.gz").symlink_to(sample.series_labels)
    planned = write_plan(tmp_path / "data", tmp_path / "a.toml", arch)
    [found] = planned.found.cases
    assert (found.shape, found.orientation, found.channels[0].whole[0]) == ((512, 512, 20), "LPS", -1024)
    assert found.voxels[5] == 366_708  # the liver: 699 ml
    recipe = read_recipe(planned.path)
    assert recipe.preprocessing.geometry.spacing == (0.9765625, 0.9765625, 2.0)
    assert recipe.file.channels[0].modality == "CT"
    assert len(recipe.labels) == 31
