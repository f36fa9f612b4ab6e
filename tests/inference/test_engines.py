"""The embedded engine against torch, its precision record, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hilum_testing import manifest, publish_tiny

from hilum_export.precision import to_half
from hilum_inference.blend import weigh
from hilum_inference.engines import EngineSettings, Output, check_fits_half, open_engine
from hilum_inference.engines.openvino import OpenVinoEngine
from hilum_inference.errors import EngineError
from hilum_inference.windows import weight_map

ONE = EngineSettings(threads=1)


def test_logits_and_features_equal_torch_in_f32(tmp_path: Path) -> None:
    model, net = publish_tiny(tmp_path, manifest(), features=2, with_head=True)
    engine = open_engine(model, ONE)
    batch = np.random.default_rng(0).normal(size=(2, 1, 16, 16, 16)).astype(np.float32)
    with torch.no_grad():
        features = torch.nn.functional.leaky_relu(net.body(torch.from_numpy(batch)), 0.1)
        logits = net.head(features).numpy()
    assert np.abs(engine.run(batch) - logits).max() <= 5e-4 * np.abs(logits).max()
    np.testing.assert_allclose(engine.run(batch, "features"), features.numpy(), atol=1e-4)
    assert engine.precision == "f32"


def test_many_threads_get_their_own_answers(tmp_path: Path) -> None:
    model, _ = publish_tiny(tmp_path, manifest())
    engine = open_engine(model, ONE)
    batches = [np.full((1, 1, 16, 16, 16), n / 50, np.float32) for n in range(50)]
    expected = [engine.run(batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        for answer, single in zip(pool.map(engine.run, batches), expected, strict=True):
            np.testing.assert_array_equal(answer, single)


@pytest.mark.parametrize("output", ["logits", "features"])
def test_weighted_answers_are_the_plain_ones_times_the_weights_channels_last(tmp_path: Path, output: Output) -> None:
    model, _ = publish_tiny(tmp_path, manifest(), features=2, with_head=True)
    engine = open_engine(model, ONE)
    batch = np.random.default_rng(0).normal(size=(2, 1, 16, 16, 16)).astype(np.float32)
    expected = weigh(engine.run(batch, output), weight_map((16, 16, 16), "monai"))
    got = engine.run_weighted(batch, output)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    out = np.empty_like(got)
    assert engine.run_weighted(batch, output, out) is out
    np.testing.assert_array_equal(out, got)
    with pytest.raises(ValueError, match="answer has"):
        engine.run_weighted(batch, output, out[:1])
    with pytest.raises(ValueError, match="takes"):
        engine.run(batch[..., :8])


@pytest.mark.parametrize("output", ["logits", "features"])
def test_a_network_with_half_at_its_door_takes_and_gives_float32_all_the_same(tmp_path: Path, output: Output) -> None:
    model, _ = publish_tiny(tmp_path, manifest(), features=2, with_head=True)
    thin = tmp_path / "thin.onnx"
    to_half(model.onnx(), thin, "fp16")
    here, there = open_engine(model, ONE), OpenVinoEngine(dataclasses.replace(model, network=thin), threads=1)
    batch = np.random.default_rng(0).normal(size=(2, 1, 16, 16, 16)).astype(np.float32)
    expected, got = here.run(batch, output), there.run(batch, output)
    assert got.dtype == np.float32
    assert 0 < np.abs(got - expected).max() < 1e-2 * np.abs(expected).max()
    weighted = there.run_weighted(batch, output)
    assert weighted.dtype == np.float32
    np.testing.assert_allclose(weighted, weigh(got, weight_map((16, 16, 16), "monai")), atol=1e-2)


@pytest.mark.parametrize("value", [65520.0, -1e6, np.inf, np.nan])
def test_a_window_that_half_cannot_hold_is_refused(value: float) -> None:
    batch = np.zeros((1, 1, 4, 4, 4), np.float32)
    batch[0, 0, 1, 2, 3] = 65519.0
    check_fits_half(batch)
    batch[0, 0, 3, 2, 1] = value
    with pytest.raises(EngineError, match="in FP16, which cannot hold") as caught:
        check_fits_half(batch)
    assert caught.value.code == "beyond_fp16"


def test_a_network_that_is_none_is_an_engine_error(tmp_path: Path) -> None:
    model, _ = publish_tiny(tmp_path, manifest())
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(model.onnx().read_bytes()[:100])
    with pytest.raises(EngineError, match="OpenVINO refused"):
        OpenVinoEngine(dataclasses.replace(model, network=broken))


def test_precision_is_timed_once_and_then_replayed(tmp_path: Path) -> None:
    model, _ = publish_tiny(tmp_path / "r", manifest(precisions=("f32", "bf16")))
    record = tmp_path / "precision.json"
    settings = EngineSettings(threads=1, record=record)
    open_engine(model, settings)
    (key, entry), *others = json.loads(record.read_text()).items()
    assert not others
    assert model.digest in key
    assert set(entry["seconds"]) == {"f32", "bf16"}
    for forced in ("bf16", "f32"):
        record.write_text(json.dumps({key: entry | {"precision": forced}}))
        assert open_engine(model, settings).precision == forced
    assert open_engine(model, ONE).precision == "f32"  # no record, no choice


def test_no_triton_is_one_clear_error(tmp_path: Path, unused_tcp_port: int) -> None:
    model, _ = publish_tiny(tmp_path, manifest())
    with pytest.raises(EngineError, match="does not serve tiny") as caught:
        open_engine(model, EngineSettings(triton=f"127.0.0.1:{unused_tcp_port}"))
    assert caught.value.code == "triton_not_ready"


def test_reading_a_network_tells_nobody(tmp_path: Path) -> None:
    publish_tiny(tmp_path, manifest())
    program = f"""
import os, sys, pathlib
os.fork = os.forkpty = None  # the reporter forks to send its request
from hilum_inference.engines import EngineSettings, open_engine
from hilum_inference.repository import Repository
open_engine(Repository([pathlib.Path({str(tmp_path)!r})]).model(), EngineSettings(threads=1))
sys.exit(sys.modules["openvino_telemetry"] is not None)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
