from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hilum_bundle import config, make_bundle
from hilum_nnunet import write_case

from hilum_export.bundle import inference_config, metadata, write_bundle, write_torchscript
from hilum_export.errors import ExportError, GateError
from hilum_export.monai_import import read_bundle
from hilum_inference.io import read_volume
from hilum_inference.manifest import (
    Clip,
    Crop,
    Geometry,
    Intensity,
    Label,
    Manifest,
    Percentile,
    PostProcessing,
    Window,
    ZScore,
)
from hilum_inference.pipeline import Segmenter
from hilum_inference.repository import Model
from hilum_search.metrics import dice
from hilum_search.network import Network
from hilum_search.torch_engine import TorchEngine
from hilum_search.trained import Trained

REQUIRED = (
    "schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version", "required_packages_version",
    "task", "description", "authors", "copyright", "network_data_format",
)  # fmt: skip
"""Keys of metadata.json that MONAI's schema asks for."""
WITHOUT_TIES = np.diag([-1.0, 1.2, 1.6, 1.0])


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> tuple[Network, Manifest]:
    """A network that sees bright blobs, and its rules."""
    foreign = read_bundle(make_bundle(tmp_path_factory.mktemp("taught") / "tiny", config()))
    return foreign.network, foreign.manifest


def changed(manifest: Manifest, **changes: Any) -> Manifest:
    return Manifest.model_validate(manifest.model_dump() | changes)


def run_in_monai(folder: Path, affine: Any) -> tuple[Path, Path]:
    """Image and mask of a case, the mask made by monai.bundle alone."""
    import monai.bundle

    (folder / "data").mkdir()
    (image,) = write_case(folder / "data", affine)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workflow = monai.bundle.create_workflow(
            config_file=str(folder / "configs" / "inference.json"),
            workflow_type="infer",
            logging_file=False,
            bundle_root=str(folder),
        )
        assert workflow.check_properties() == []
        workflow.run()
        workflow.finalize()
    (mask,) = (folder / "eval").glob("*.nii.gz")
    return image, mask


CASES: dict[str, dict[str, Any]] = {
    "probabilities back": {},
    "logits back": {"way_back": "logits"},
    "labels back, largest part": {
        "way_back": "labels",
        "post_processing": PostProcessing(largest_component=("liver",)),
    },
    "axes in another order": {"geometry": Geometry(orientation="RPI", axes=(2, 0, 1), spacing=(1.5, 2.0, 1.5))},
    "rules before spacing": {
        "intensity": Intensity(steps=((Clip(low=-57, high=200), Window(low=-57, high=200)),), stage="before-resampling")
    },
    "other ids": {"labels": (Label(name="liver", id=7), Label(name="spleen", id=300))},
    "percentiles": {"intensity": Intensity(steps=((Percentile(),),))},
    "z-score": {"intensity": Intensity(steps=((ZScore(scope="volume"), ZScore(mean=-0.5, sd=3)),))},
    "as stored": {"geometry": Geometry(orientation="native")},
}


@pytest.mark.parametrize("name", CASES)
def test_the_bundle_runs_in_monai_and_gives_our_mask(
    name: str, network: tuple[Network, Manifest], trained: Trained, tmp_path: Path
) -> None:
    manifest = changed(network[1], **CASES[name])
    model = Trained(trained.architecture, network[0], manifest, trained.training)
    folder = write_bundle(model, manifest, tmp_path / "bundle")
    image, mask = (read_volume(path) for path in run_in_monai(folder, WITHOUT_TIES))
    assert mask.grid.close_to(image.grid)
    segmenter = Segmenter(Model(manifest, 0, Path(), Path(), ""), TorchEngine(manifest, network[0]))
    ours = segmenter.segment(image).labels
    ids = [label.id for label in manifest.labels]
    found = [score for score in dice(ours, mask.array[0], ids).values() if not np.isnan(score)]
    assert found and min(found) >= 0.999
    assert set(np.unique(mask.array[0])) <= {0, *ids}


def test_what_lies_in_the_bundle(trained: Trained, tmp_path: Path) -> None:
    folder = write_bundle(trained, trained.manifest, tmp_path / "deep" / "bundle")
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == [
        "LICENSE", "configs/inference.json", "configs/metadata.json", "docs/README.md", "models/model.ts",
    ]  # fmt: skip
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]
    told = json.loads((folder / "configs" / "metadata.json").read_text())
    assert not set(REQUIRED) - set(told)
    inputs, outputs = (told["network_data_format"][side] for side in ("inputs", "outputs"))
    assert (inputs["image"]["num_channels"], inputs["image"]["channel_def"]) == (2, {"0": "t1", "1": "t2"})
    assert outputs["pred"]["channel_def"] == {"0": "background", "1": "lesion"}
    assert (
        "one folder a case, with one NIfTI file a channel; by name: t1, t2" in (folder / "docs/README.md").read_text()
    )


def test_monais_own_check_of_shapes(trained: Trained, tmp_path: Path) -> None:
    from monai.bundle import verify_net_in_out

    folder = write_bundle(trained, trained.manifest, tmp_path / "bundle")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        verify_net_in_out(
            net_id="network_def",
            meta_file=str(folder / "configs" / "metadata.json"),
            config_file=str(folder / "configs" / "inference.json"),
            bundle_root=str(folder),
            device="cpu",
        )


def test_the_network_runs_without_hilum(trained: Trained, tmp_path: Path) -> None:
    folder = write_bundle(trained, trained.manifest, tmp_path / "bundle")
    program = (
        "import sys, torch\n"
        f"net = torch.jit.load({str(folder / 'models' / 'model.ts')!r})\n"
        "print(tuple(net(torch.zeros(3, 2, 16, 16, 8)).shape), any('hilum' in name for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(3, 2, 16, 16, 8) False"


REFUSED: dict[str, dict[str, Any]] = {
    "cropped first (body)": {"crop": Crop(kind="body")},
    "as nnU-Net places them": {"windows": {"size": (16, 16, 16), "placement": "nnunet"}},
    "also seen mirrored": {"flips": ((0,),)},
    "outer faces": {"geometry": Geometry(spacing=(1, 1, 1), align="edges")},
    "cubic spline": {"geometry": Geometry(spacing=(1, 1, 1), order=3)},
    "apart from the others": {"geometry": Geometry(spacing=(1, 1, 1), separate_z="auto")},
    "another order": {"geometry": Geometry(orientation="native", axes=(2, 1, 0))},
    "from a mask": {"intensity": Intensity(steps=((ZScore(scope="mask"),),))},
    "takes its figures from a mask": {
        "intensity": Intensity(steps=((ZScore(scope="filled"),),), stage="before-resampling")
    },
    "a range that falls": {"intensity": Intensity(steps=((Window(low=0, high=9, out_low=1, out_high=0),),))},
    "painted in an order": {"output": "sigmoid-regions", "region_order": (1, 2), "way_back": "labels"},
    "by their volume": {"post_processing": PostProcessing(smallest_ml=1)},
    "interactive": {"task": "interactive"},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_monai_cannot_do_is_refused(reason: str, network: tuple[Network, Manifest]) -> None:
    with pytest.raises(ExportError, match=r"cannot be a MONAI Bundle") as caught:
        inference_config(changed(network[1], **REFUSED[reason]))
    assert reason in caught.value.message


def test_different_rules_for_channels_are_refused(trained: Trained) -> None:
    steps = ((ZScore(scope="volume"),), (Window(low=0, high=1),))
    with pytest.raises(ExportError, match="channels have different intensity rules"):
        inference_config(changed(trained.manifest, intensity=Intensity(steps=steps)))


def test_a_folder_that_is_there_is_left_alone(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with pytest.raises(ExportError, match="is there already"):
        write_bundle(trained, trained.manifest, tmp_path / "bundle")
    assert not list((tmp_path / "bundle").iterdir())


def test_a_script_that_answers_differently_is_refused(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = torch.jit.load

    def wrong(*arguments: Any, **others: Any) -> Any:
        script = load(*arguments, **others)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            next(script.parameters()).mul_(1.5)
        return script

    monkeypatch.setattr(torch.jit, "load", wrong)
    with pytest.raises(GateError, match="TorchScript failed a check"):
        write_bundle(trained, trained.manifest, tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def test_any_batch_passes_through_the_script(trained: Trained, tmp_path: Path) -> None:
    assert write_torchscript(trained.network, trained.manifest, tmp_path / "model.ts").passed


def test_an_untold_licence_is_told_so(trained: Trained, tmp_path: Path) -> None:
    assert metadata(trained.manifest)["copyright"] == ""
    folder = write_bundle(trained, trained.manifest, tmp_path / "bundle")
    assert (folder / "LICENSE").read_text() == "Who trained this model did not tell its licence.\n"
