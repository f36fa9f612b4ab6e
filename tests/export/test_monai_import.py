from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hilum_bundle import SEGRESNET, UNET, config, make_bundle, metadata
from hilum_nnunet import write_case
from safetensors.torch import save_file

from hilum_export.imported import ImportRefusedError, compare
from hilum_export.monai_import import read_bundle
from hilum_inference.manifest import Percentile, Window, ZScore

AFFINE = np.diag([-1.0, 1.25, 1.5, 1.0])
OBLIQUE = np.array([[0, -1.25, 0, 5], [1.5, 0, 0, 3], [0, 0, -1.0, 7], [0, 0, 0, 1]])
WITHOUT_TIES = np.diag([-1.0, 1.2, 1.6, 1.0])
Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny", config())


@pytest.fixture
def changed(bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(bundle, tmp_path / "changed"))


def edit(folder: Path, change: Change, file: str = "inference") -> Path:
    path = folder / "configs" / f"{file}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(ImportRefusedError) as caught:
        read_bundle(folder)
    return caught.value.message


def before(name: str, **arguments: Any) -> Change:
    """Another intensity rule in the place of the window."""
    given = {"_target_": f"{name}d", "keys": "image", **arguments}
    return lambda c: c["preprocessing"]["transforms"].__setitem__(4, given)


def labels_back(c: dict[str, Any]) -> None:
    steps = c["postprocessing"]["transforms"]
    steps[1], steps[2] = steps[2], steps[1]
    steps[2].pop("nearest_interp")
    steps.insert(2, {"_target_": "KeepLargestConnectedComponentd", "keys": "pred", "applied_labels": [1, 2]})


def no_softmax(c: dict[str, Any]) -> None:
    c["postprocessing"]["transforms"].pop(0)


def before_spacing(c: dict[str, Any]) -> None:
    steps = c["preprocessing"]["transforms"]
    steps[3], steps[4] = steps[4], steps[3]


def test_the_configuration_becomes_a_manifest(bundle: Path) -> None:
    foreign = read_bundle(bundle)
    manifest = foreign.manifest
    assert (manifest.name, manifest.title) == ("tiny-ct-segmentation", "Tiny CT segmentation")
    assert [(label.name, label.id) for label in manifest.labels] == [("liver", 1), ("spleen", 2)]
    assert (manifest.geometry.orientation, manifest.geometry.spacing) == ("RAS", (1.5, 1.5, 2.0))
    assert manifest.intensity_steps(0) == (Window(low=-57, high=200),)
    assert manifest.intensity.stage == "after-resampling"
    windows = manifest.windows
    assert (windows.size, windows.overlap, windows.placement, windows.weights) == ((16,) * 3, 0.5, "monai", "monai")
    assert manifest.way_back == "probabilities"
    assert foreign.origin["from"] == "MONAI"
    assert read_bundle(bundle, "Other Name").manifest.name == "other-name"


def masked(a_min: float, **changes: Any) -> Change:
    """A z-score of what is not 0, behind a window."""
    window = {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": a_min, "a_max": 200}
    window |= {"b_min": 0, "b_max": 1, "clip": True, **changes}
    score = {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True}
    return lambda c: c["preprocessing"]["transforms"].__setitem__(slice(4, 5), [window, score])


CASES: dict[str, tuple[Change, Any]] = {
    "as the zoo has it": (lambda c: None, AFFINE),
    "lying otherwise": (lambda c: None, OBLIQUE),
    "logits back": (no_softmax, AFFINE),
    "labels back, largest part": (labels_back, WITHOUT_TIES),
    "rule before spacing": (before_spacing, AFFINE),
    "z-score": (before("NormalizeIntensity", channel_wise=True), AFFINE),
    "percentiles": (before("ScaleIntensityRangePercentiles", lower=1, upper=99, b_min=0, b_max=1, clip=True), AFFINE),
    "least to greatest": (before("ScaleIntensity"), AFFINE),
    "z-score of what is not 0": (masked(20), AFFINE),
    "fixed z-score": (before("NormalizeIntensity", subtrahend=20, divisor=90), AFFINE),
    "constant weights": (lambda c: c["inferer"].pop("mode"), AFFINE),
    "windows larger than the case": (lambda c: c["inferer"].update(roi_size=[32, 16, 48]), AFFINE),
    "as stored": (lambda c: [c["preprocessing"]["transforms"].pop(2) for _ in range(2)], AFFINE),
}


@pytest.mark.parametrize("name", CASES)
def test_the_mask_is_monais(name: str, changed: Path, tmp_path: Path) -> None:
    change, affine = CASES[name]
    (agreement,) = compare(read_bundle(edit(changed, change)), write_case(tmp_path, affine))
    assert agreement.passed


def test_a_network_that_ends_in_a_pointwise_convolution_gives_its_head(tmp_path: Path) -> None:
    foreign = read_bundle(make_bundle(tmp_path / "segresnet", config(SEGRESNET)))
    assert (foreign.network.head.in_channels, foreign.network.head.out_channels) == (8, 3)
    (agreement,) = compare(foreign, write_case(tmp_path, AFFINE))
    assert agreement.passed


def test_another_network_is_the_body_and_its_head_changes_nothing(bundle: Path) -> None:
    head = read_bundle(bundle).network.head
    assert (head.in_channels, head.out_channels) == (3, 3)
    np.testing.assert_array_equal(head.weight.detach()[:, :, 0, 0, 0], np.eye(3))


def test_a_network_that_names_its_weights_twice(tmp_path: Path) -> None:
    deep: dict[str, Any] = {
        "_target_": "DynUNet",
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 3,
        "kernel_size": [3, 3, 3],
        "strides": [1, 2, 2],
        "upsample_kernel_size": [2, 2],
        "filters": [4, 8, 8],
    }
    foreign = read_bundle(make_bundle(tmp_path / "dynunet", config(deep)))
    state = foreign.network.state_dict()
    assert len({value.data_ptr() for value in state.values()}) == len(state)
    (agreement,) = compare(foreign, write_case(tmp_path, AFFINE))
    assert agreement.passed


def test_two_channels_with_a_mask(tmp_path: Path) -> None:
    two = config({**UNET, "in_channels": 2})
    two["preprocessing"]["transforms"].insert(
        5, {"_target_": "NormalizeIntensityd", "keys": ["image"], "nonzero": True, "channel_wise": True}
    )
    two["preprocessing"]["transforms"][3]["keys"] = ["image"]
    told = metadata()
    told["network_data_format"]["inputs"]["image"].update(num_channels=2, channel_def={"0": "T1", "1": "T2"})
    manifest = read_bundle(make_bundle(tmp_path / "two", two, told=told, steps=0)).manifest
    assert [channel.name for channel in manifest.channels] == ["T1", "T2"]
    assert manifest.intensity.steps == ((Window(low=-57, high=200), ZScore(scope="mask")),)
    assert (manifest.intensity.mask_threshold, manifest.intensity.outside) == (-57, 0.0)


def test_weights_in_safetensors_come_first(changed: Path) -> None:
    state = torch.load(changed / "models" / "model.pt", weights_only=True)
    save_file({key: value.contiguous() for key, value in state.items()}, changed / "models" / "model.safetensors")
    (changed / "models" / "model.pt").write_text("no weights")
    assert read_bundle(changed).network.head.out_channels == 3
    (changed / "models" / "model.safetensors").write_bytes(b"torn")
    assert "models/model.safetensors holds more than tensors, or is damaged" in refusal(changed)


def test_weights_wrapped_by_a_trainer(changed: Path) -> None:
    path = changed / "models" / "model.pt"
    state = {f"module.{key}": value for key, value in torch.load(path, weights_only=True).items()}
    torch.save({"epoch": 3, "state_dict": state}, path)
    assert read_bundle(changed).network.head.out_channels == 3


class Opens:
    """What a hostile pickle does."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


def test_a_pickle_that_runs_something_is_not_run(changed: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    torch.save({"state_dict": Opens(f"touch {marker}")}, changed / "models" / "model.pt")
    assert refusal(changed) == "models/model.pt holds more than tensors, or is damaged; it was not loaded."
    assert not marker.exists()


def test_an_expression_is_not_evaluated(changed: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    expression = f"$open({str(marker)!r}, 'w')"
    for change in (
        lambda c: c["network_def"].update(norm=expression),
        lambda c: c.update(spacing=[1.5, expression, 2.0]),
        lambda c: c["inferer"].update(overlap=expression),
        lambda c: c["postprocessing"]["transforms"][2].update(argmax=expression),
    ):
        folder = Path(shutil.copytree(changed, tmp_path / "spoilt"))
        assert "would have to be computed; only plain values are read" in refusal(edit(folder, change))
        shutil.rmtree(folder)
    assert not marker.exists()


REFUSED: dict[str, tuple[Change, str]] = {
    "file of another": (lambda c: c.update(spacing="%../../secret.json::spacing"), "would have to be computed"),
    "no such reference": (lambda c: c.pop("spacing"), "refers to @spacing, which is not there"),
    "circle": (lambda c: c.update(spacing="@spacing"), "in a circle"),
    "network of nobody": (lambda c: c["network_def"].update(_target_="os.system"), "network_def names os.system"),
    "module of nobody": (
        lambda c: c["network_def"].update(_target_="evil.nets.UNet"),
        "network_def names evil.nets.UNet",
    ),
    "object inside": (
        lambda c: c["network_def"].update(act={"_target_": "os.system"}),
        "no other object and no switch",
    ),
    "unknown argument": (lambda c: c["network_def"].update(colour=1), "UNet cannot be built"),
    "no network": (lambda c: c.pop("network_def"), "configs/inference.json has no network_def"),
    "classes": (lambda c: c["network_def"].update(out_channels=4), "do not fit network_def"),
    "transform": (before("CropForeground", source_key="image"), "The transform CropForegroundd cannot be expressed"),
    "argument": (before("ScaleIntensity", colour=1), "unexpected keyword argument 'colour'"),
    "nonzero of the image's own values": (before("NormalizeIntensity", nonzero=True), "keeps what is negative"),
    "nonzero behind a window that does not clip": (masked(0, clip=False), "keeps what is negative"),
    "nonzero behind a window from below 0": (masked(0, b_min=-1), "keeps what is negative"),
    "nonzero behind a window that falls": (masked(300), "a window begins below its end, not 300 to 200"),
    "network of wrong types": (lambda c: c["network_def"].update(channels={"a": 1}), "UNet cannot be built"),
    "after a mask": (
        lambda c: c["preprocessing"]["transforms"].__setitem__(
            slice(4, 5),
            [
                {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 0, "a_max": 9, "b_min": 0, "b_max": 1}
                | {"clip": True},
                {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True},
                {"_target_": "ScaleIntensityd", "keys": "image"},
            ],
        ),
        "nonzero must be asked in the last intensity rule",
    ),
    "no inferer": (lambda c: c["inferer"].update(_target_="SimpleInferer"), "must be a SlidingWindowInferer"),
    "regions": (
        lambda c: c["postprocessing"]["transforms"][0].update(softmax=False, sigmoid=True),
        "regions have no order",
    ),
    "no way back": (lambda c: c["postprocessing"]["transforms"].pop(1), "AsDiscrete with argmax, and Invert"),
    "both sides of spacing": (
        lambda c: c["preprocessing"]["transforms"].insert(3, {"_target_": "ScaleIntensityd", "keys": "image"}),
        "before and after Spacing",
    ),
    "spacing of three values": (lambda c: c.update(spacing=[1.5, 1.5]), "three lengths in mm, not [1.5, 1.5]"),
    "spacing that is to be kept": (
        lambda c: c.update(spacing=[1.5, 1.5, -1]),
        "three lengths in mm, not [1.5, 1.5, -1]",
    ),
    "no spacing at all": (lambda c: c.update(spacing=[1.5, 1.5, 0]), "three lengths in mm"),
    "absurd window": (lambda c: c["inferer"].update(roi_size=[16, 16, 15]), "does not answer one tensor of logits"),
    "overlap": (lambda c: c["inferer"].update(overlap=1.5), "overlap: Input should be less than 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_expressed(name: str, changed: Path) -> None:
    change, message = REFUSED[name]
    found = refusal(edit(changed, change))
    assert message in found
    assert "\n" not in found


def test_a_wrong_number_of_labels(changed: Path) -> None:
    def more(m: dict[str, Any]) -> None:
        m["network_data_format"]["outputs"]["pred"]["channel_def"]["3"] = "kidney"

    assert "answers 3 channels, configs/metadata.json names 4" in refusal(edit(changed, more, "metadata"))


@pytest.mark.parametrize("file", ["configs/inference.json", "configs/metadata.json", "models/model.pt"])
def test_a_missing_file(changed: Path, file: str) -> None:
    (changed / file).unlink()
    assert file in refusal(changed)


def test_torchscript_alone_is_refused(changed: Path) -> None:
    (changed / "models" / "model.pt").rename(changed / "models" / "model.ts")
    assert "TorchScript is code and is not read" in refusal(changed)


def test_weights_that_lie_elsewhere(changed: Path, bundle: Path) -> None:
    (changed / "models" / "model.pt").unlink()
    (changed / "models" / "model.pt").symlink_to(bundle / "models" / "model.pt")
    assert "points outside changed" in refusal(changed)


def test_torn_json(changed: Path) -> None:
    (changed / "configs" / "inference.json").write_text("{")
    assert "configs/inference.json in changed is no JSON" in refusal(changed)
    (changed / "configs" / "inference.json").write_text("[]")
    assert refusal(changed) == "configs/inference.json in changed must hold a JSON object."


WRONG_METADATA: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "no object": (("network_data_format",), [], "network_data_format in configs/metadata.json must be a JSON object"),
    "inputs": (("network_data_format", "inputs"), "image", "inputs in configs/metadata.json must be"),
    "labels": (("network_data_format", "outputs", "pred", "channel_def"), ["liver"], "outputs.pred.channel_def in"),
    "channels": (("network_data_format", "inputs", "image", "channel_def"), ["CT"], "inputs.image.channel_def in"),
    "count": (("network_data_format", "inputs", "image", "num_channels"), float("inf"), "cannot be read"),
    "too many": (("network_data_format", "inputs", "image", "num_channels"), 10**30, "must be 1 to 256"),
}


@pytest.mark.parametrize("name", WRONG_METADATA)
def test_metadata_of_wrong_types(name: str, changed: Path) -> None:
    keys, value, message = WRONG_METADATA[name]

    def put(m: dict[str, Any]) -> None:
        for key in keys[:-1]:
            m = m[key]
        m[keys[-1]] = value

    found = refusal(edit(changed, put, "metadata"))
    assert message in found
    assert "\n" not in found


def test_percentiles_are_read_with_monais_names(changed: Path) -> None:
    rule = before("ScaleIntensityRangePercentiles", lower=1, upper=99, b_min=-1, b_max=1)
    step = read_bundle(edit(changed, rule)).manifest.intensity_steps(0)[0]
    assert step == Percentile(lower=1, upper=99, out_low=-1, out_high=1, clip=False)
