"""The heart against the two reference libraries, and its promises: the input's own grid, progress, cancel, budget."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hilum_testing import Tiny, ensemble_of, manifest, phantom, publish_tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.inferers.utils import sliding_window_inference
from numpy.typing import NDArray

from hilum_inference.blend import weigh
from hilum_inference.engines import EngineSettings, open_engine
from hilum_inference.errors import CancelledError, EngineError, GeometryError, LimitError, MismatchError
from hilum_inference.manifest import Manifest
from hilum_inference.pipeline import Plan, Segmenter
from hilum_inference.volume import Volume
from hilum_inference.windows import weight_map

THREADS = EngineSettings(threads=1)


def _segmenter(folder: Path, described: Manifest, **how: Any) -> tuple[Segmenter, torch.nn.Module]:
    model, net = publish_tiny(folder, described, **how)
    return Segmenter(model, open_engine(model, THREADS)), net.eval()


def _windowed(image: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.clip((image.astype(np.float32) + 200) / 500, 0, 1))[None, None]


@pytest.mark.parametrize("with_head", [False, True], ids=["logits", "features"])
@pytest.mark.parametrize("shape", [(16, 16, 16), (40, 33, 25), (20, 50, 17), (9, 30, 16)])
def test_labels_equal_monais_sliding_window(tmp_path: Path, shape: tuple[int, int, int], with_head: bool) -> None:
    segmenter, net = _segmenter(tmp_path, manifest(), features=2, with_head=with_head)
    image = phantom(shape)
    with torch.no_grad():
        logits = sliding_window_inference(_windowed(image), (16, 16, 16), 1, net, overlap=0.5, mode="gaussian")
    expected = logits.argmax(1)[0].numpy()
    got = segmenter.segment(Volume.from_array(image)).labels
    assert len(np.unique(expected)) > 1
    assert (got != expected).sum() <= 1  # a voxel whose two best logits are equal to the last bit may fall either way


def test_labels_equal_nnunets_predictor(tmp_path: Path) -> None:
    nnunet = pytest.importorskip("nnunetv2.inference.predict_from_raw_data", reason="nnU-Net is not installed")
    rule = {"size": (16, 16, 16), "placement": "nnunet", "weights": "nnunet"}
    segmenter, net = _segmenter(tmp_path, manifest(windows=rule, flips=[[0], [2], [0, 2]]))
    image = phantom((40, 33, 25))
    predictor = nnunet.nnUNetPredictor(0.5, True, True, perform_everything_on_device=False, device=torch.device("cpu"))
    predictor.network = net
    predictor.list_of_parameters = [net.state_dict()]
    predictor.allowed_mirroring_axes = (0, 2)
    predictor.configuration_manager = type("Plan", (), {"patch_size": (16, 16, 16)})()
    predictor.label_manager = type("Labels", (), {"num_segmentation_heads": 3})()
    logits = predictor.predict_sliding_window_return_logits(_windowed(image)[0])
    expected = logits.float().argmax(0).numpy()
    got = segmenter.segment(Volume.from_array(image)).labels
    # nnU-Net sums in float16: where its two best logits lie within that rounding either may win.
    best = np.sort(logits.float().numpy(), axis=0)
    clear = best[-1] - best[-2] > 0.005 * np.abs(best).max()
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(got[clear], expected[clear])
    assert (got == expected).mean() > 0.99


def test_an_ensemble_is_one_network_with_features_and_heads_side_by_side(tmp_path: Path) -> None:
    members = [Tiny(1, 2, 6), Tiny(1, 2, 6)]
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in members[1].parameters():
            parameter.copy_(torch.randn_like(parameter))
    labels = [{"name": f"label {n}", "id": n} for n in range(1, 6)]
    model, _ = publish_tiny(tmp_path, manifest(labels=labels, folds=2), with_head=True, net=ensemble_of(*members))
    assert model.manifest.blends_features
    image = np.random.default_rng(0).normal(50, 150, (40, 33, 25)).astype(np.int16)
    with torch.no_grad():
        each = [
            sliding_window_inference(_windowed(image), (16, 16, 16), 1, net.eval(), overlap=0.5, mode="gaussian")
            for net in members
        ]
    expected = ((each[0] + each[1]) / 2).argmax(1)[0].numpy()
    got = Segmenter(model, open_engine(model, THREADS)).segment(Volume.from_array(image)).labels
    assert len(np.unique(expected)) > 2
    assert (got != expected).sum() <= 2


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    axes=st.permutations([0, 1, 2]),
    signs=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    spacing=st.tuples(*[st.floats(0.6, 4.0)] * 3),
    angle=st.floats(-0.5, 0.5),
    shape=st.tuples(st.integers(1, 30), st.integers(12, 40), st.integers(12, 40)),
    back=st.sampled_from(["labels", "logits"]),
    order=st.sampled_from([0, 1, 3]),
)
def test_any_grid_comes_back_as_it_was_with_structures_in_place(  # type: ignore[no-untyped-def]
    tmp_path_factory, axes, signs, spacing, angle, shape, back, order
) -> None:
    geometry = {"orientation": "RAS", "spacing": (1.5, 1.5, 1.5), "order": order}
    segmenter = _threshold_segmenter(tmp_path_factory.mktemp("m"), geometry=geometry, way_back=back)
    affine = np.eye(4)
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine[:3, :3] = rotation @ np.eye(3)[:, axes] * np.array(signs) * np.array(spacing)
    affine[:3, 3] = (-40, 25, 300)
    image = np.full(shape, -1000, np.int16)
    low, high = [n // 4 for n in shape], [max(n // 2 + 1, n // 4 + 1) for n in shape]
    image[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = 1000
    volume = Volume.from_array(image, affine)
    labels = segmenter.segment(volume).labels
    assert labels.shape == image.shape
    wanted = image > 0
    edge = _boundary(wanted, [int(np.ceil(1.5 / s)) for s in spacing])
    assert (labels.astype(bool) == wanted)[~edge].all()


def _boundary(mask: NDArray[np.bool_], reach: list[int]) -> NDArray[np.bool_]:
    """Voxels within reach (voxels on each axis) of the mask's surface: one voxel of the model's grid."""
    edge = np.zeros_like(mask)
    grown, shrunk = mask.copy(), mask.copy()
    for axis, n in enumerate(reach):
        for _ in range(n):
            grown |= np.roll(grown, 1, axis) | np.roll(grown, -1, axis)
            shrunk &= np.roll(shrunk, 1, axis) & np.roll(shrunk, -1, axis)
    edge[grown & ~shrunk] = True
    return edge


def _threshold_segmenter(folder: Path, **changes: Any) -> Segmenter:
    """A network whose logits are (-x, x - 1): label 1 where the windowed value is above a half."""
    described = manifest(labels=[{"name": "hard", "id": 7}], **changes)
    model, _ = publish_tiny(folder, described)

    class Threshold:
        precision = "f32"

        def run(self, batch: Any, output: Any = "logits") -> Any:
            return np.concatenate([0.5 - batch, batch - 0.5], axis=1)

        def run_weighted(self, batch: Any, output: Any = "logits", out: Any = None) -> Any:
            return weigh(self.run(batch), weight_map((16, 16, 16), "monai"), out)

        def ready(self) -> bool:
            return True

        def close(self) -> None: ...

    return Segmenter(model, Threshold())


def test_body_crop_leaves_the_outside_as_background_and_finds_the_body(tmp_path: Path) -> None:
    image = np.full((60, 64, 40), -1000, np.int16)
    image[20:44, 22:50, 5:33] = 500
    crop = {"kind": "body", "grid": 8, "margin_mm": 2}
    whole = _threshold_segmenter(tmp_path / "a").segment(Volume.from_array(image))
    cropped = _threshold_segmenter(tmp_path / "b", crop=crop).segment(Volume.from_array(image))
    np.testing.assert_array_equal(cropped.labels, whole.labels)
    assert cropped.plan.windows < whole.plan.windows


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SAR", "native"])
def test_four_channels_reach_the_network_in_order(tmp_path: Path, orientation: str) -> None:
    described = manifest(
        channels=[{"name": n, "modality": "MR"} for n in ("t1", "t1c", "t2", "flair")],
        geometry={"orientation": orientation},
    )
    segmenter, net = _segmenter(tmp_path, described)
    images = np.stack([phantom((20, 22, 24), seed) for seed in range(4)])
    assert segmenter.segment(Volume.from_array(images)).labels.shape == (20, 22, 24)
    if orientation == "RAS":
        windowed = torch.cat([_windowed(image)[0] for image in images])[None]
        with torch.no_grad():
            logits = sliding_window_inference(windowed, (16, 16, 16), 1, net, overlap=0.5, mode="gaussian")
        got = segmenter.segment(Volume.from_array(images)).labels
        assert (got != logits.argmax(1)[0].numpy()).sum() <= 1
    with pytest.raises(MismatchError, match=r"1 channel\(s\).*4: t1, t1c, t2, flair"):
        segmenter.segment(Volume.from_array(images[0]))


def test_progress_is_told_at_every_window_and_cancel_stops_between_two(tmp_path: Path) -> None:
    segmenter, _ = _segmenter(tmp_path, manifest())
    volume = Volume.from_array(phantom((40, 33, 25)))
    seen: list[tuple[int, int]] = []
    plans: list[Plan] = []
    plan = segmenter.segment(volume, lambda done, total: seen.append((done, total)), planned=plans.append).plan
    assert plans == [plan]
    assert seen == [(n + 1, plan.windows) for n in range(plan.windows)]
    assert segmenter.plan(volume).seconds is not None
    seen.clear()
    with pytest.raises(CancelledError):
        segmenter.segment(volume, lambda done, total: seen.append((done, total)), lambda: len(seen) >= 3)
    assert len(seen) == 3


def test_over_the_memory_budget_is_refused_before_anything_starts(tmp_path: Path) -> None:
    model, _ = publish_tiny(tmp_path, manifest())
    segmenter = Segmenter(model, open_engine(model, THREADS), memory_budget=1000)
    with pytest.raises(LimitError, match=r"needs .* MiB, the budget is 0\.0 MiB") as caught:
        segmenter.segment(Volume.from_array(phantom((40, 33, 25))))
    assert caught.value.code == "over_memory_budget"


def test_sheared_grids_are_refused(tmp_path: Path) -> None:
    segmenter, _ = _segmenter(tmp_path, manifest())
    affine = np.eye(4)
    affine[1, 2] = 0.2
    with pytest.raises(GeometryError, match="sheared"):
        segmenter.segment(Volume.from_array(phantom((20, 20, 20)), affine))


def test_a_network_that_answers_nan_gives_an_error_and_no_mask(tmp_path: Path) -> None:
    model, _ = publish_tiny(tmp_path, manifest())
    engine = open_engine(model, THREADS)
    honest = engine.run_weighted

    def broken(batch: Any, output: Any = "logits", out: Any = None) -> Any:
        answer = honest(batch, output, out)
        answer[0, 3, 3, 3, 1] = np.nan
        return answer

    engine.run_weighted = broken  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="not finite"):
        Segmenter(model, engine).segment(Volume.from_array(phantom((40, 33, 25))))


def test_the_same_input_gives_the_same_mask_whatever_the_batch(tmp_path: Path) -> None:
    volume = Volume.from_array(phantom((40, 33, 25)))
    one, _ = _segmenter(tmp_path / "1", manifest())
    four, _ = _segmenter(tmp_path / "4", manifest(windows={"size": (16, 16, 16), "batch": 4}))
    first = one.segment(volume).labels
    np.testing.assert_array_equal(first, one.segment(volume).labels)
    np.testing.assert_array_equal(first, four.segment(volume).labels)


@pytest.mark.parametrize("in_flight", [1, 2, 4, 100])
def test_several_batches_under_way_give_the_mask_of_one(tmp_path: Path, in_flight: int) -> None:
    model, _ = publish_tiny(tmp_path, manifest())
    engine = open_engine(model, THREADS)
    volume = Volume.from_array(phantom((40, 33, 25)))
    expected = Segmenter(model, engine).segment(volume)
    running: list[int] = []
    most: list[int] = []

    class Slow:
        precision = "f32"

        def __init__(self) -> None:
            self.in_flight = in_flight

        def run_weighted(self, batch: Any, output: Any = "logits", out: Any = None) -> Any:
            running.append(1)
            most.append(len(running))
            time.sleep(0.002 * (len(most) % 3))  # later ones are often ready first
            answer = engine.run_weighted(batch, output, out)
            running.pop()
            return answer

        run = run_weighted

        def ready(self) -> bool:
            return True

        def close(self) -> None: ...

    segmenter = Segmenter(model, Slow())
    found = segmenter.segment(volume)
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert max(most) <= in_flight
    assert (max(most) > 1) == (in_flight > 1)
    assert found.plan.bytes >= expected.plan.bytes
    assert segmenter.seconds_a_window is not None
    assert segmenter.seconds_a_window * found.plan.windows <= found.timings["total"]
