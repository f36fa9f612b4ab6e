"""The client against the real gateway, with a tiny real network."""

from __future__ import annotations

import asyncio
import json
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hilum_testing import manifest, phantom, publish_tiny

from hilum_client.cli import main
from hilum_client.client import AsyncClient, Client
from hilum_client.errors import RequestRefused
from hilum_client.gateway import free_port, started
from hilum_client.nifti import encode, read
from hilum_client.steps import Retry

AFFINE = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]])
SHAPE = (20, 24, 30)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one tiny model."""
    folder = tmp_path_factory.mktemp("models")
    publish_tiny(folder, manifest())
    return folder


@pytest.fixture(scope="module")
def url(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A gateway of this module."""
    with started(0, tmp_path_factory.mktemp("data"), [models]) as gateway:
        gateway.wait_until_ready()
        yield gateway.url


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A phantom on an oblique-free, permuted grid."""
    path = tmp_path / "case.nii"
    path.write_bytes(b"".join(encode(phantom(SHAPE), AFFINE)[1]))
    return path


def test_file_array_and_process_give_the_same_mask(url: str, models: Path, case: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with Client(url) as client:
        (model,) = client.models()
        by_file = client.segment(case, progress=lambda done, total: seen.append((done, total)))
        by_array = client.segment(phantom(SHAPE), model.name, affine=AFFINE)
        to_file = client.segment(case, model, out=tmp_path / "server.nrrd", priority="interactive")
    assert by_file.labels is not None and by_array.labels is not None and by_file.affine is not None
    assert by_file.labels.shape == SHAPE and by_file.labels.any()
    np.testing.assert_array_equal(by_file.labels, by_array.labels)
    np.testing.assert_allclose(by_file.affine, AFFINE)
    assert seen[-1][0] == seen[-1][1] > 1
    assert {label["name"]: label["voxels"] for label in by_file.statistics} == {
        name: int((by_file.labels == number).sum()) for name, number in model.labels.items()
    }
    assert by_file.timings["network"] > 0
    assert to_file.mask_path is not None and to_file.mask_path.read_bytes().startswith(b"NRRD")
    out = tmp_path / "local.nii.gz"
    assert main(["segment", str(case), "-o", str(out), "--repository", str(models), "--threads", "1"]) == 0
    np.testing.assert_array_equal(read(out).array, by_file.labels)


def test_refusals_are_the_gateways_sentences(url: str, case: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.nii"
    bad.write_bytes(b"no volume at all" * 100)
    with Client(url) as client:
        with pytest.raises(RequestRefused) as caught:
            client.upload(bad)
        assert caught.value.status is not None and 400 <= caught.value.status < 500 and caught.value.code
        with pytest.raises(RequestRefused, match="no such model"):
            client.segment(case, "nosuch")


def test_jobs_by_key_and_what_is_left(url: str, case: Path) -> None:
    with Client(url) as client:
        volume = client.upload(case)
        assert (volume.shape, volume.channels) == (SHAPE, 1)
        first = client.submit(volume, idempotency_key="k1")
        assert client.submit(volume, idempotency_key="k1").id == first.id
        done = client.wait(first)
        assert done.status == "done" and client.job(first).finished
        result = client.result(done)
        assert result.labels is not None and result.labels.shape == SHAPE
        client.delete_volume(volume)
        with pytest.raises(RequestRefused):
            client.submit(volume)


async def test_many_at_once(url: str, case: Path) -> None:
    async with AsyncClient(url) as client:
        results = await asyncio.gather(*(client.segment(case) for _ in range(4)))
    first = results[0].labels
    assert first is not None
    for result in results[1:]:
        assert result.labels is not None
        np.testing.assert_array_equal(result.labels, first)


def test_a_batch_on_the_server(url: str, case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    case.rename(folder / "one.nii")
    with zipfile.ZipFile(folder / "broken.zip", "w") as archive:
        archive.writestr("a.dcm", b"no DICOM")
    assert main(["batch", str(folder), "-o", str(out), "--server", url]) == 1
    data = json.loads((out / "report.json").read_text())
    assert [(entry["case"], entry["status"]) for entry in data["cases"]] == [
        ("broken.zip", "failed"),
        ("one.nii", "done"),
    ]
    assert data["cases"][0]["message"] and data["cases"][1]["digest"]
    assert read(out / "one-mask.nii.gz").array.shape == SHAPE
    assert main(["batch", str(folder), "-o", str(out), "--server", url]) == 1
    assert "0 segmented, 1 finished before, 1 failed." in capsys.readouterr().out


def test_models_and_doctor_on_the_server(url: str, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--server", url, "--json"]) == 0
    (of_server,) = json.loads(capsys.readouterr().out)
    assert main(["models", "--repository", str(models), "--json"]) == 0
    (of_folder,) = json.loads(capsys.readouterr().out)
    assert of_server["window"] == of_folder["window"] == [16, 16, 16]
    assert of_server["digest"] == of_folder["digest"]
    assert main(["doctor", "--server", url, "--repository", str(models), "--json"]) == 0
    lines = {line["name"]: line for line in json.loads(capsys.readouterr().out)}
    assert lines["engine"]["status"] == "ok" and "16 x 16 x 16" in lines["engine"]["found"]
    assert lines["server"]["found"] == f"{url} has tiny 1"


def test_a_killed_gateway_is_waited_for(models: Path, tmp_path: Path) -> None:
    """Killed in mid-volume and started again, it goes on with the job, and so does whoever waits for it."""
    port, data, image = free_port(0), tmp_path / "data", phantom((120, 120, 120))
    seen: list[tuple[int, int]] = []
    with ThreadPoolExecutor(1) as pool, Client(f"http://127.0.0.1:{port}", retry=Retry(attempts=10)) as client:
        with started(port, data, [models]) as gateway:
            gateway.wait_until_ready()
            waiting = pool.submit(client.segment, image, progress=lambda done, total: seen.append((done, total)))
            end = time.monotonic() + 30
            while not seen and time.monotonic() < end:
                time.sleep(0.005)
            gateway.process.kill()
            gateway.process.wait()
            assert seen and not waiting.done(), "killed in the middle"
        with started(port, data, [models]) as gateway:
            gateway.wait_until_ready()
            result = waiting.result(60)
            (job,) = client.jobs()
            undisturbed = client.segment(image)
    assert job.attempts == 2, "one job, taken up again"
    assert result.labels is not None and undisturbed.labels is not None
    np.testing.assert_array_equal(result.labels, undisturbed.labels)
