from __future__ import annotations

import copy
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hilum_nnunet import NORMAL, RESIDUAL, architecture, dataset, make_results, plans, write_case, write_scene

from hilum_export import imported, nnunet_import
from hilum_export.imported import Foreign, ImportRefusedError, Judge, compare
from hilum_export.nnunet_import import read_results
from hilum_inference.manifest import Percentile, Window, ZScore
from hilum_search.network import Network

AFFINE = np.diag([-1.0, 1.25, 1.5, 1.0])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two folds on CT."""
    with pytest.MonkeyPatch.context() as patch:
        yield make_results(tmp_path_factory.mktemp("results"), patch, plans(), dataset(), folds=2)


@pytest.fixture
def changed(results: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(results, tmp_path / "changed"))


def agrees(foreign: Foreign, images: list[Path]) -> bool:
    """Beside nnU-Net's predictor that sums in float32: here not one voxel differed, on every plan below."""
    exact = dataclasses.replace(foreign, judges=foreign.judges[1:])
    return compare(exact, images)[-1].passed


def refusal(folder: Path, **arguments: Any) -> str:
    with pytest.raises(ImportRefusedError) as caught:
        read_results(folder, **arguments)
    return caught.value.message


def edit(folder: Path, file: str, change: Any) -> None:
    path = folder / file
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_the_plans_become_a_manifest(results: Path) -> None:
    foreign = read_results(results)
    manifest = foreign.manifest
    assert (manifest.name, manifest.folds, manifest.way_back) == ("dataset007_tiny", 2, "logits")
    assert [(label.name, label.id) for label in manifest.labels] == [("liver", 1), ("spleen", 2)]
    geometry = manifest.geometry
    assert (geometry.orientation, geometry.axes, geometry.spacing) == ("native", (2, 1, 0), (1.5, 1.25, 1.0))
    assert (geometry.order, geometry.order_z, geometry.separate_z, geometry.align) == (3, 0, "auto", "edges")
    assert (manifest.crop.kind, manifest.crop.grid, manifest.crop.margin_mm) == ("non-zero", 1, 0)
    assert manifest.intensity.stage == "before-resampling"
    assert manifest.intensity_steps(0)[1] == ZScore(mean=NORMAL["mean"], sd=NORMAL["std"])
    windows = manifest.windows
    assert (windows.size, windows.overlap, windows.placement, windows.weights) == ((16,) * 3, 0.5, "nnunet", "nnunet")
    assert manifest.flips == ()
    assert foreign.origin["trainer"] == "nnUNetTrainer"


def test_the_folds_are_one_network_whose_head_is_split_off(results: Path) -> None:
    network = read_results(results).network
    assert isinstance(network, Network)
    assert (network.head.in_channels, network.head.out_channels) == (2 * 6, 3)
    names = set(network.state_dict())
    assert not any("seg_layers" in name or "decoder.encoder" in name for name in names)
    values = list(network.state_dict().values())
    assert len({value.data_ptr() for value in values}) == len(values)


def test_the_mask_is_nnunets(results: Path, tmp_path: Path) -> None:
    images = write_case(tmp_path, AFFINE)
    assert agrees(read_results(results), images)
    one = read_results(results, folds=("1",), flips=True)
    assert (one.manifest.folds, len(one.manifest.flips)) == (1, 7)
    assert agrees(one, images)


def test_nnunet_as_it_is_comes_first(results: Path, tmp_path: Path) -> None:
    tried = compare(read_results(results), write_case(tmp_path, AFFINE))
    assert [agreement.judge for agreement in tried] == ["nnU-Net", "nnU-Net, sums in float32"][: len(tried)]
    assert tried[-1].passed
    assert not any(agreement.passed for agreement in tried[:-1])


def anisotropic() -> dict[str, Any]:
    plan = plans(spacing=[5.0, 1.25, 1.25])
    return plan | {"transpose_forward": [1, 2, 0], "transpose_backward": [2, 0, 1]}


def two_channels(scheme: str) -> dict[str, Any]:
    plan = plans(normalization_schemes=[scheme] * 2, use_mask_for_norm=[False] * 2)
    return plan | {"foreground_intensity_properties_per_channel": {"0": NORMAL, "1": NORMAL}}


def masked() -> dict[str, Any]:
    plan = two_channels("ZScoreNormalization")
    plan["configurations"]["3d_fullres"]["use_mask_for_norm"] = [True, True]
    return plan


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], Any]] = {
    "coarse axis, transposed": (anisotropic(), dataset(), np.diag([-1.0, 5.0, 1.25, 1.0])),
    "coarse input": (plans(), dataset(), np.diag([-1.0, 1.25, 5.0, 1.0])),
    "residual encoder": (plans(architecture=architecture(RESIDUAL)), dataset(), AFFINE),
    "reoriented": (
        plans() | {"image_reader_writer": "NibabelIOWithReorient"},
        dataset(),
        np.array([[0, -1.25, 0, 5], [1.5, 0, 0, 3], [0, 0, -1.0, 7], [0, 0, 0, 1]]),
    ),
    "two channels": (two_channels("ZScoreNormalization"), dataset(channel_names={"0": "T1", "1": "T1"}), AFFINE),
    "inside a mask": (masked(), dataset(channel_names={"0": "T1", "1": "T2"}), AFFINE),
    "least to greatest": (plans(normalization_schemes=["RescaleTo01Normalization"]), dataset(), AFFINE),
    "regions": (
        plans(),
        dataset(labels={"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}, regions_class_order=[1, 2]),
        AFFINE,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_other_plans_give_nnunets_mask_too(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, data, affine = CASES[name]
    foreign = read_results(make_results(tmp_path, monkeypatch, plan, data))
    images = write_case(tmp_path, affine, channels=len(data["channel_names"]), skull=name == "inside a mask")
    assert agrees(foreign, images)


NNUNETS = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
LATER: dict[str, tuple[list[float], dict[str, Any], Any]] = {
    "another axis is coarse than the model's": ([3.6, 0.9, 0.9], {}, ((16, 64, 64), (3.6, 0.9, 0.9), (0, 0, 0))),
    "an axis apart by order": ([2.0, 0.9, 0.9], {"force_separate_z": True}, ((29, 64, 64), (2.0, 0.9, 0.9), (0, 0, 0))),
    "the image by nearest voxel": ([1.2] * 3, {"order": 0}, ((46, 46, 46), (1.25, 1.25, 1.25), (0, 0, 0))),
    "between slices after their splines": (
        [1.2] * 3,
        {"order_z": 1},
        ((46, 46, 14), (1.25, 1.25, 4.0), (0, 0, 0)),
    ),
    "oblique, three times as coarse and not more": ([2.0, 1.0, 1.0], {}, ((46, 46, 15), (1.0, 1.0, 3.0), (12, 7, -4))),
    "a sample halfway between two planes": ([1.0, 1.0, 1.0], {}, ((46, 46, 20), (1.0, 1.0, 3.85), (0, 0, 0))),
}
"""Spacing of the plans, how they resample, and an image that nnU-Net treats otherwise: (shape, mm, degrees)."""


@pytest.mark.parametrize("name", LATER)
def test_images_that_are_treated_otherwise_give_nnunets_mask_too(name: str, changed: Path, tmp_path: Path) -> None:
    """The case that an import is compared on need not show them, so that not one voxel may differ here."""
    spacing, resampling, (shape, have, turned) = LATER[name]
    rules = {
        "spacing": spacing,
        "resampling_fn_data_kwargs": NNUNETS | resampling,
        "resampling_fn_probabilities_kwargs": NNUNETS | resampling | {"order": 1},
    }
    edit(changed, "plans.json", lambda plan: plan["configurations"]["3d_fullres"].update(rules))
    foreign = read_results(changed)
    images = write_scene(tmp_path / "case_0000.nii.gz", shape, have, turned)
    exact = dataclasses.replace(foreign, judges=foreign.judges[1:])
    assert compare(exact, images)[-1].dice == {"liver": 1.0, "spleen": 1.0}


def test_regions_are_painted_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, data, _ = CASES["regions"]
    manifest = read_results(make_results(tmp_path, monkeypatch, plan, data)).manifest
    assert (manifest.output, manifest.region_order) == ("sigmoid-regions", (1, 2))
    assert [label.name for label in manifest.labels] == ["whole", "core"]


def test_channels_of_one_name_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, data, _ = CASES["two channels"]
    manifest = read_results(make_results(tmp_path, monkeypatch, plan, data)).manifest
    assert [(channel.name, channel.modality) for channel in manifest.channels] == [("T1", "MR"), ("T1-2", "MR")]


def test_other_normalisations(changed: Path) -> None:
    def scheme(name: str) -> tuple[Any, ...]:
        edit(changed, "plans.json", lambda p: p["configurations"]["3d_fullres"].update(normalization_schemes=[name]))
        return read_results(changed).manifest.intensity_steps(0)

    assert scheme("NoNormalization") == ()
    assert scheme("RGBTo01Normalization") == (Window(low=0, high=255, clip=False),)
    assert scheme("RescaleTo01Normalization") == (Percentile(lower=0, upper=100, clip=False),)


def test_a_mask_that_differs_is_refused_with_label_and_figure(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = read_results(results)
    wrong = foreign.manifest.geometry.model_copy(update={"spacing": (1.0, 1.5, 1.5)})
    spoilt = dataclasses.replace(foreign, manifest=foreign.manifest.model_copy(update={"geometry": wrong}))
    published: list[object] = []
    monkeypatch.setattr(imported, "export", lambda *_: published.append(1))
    with pytest.raises(ImportRefusedError, match=r"agree on '(liver|spleen)' with Dice 0\.\d{5} only, 0.999"):
        imported.publish_import(spoilt, write_case(tmp_path, AFFINE), tmp_path / "models")
    assert published == []
    assert not (tmp_path / "models").exists()


def test_a_case_without_any_label_proves_nothing(results: Path, tmp_path: Path) -> None:
    foreign = read_results(results)
    assert foreign.network.head.bias is not None
    with torch.no_grad():
        foreign.network.head.bias[0] = 1e6
    empty = Judge("nnU-Net", lambda _: np.zeros((30, 26, 22), np.uint16))
    with pytest.raises(ImportRefusedError, match="Neither nnU-Net nor Hilum finds a label"):
        compare(dataclasses.replace(foreign, judges=(empty,)), write_case(tmp_path, AFFINE))


class Opens:
    """What a hostile pickle does."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


def test_a_pickle_that_runs_something_is_not_run(changed: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = changed / "fold_0" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    torch.save(content | {"logging": Opens(f"touch {marker}")}, path)
    assert "holds more than tensors and numbers" in refusal(changed)
    assert not marker.exists()


@pytest.mark.parametrize("file", ["plans.json", "dataset.json"])
def test_a_missing_or_torn_file(changed: Path, file: str) -> None:
    (changed / file).write_text("{")
    assert f"{file} in changed is no JSON" in refusal(changed)
    (changed / file).unlink()
    assert f"changed has no {file}" in refusal(changed)


def test_a_missing_fold(changed: Path) -> None:
    assert "no fold_4/checkpoint_final.pth" in refusal(changed, folds=("4",))
    assert "no fold_../../x/checkpoint_final.pth" in refusal(changed, folds=("../../x",))
    shutil.rmtree(changed / "fold_1")
    assert read_results(changed).manifest.folds == 1
    shutil.rmtree(changed / "fold_0")
    assert "no folder of a fold, such as fold_0 or fold_all" in refusal(changed)
    (changed / "fold_all").mkdir()
    assert "no fold_all/checkpoint_final.pth" in refusal(changed)


def test_a_fold_that_lies_elsewhere(changed: Path, results: Path) -> None:
    path = changed / "fold_0" / "checkpoint_final.pth"
    path.unlink()
    path.symlink_to(results / "fold_0" / "checkpoint_final.pth")
    assert "points outside changed" in refusal(changed)


def test_the_best_checkpoint_stands_in(changed: Path) -> None:
    for fold in changed.glob("fold_*"):
        (fold / "checkpoint_final.pth").rename(fold / "checkpoint_best.pth")
    assert read_results(changed).manifest.folds == 2


def test_folds_that_do_not_belong_together(changed: Path) -> None:
    path = changed / "fold_1" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    torch.save(content | {"trainer_name": "nnUNetTrainer_5epochs"}, path)
    assert refusal(changed) == "The folds differ in their trainer; they are no ensemble."


def rename(folder: Path, trainer: str) -> None:
    for path in folder.glob("fold_*/checkpoint_final.pth"):
        torch.save(torch.load(path, weights_only=False) | {"trainer_name": trainer}, path)


def test_a_trainer_with_a_network_of_its_own(changed: Path) -> None:
    rename(changed, "nnUNetTrainerBN")
    assert "nnUNetTrainerBN builds a network of its own" in refusal(changed)
    rename(changed, "nnUNetTrainer_of_somebody")
    assert read_results(changed).origin["trainer"] == "nnUNetTrainer_of_somebody"


def test_something_else_than_a_checkpoint(changed: Path) -> None:
    torch.save({"weights": torch.zeros(1)}, changed / "fold_0" / "checkpoint_final.pth")
    assert refusal(changed) == "fold_0/checkpoint_final.pth is no checkpoint of nnU-Net v2."


def test_a_wrong_number_of_classes(changed: Path) -> None:
    edit(changed, "dataset.json", lambda d: d["labels"].update(kidney=3))
    assert "do not fit the network of plans.json with 4 outputs" in refusal(changed)


def test_labels_that_are_a_list(changed: Path) -> None:
    edit(changed, "dataset.json", lambda d: d.update(labels=["liver"]))
    assert "is not as nnU-Net writes it" in refusal(changed)


def test_labels_with_a_gap(changed: Path) -> None:
    edit(changed, "dataset.json", lambda d: d["labels"].update(spleen=5))
    assert refusal(changed) == "The labels of dataset.json must be 1, 2, 3 and so on; they are [1, 5]."


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "cascade": ({"previous_stage": "3d_lowres"}, "second stage of a cascade"),
    "planes": ({"patch_size": [16, 16]}, "segments planes"),
    "preprocessor": ({"preprocessor_name": "NoPreprocessor"}, "preprocessor 'NoPreprocessor'"),
    "normalisation": ({"normalization_schemes": ["Mine"]}, "normalisation 'Mine'"),
    "resampling": ({"resampling_fn_data": "resample_torch"}, "resampling_fn_data 'resample_torch'"),
    "way back": ({"resampling_fn_probabilities_kwargs": {"order": 0}}, "otherwise than linearly"),
    "channels": ({"normalization_schemes": ["NoNormalization"] * 2}, "is not as nnU-Net writes it"),
    "sizes": ({"patch_size": ["a", 16, 16]}, "is not as nnU-Net writes it"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_plans_that_cannot_be_expressed(changed: Path, name: str) -> None:
    change, message = CHANGES[name]
    edit(changed, "plans.json", lambda p: p["configurations"]["3d_fullres"].update(change))
    assert message in refusal(changed)


def test_plans_that_name_code(changed: Path, tmp_path: Path) -> None:
    found = copy.deepcopy(json.loads((changed / "plans.json").read_text()))
    network = found["configurations"]["3d_fullres"]["architecture"]
    network["network_class_name"] = "subprocess.Popen"
    (changed / "plans.json").write_text(json.dumps(found))
    assert "The network 'subprocess.Popen' is none that can be imported" in refusal(changed)
    network.update(architecture("dynamic_network_architectures.architectures.unet.PlainConvUNet"))
    network["arch_kwargs"]["nonlin"] = "os.system"
    (changed / "plans.json").write_text(json.dumps(found))
    assert "nonlin of the network 'os.system'" in refusal(changed)
    edit(changed, "plans.json", lambda p: p.update(image_reader_writer="../../evil"))
    edit(changed, "plans.json", lambda p: p["configurations"]["3d_fullres"].update(architecture=plans_architecture()))
    assert "The reader '../../evil'" in refusal(changed)


def plans_architecture() -> dict[str, Any]:
    found: dict[str, Any] = plans()["configurations"]["3d_fullres"]["architecture"]
    return found


@pytest.mark.parametrize("wrong", [[], {}, {"n_stages": 2, "nonlin": 3}])
def test_arguments_of_the_network_that_are_none(changed: Path, wrong: object) -> None:
    found = json.loads((changed / "plans.json").read_text())
    found["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"] = wrong
    (changed / "plans.json").write_text(json.dumps(found))
    with pytest.raises(ImportRefusedError):
        read_results(changed)


def test_an_unknown_configuration(changed: Path) -> None:
    edit(changed, "plans.json", lambda p: p["configurations"].update(other=p["configurations"].pop("3d_fullres")))
    assert "holds no configuration that can be used" in refusal(changed)


def test_an_ending_that_leaves_the_folder_is_not_followed(changed: Path, tmp_path: Path) -> None:
    edit(changed, "dataset.json", lambda d: d.update(file_ending="/../../../evil.nii.gz"))
    assert agrees(read_results(changed), write_case(tmp_path, AFFINE))
    assert not list(tmp_path.rglob("*evil*"))


def test_nnunet_missing(changed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [name for name in sys.modules if name.partition(".")[0] == "nnunetv2"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "nnunetv2", None)
    assert "needs the package nnunetv2 (pip install" in refusal(changed)


def test_a_case_that_nnunet_cannot_read(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_case(tmp_path, AFFINE)
    foreign = read_results(results)
    with pytest.raises(ImportRefusedError, match="nnU-Net cannot segment this case"):
        foreign.judges[0].answer([tmp_path / "missing.nii.gz"])
    assert nnunet_import.is_results(results)
    assert not nnunet_import.is_results(images[0].parent)
