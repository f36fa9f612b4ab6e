from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hilum_bundle import SEGRESNET, config, make_bundle
from hilum_dicom import write_series
from hilum_nnunet import dataset, make_results, plans, write_case
from typer.testing import CliRunner

from hilum_export.errors import ExportError
from hilum_export.import_cli import import_app
from hilum_export.imported import SMALLEST_DICE
from hilum_inference.errors import HilumError
from hilum_inference.head import Labels
from hilum_inference.io import read_volume, write_volume
from hilum_inference.local import LocalClient
from hilum_search.metrics import dice

AFFINE = np.diag([-1.0, 1.25, 1.5, 1.0])


def invoke(*arguments: object) -> str:
    done = CliRunner().invoke(import_app, [str(argument) for argument in arguments])
    if done.exception is not None:
        raise done.exception
    return done.output


def agree(ours: Labels, theirs: Labels) -> bool:
    """Whether every label that one of both holds has the Dice that an import asks for."""
    found = [score for score in dice(ours, theirs, [1, 2]).values() if not np.isnan(score)]
    return bool(found) and min(found) >= SMALLEST_DICE


def test_an_nnunet_results_folder_is_published_and_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hilum_export.nnunet_import import read_results

    results = make_results(tmp_path, monkeypatch, plans(), dataset(), folds=2)
    (image,) = write_case(tmp_path, AFFINE)
    told = invoke(results, "-r", tmp_path / "models", "--image", image, "--name", "tiny")
    assert "between nnU-Net" in told
    assert told.endswith("models/tiny/1\n")
    mask = LocalClient([tmp_path / "models"]).segment(image).segmentation.labels
    theirs = read_results(results).judges[-1].answer([image])
    assert agree(mask, theirs)
    record = json.loads((tmp_path / "models" / "tiny" / "1" / "training.json").read_text())["imported"]
    assert (record["from"], record["folds"], record["configuration"]) == ("nnU-Net", 2, "3d_fullres")
    assert min(score for score in record["dice"].values() if score is not None) >= SMALLEST_DICE
    card = (tmp_path / "models" / "tiny" / "1" / "card.md").read_text()
    assert "| imported from | nnU-Net 2.8.1, PlainConvUNet; on one case its mask and ours agreed with Dice " in card
    assert "0 CPU seconds" not in card


def test_a_bundle_is_published_and_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hilum_export import export
    from hilum_export.checks import Checked, Subject, check
    from hilum_export.monai_import import read_bundle

    seen: list[Subject] = []

    def watched(subject: Subject, *others: Any) -> Checked:
        seen.append(subject)
        return check(subject, *others)

    monkeypatch.setattr(export, "check", watched)
    bundle = make_bundle(tmp_path / "tiny", config(SEGRESNET))
    (image,) = write_case(tmp_path, AFFINE)
    told = invoke(bundle, "--repository", tmp_path / "models", "--image", image)
    assert "between MONAI and Hilum" in told
    assert [subject.real is not None for subject in seen] == [True, True]
    real = seen[1].real
    assert real is not None
    assert real.shape == (2, 1, 16, 16, 16)
    assert 0 <= real.min() < real.max() <= 1  # the case behind the bundle's window
    assert real.max() > 0.75  # its bright blob
    done = LocalClient([tmp_path / "models"]).segment(image, out=tmp_path / "mask.nii.gz")
    assert done.model == "tiny-ct-segmentation"
    mask = read_volume(tmp_path / "mask.nii.gz").array[0]
    assert agree(mask, read_bundle(bundle).judges[0].answer([image]))


@pytest.mark.parametrize("kind", ["series", "nrrd"])
def test_a_case_that_is_no_nifti_is_compared_in_one_file(kind: str, tmp_path: Path) -> None:
    """MONAI orders the slices of a series the other way round, and reads no NRRD without more packages."""
    bundle = make_bundle(tmp_path / "tiny", config(SEGRESNET))
    (image,) = write_case(tmp_path, AFFINE)
    volume = read_volume(image)
    case = tmp_path / ("case.nrrd" if kind == "nrrd" else "case")
    if kind == "nrrd":
        write_volume(case, volume)
    else:
        write_series(case, volume.array[0] + np.int16(1000), PixelSpacing=[1.25, 1.0])
    told = invoke(bundle, "--repository", tmp_path / "models", "--image", case)
    assert "liver: Dice 1.0" in told or "liver: Dice 0.999" in told
    (model,) = LocalClient([tmp_path / "models"]).models()
    assert model["dice_gate"] == "compared"


def test_a_bundle_has_no_folds(tmp_path: Path) -> None:
    (tmp_path / "bundle" / "configs").mkdir(parents=True)
    for switch in (("--flips",), ("--fold", "0")):
        with pytest.raises(ExportError, match="are for nnU-Net"):
            invoke(tmp_path / "bundle", "-r", tmp_path / "models", "--image", "case.nii.gz", *switch)


def test_something_else_is_refused_and_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(HilumError, match="neither a MONAI Bundle"):
        invoke(tmp_path, "-r", tmp_path / "models", "--image", "case.nii.gz")
    assert not (tmp_path / "models").exists()


def test_a_repository_that_cannot_be_one_is_refused_first(tmp_path: Path) -> None:
    bundle = tmp_path / "models" / "bundle"
    (bundle / "configs").mkdir(parents=True)
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "models"):
        with pytest.raises(ExportError, match="file is a file; a model repository is a folder"):
            invoke(bundle, "-r", place, "--image", "case.nii.gz")
    with pytest.raises(ExportError, match="which holds published models only"):
        invoke(bundle, "-r", tmp_path / "models", "--image", "case.nii.gz")


def test_a_case_is_required(tmp_path: Path) -> None:
    done = CliRunner().invoke(import_app, [str(tmp_path), "-r", str(tmp_path / "models")])
    assert done.exit_code == 2
    assert "--image" in done.output
