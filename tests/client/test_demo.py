from __future__ import annotations

import functools
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hilum_testing import manifest, publish_tiny

from hilum_client import demo
from hilum_client.answers import Result
from hilum_client.cli import main
from hilum_client.errors import SampleError
from hilum_client.nifti import Image, read
from hilum_client.sample import Sample, fetch_sample

ROOT = Path(__file__).parents[2]


@pytest.fixture
def real_sample() -> Sample:
    """The real CT; without a network the tests that need it say why they do not run."""
    try:
        return fetch_sample(ROOT / ".samples")
    except SampleError as error:
        pytest.skip(f"the real CT sample is not there: {error.message}")


def test_scores_do_not_depend_on_voxel_order() -> None:
    ids = np.zeros((4, 4, 2), np.uint8)
    ids[:2], ids[2] = 5, 1
    reference = Image(ids, np.diag([2.0, 2.0, 5.0, 1.0]))
    turned = np.diag([-2.0, 2.0, 5.0, 1.0])
    turned[0, 3] = 6.0
    mask = Image(np.where(ids == 5, 1, 0)[::-1].astype(np.uint8), turned)
    labels = [{"name": name, "id": n, "voxels": 0, "ml": 1.0} for n, name in enumerate(("liver", "spleen", "heart"), 1)]
    liver, spleen, heart = demo.score(Result("m", "1", labels, {}), mask, reference)
    assert liver.dice == 1.0 and liver.reference_ml == pytest.approx(16 * 20 / 1000)
    assert spleen.dice == 0.0
    assert heart.dice is None and heart.reference_ml is None


@pytest.mark.sample
def test_the_demo_from_end_to_end(
    real_sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    out = tmp_path / "out"
    words = ["demo", "--once", "--port", "0", "--output", str(out), "--samples", str(real_sample.folder)]
    assert main(words) == 0
    shown = capsys.readouterr().out
    for text in ("liver", "spleen", "bone", "machine-made", "send and check the series", "network", "peak memory, MiB"):
        assert text in shown
    mask, reference = read(out / "mask.nii.gz"), read(real_sample.series_labels)
    assert mask.array.shape == (512, 512, 20)
    np.testing.assert_allclose(mask.canonical().affine, reference.canonical().affine, atol=1e-3)
    liver = re.search(r"liver\s+[\d.]+\s+[\d.]+\s+([\d.]+)", shown)
    assert liver is not None and float(liver[1]) > 0.6, "a loose bound: one patient, one small model"
    from PIL import Image as Pictures

    with Pictures.open(out / "montage.png") as picture:
        assert picture.width == 1374 and picture.height > 600


@pytest.mark.sample
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_it_stays_up_until_it_is_told_to_end(real_sample: Sample, tmp_path: Path) -> None:
    publish_tiny(tmp_path / "models", manifest(geometry={"spacing": [8.0, 8.0, 8.0]}))
    command = [sys.executable, "-m", "hilum_client", "demo", "--port", "0", "--output", str(tmp_path / "out")]
    command += ["--samples", str(real_sample.folder), "--repository", str(tmp_path / "models")]
    # A suite that runs in a shell's background hands down that Ctrl-C is ignored.
    heeds = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heeds)
    assert process.stdout is not None
    try:
        lines: list[str] = []
        while not lines or "stays up at" not in lines[-1]:
            line = process.stdout.readline()
            assert line, "".join(lines)
            lines.append(line)
        url = re.search(r"http://\S+", lines[-1])
        assert url is not None
        with urllib.request.urlopen(f"{url[0]}/healthz", timeout=10) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{url[0]}/healthz", timeout=10)


def test_a_gateway_that_cannot_start_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(demo, "fetch_sample", lambda _: Sample(tmp_path))
    monkeypatch.setattr("hilum_client.gateway.HOST", "0.0.0.0")
    start = time.monotonic()
    assert main(["demo", "--once", "--port", "0", "--output", str(tmp_path / "out")]) == 1
    assert time.monotonic() - start < 60
    err: Any = capsys.readouterr().err
    assert err.startswith("hilum: The gateway ended: ") and err.count("\n") == 1


def test_missing_extras_are_named_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hilum_client.extras.missing_modules", lambda extra: ["pydicom"] if extra == "dicom" else [])
    monkeypatch.setattr(demo, "fetch_sample", lambda _: pytest.fail("fetched"))
    assert main(["demo", "--output", str(tmp_path / "out")]) == 2
    assert "pip install 'hilum[dicom]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
