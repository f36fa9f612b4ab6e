from __future__ import annotations

import asyncio
import traceback
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from hilum_client.client import AsyncClient, Client, address, headers
from hilum_client.errors import BusyError, ConnectError, InputError, JobFailed, RequestRefused, ServerError
from hilum_client.nifti import decode, read
from hilum_client.steps import Retry

Gateway = Any  # conftest's, which cannot be imported by name
Refuse = Callable[..., httpx.Response]


def test_models_as_values(client: Client) -> None:
    (model,) = client.models()
    assert (model.name, model.version, model.channels) == ("demo", "3", ("CT",))
    assert model.labels == {"liver": 1, "bone": 2}
    assert model.colors == {"liver": (200, 80, 60)}
    assert model.manifest is None
    assert client.model("demo").manifest == {"name": "demo"}


def test_upload_streams_a_file_with_its_length_and_counts(client: Client, gateway: Gateway, volume_file: Path) -> None:
    seen: list[tuple[int, int]] = []
    info = client.upload(volume_file, sent=lambda done, size: seen.append((done, size)))
    assert gateway.volumes[info.id] == volume_file.read_bytes()
    size = volume_file.stat().st_size
    assert seen[-1] == (size, size)
    assert "case" not in str(gateway.sent[0]), "a file's name may be a patient's"


def test_upload_sends_an_array_as_nifti(client: Client, gateway: Gateway) -> None:
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    affine = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]])
    info = client.upload(array, affine)
    sent = decode(gateway.volumes[info.id])
    np.testing.assert_array_equal(sent.array, array)
    np.testing.assert_allclose(sent.affine, affine)


def test_upload_zips_the_dicom_files_of_a_folder(
    client: Client, gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    series = tmp_path / "series"
    (series / "sub").mkdir(parents=True)
    for name in ("b", "sub/a"):
        (series / name).write_bytes(b"\0" * 128 + b"DICM" + name.encode())
    (series / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICMindex")
    (series / "notes.txt").write_text("no DICOM")
    info = client.upload(series)
    with zipfile.ZipFile(BytesIO(gateway.volumes[info.id])) as archive:
        assert archive.namelist() == ["000000.dcm", "000001.dcm"]
        assert archive.read("000001.dcm").endswith(b"DICMsub/a")
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}
    assert not list(tmp_path.glob("hilum-*")), "the temporary zip must be gone"


def test_upload_refuses_what_is_not_there(client: Client, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no file"):
        client.upload(tmp_path / "none.nii")
    with pytest.raises(InputError, match="holds no DICOM files"):
        client.upload(tmp_path)


def test_segment_returns_the_mask_and_what_was_measured(client: Client, gateway: Gateway, volume_file: Path) -> None:
    seen: list[tuple[int, int]] = []
    result = client.segment(volume_file, progress=lambda done, total: seen.append((done, total)))
    assert result.labels is not None and result.affine is not None
    np.testing.assert_array_equal(result.labels, read(volume_file).array > 0)
    assert (result.model, result.version) == ("demo", "3")
    assert result.statistics[0]["ml"] == 0.004
    assert result.timings == {"network": 1.5, "total": 2.0}
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert gateway.orders == [{"image": "v0", "options": {"priority": "batch"}}]
    assert gateway.volumes == {}, "what segment sent, it removes"


def test_segment_to_a_file(client: Client, gateway: Gateway, volume_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "mask.nii.gz"
    gateway.mask = np.full((2, 3, 4), 2, np.uint8)
    result = client.segment(volume_file, "demo", out=out, priority="interactive")
    assert result.labels is None and result.mask_path == out
    np.testing.assert_array_equal(read(out).array, gateway.mask)
    assert gateway.orders[0] == {"image": "v0", "model": "demo", "options": {"priority": "interactive"}}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["case.nii", "mask.nii.gz"]


def test_segment_takes_channels_and_uploaded_volumes(client: Client, gateway: Gateway, volume_file: Path) -> None:
    known = client.upload(volume_file)
    client.segment({"T1": known, "T2": volume_file})
    assert gateway.orders[0]["image"] == {"T1": "v0", "T2": "v1"}
    assert list(gateway.volumes) == ["v0"], "only what segment sent itself is removed"


def test_a_model_of_the_list_pins_its_version(client: Client, gateway: Gateway, volume_file: Path) -> None:
    (model,) = client.models()
    client.segment(volume_file, model)
    assert gateway.orders == [{"image": "v0", "model": "demo", "version": "3", "options": {"priority": "batch"}}]


@pytest.mark.parametrize("name", ["mask.png", "mask"])
def test_segment_refuses_an_unknown_mask_format_before_sending(
    client: Client, gateway: Gateway, volume_file: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(InputError, match=r"must end in one of \.nii\.gz"):
        client.segment(volume_file, out=tmp_path / name)
    assert gateway.log == []


def test_lost_lines_are_bridged_without_a_second_job(client: Client, gateway: Gateway, volume_file: Path) -> None:
    lost = httpx.ReadError("gone")
    for pattern in ("PUT /api/volumes", "POST /api/jobs$", "GET .*/events", "GET .*/result", "GET /api/jobs/[^/]+$"):
        gateway.faults.append((pattern, lost))
    result = client.segment(volume_file)
    assert result.labels is not None and result.labels.sum() == 4
    assert len(gateway.orders) == 1
    keys = [path for method, path in gateway.log if (method, path) == ("POST", "/api/jobs")]
    assert len(keys) == 2 and len(gateway.jobs) == 1


def test_a_busy_server_is_waited_for_and_then_named(
    client: Client, gateway: Gateway, volume_file: Path, refuse: Refuse
) -> None:
    busy = [refuse(429, "queue_full", "The queue is full.", {"Retry-After": "0"}) for _ in range(5)]
    gateway.faults += [("POST /api/jobs$", answer) for answer in busy[:1]]
    assert client.submit("v0").status == "queued"
    gateway.faults += [("POST /api/jobs$", answer) for answer in busy[1:]]
    with pytest.raises(BusyError, match="The queue is full") as caught:
        client.submit("v0")
    assert (caught.value.code, caught.value.status) == ("queue_full", 429)


def test_refusals_carry_the_servers_sentence_and_are_not_repeated(
    client: Client, gateway: Gateway, volume_file: Path, refuse: Refuse
) -> None:
    gateway.faults.append(("PUT", refuse(422, "truncated", "The file ends early.")))
    with pytest.raises(RequestRefused, match=r"^The file ends early\.$") as caught:
        client.upload(volume_file)
    assert (caught.value.code, caught.value.status) == ("truncated", 422)
    assert len(gateway.log) == 1


def test_server_faults(client: Client, gateway: Gateway) -> None:
    gateway.faults.append(("models", httpx.Response(500, text="boom")))
    with pytest.raises(ServerError, match="answered 500"):
        client.models()
    gateway.faults.append(("models", httpx.Response(200, text="<html>")))
    with pytest.raises(ServerError, match="is this a Hilum gateway"):
        client.models()
    gateway.faults.append(("models", httpx.Response(200, json={"data": []})))
    with pytest.raises(ServerError, match="could not be understood"):
        client.models()


def test_no_server_is_one_sentence() -> None:
    client = Client("http://127.0.0.1:9", retry=Retry(attempts=2, wait=0.001))
    with client, pytest.raises(ConnectError, match=r"No connection to http://127\.0\.0\.1:9 .*hilum serve"):
        client.models()


def test_failed_and_cancelled_jobs(client: Client, gateway: Gateway, volume_file: Path, tmp_path: Path) -> None:
    gateway.outcome = "failed"
    with pytest.raises(JobFailed, match="Too large for this machine") as caught:
        client.segment(volume_file, out=tmp_path / "m.nii.gz")
    assert caught.value.code == "over_memory_budget"
    gateway.outcome = "cancelled"
    with pytest.raises(JobFailed, match="cancelled"):
        client.segment(volume_file, out=tmp_path / "m.nii.gz")
    assert not (tmp_path / "m.nii.gz").exists() and gateway.volumes == {}


def test_a_damaged_mask_is_not_kept(client: Client, gateway: Gateway, volume_file: Path, tmp_path: Path) -> None:
    gateway.faults.append(("/result", httpx.Response(200, content=b"abc", headers={"X-Content-SHA256": "0" * 64})))
    with pytest.raises(ServerError, match="damaged"):
        client.segment(volume_file, out=tmp_path / "m.nii.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["case.nii"]


def test_interrupting_cancels_the_job(client: Client, gateway: Gateway, volume_file: Path) -> None:
    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.segment(volume_file, progress=interrupt)
    (job,) = gateway.jobs.values()
    assert job["status"] == "cancelled" and gateway.volumes == {}


async def test_async_does_the_same(async_client: AsyncClient, gateway: Gateway, volume_file: Path) -> None:
    gateway.faults.append(("GET .*/events", httpx.ReadError("gone")))
    seen: list[int] = []
    async with async_client as client:
        result = await client.segment(volume_file, progress=lambda done, _total: seen.append(done))
        assert [model.name for model in await client.models()] == ["demo"]
        assert [job.status for job in await client.jobs()] == ["done"]
    assert result.labels is not None and result.labels.sum() == 4
    assert seen == [1, 2, 3]


async def test_cancelling_a_task_cancels_the_job(
    async_client: AsyncClient, gateway: Gateway, volume_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = asyncio.Event()

    def still_running(name: str) -> httpx.Response:
        gateway.jobs[name]["status"] = "running"
        running.set()
        return httpx.Response(200, content=b"")

    monkeypatch.setattr(gateway, "_events", still_running)
    task: asyncio.Task[Any] = asyncio.create_task(async_client.segment(volume_file))
    await running.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [job["status"] for job in gateway.jobs.values()] == ["cancelled"]
    await async_client.close()


def test_keys_go_as_bearer_tokens() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"models": []})

    with Client("gateway:8000/", key="k1", transport=httpx.MockTransport(answer)) as client:
        client.models()
    assert seen[0].headers["Authorization"] == "Bearer k1"
    assert str(seen[0].url) == "http://gateway:8000/api/models"
    assert address("https://x/") == "https://x"


@pytest.mark.parametrize(("key", "sent"), [("k1\n", "Bearer k1"), (" k1\r\n", "Bearer k1"), ("\n", None), (None, None)])
def test_white_space_around_a_key_is_dropped(key: str | None, sent: str | None) -> None:
    assert headers(key).get("Authorization") == sent


@pytest.mark.parametrize("key", ["secret\nX: y", "secret\x00", "secr\u00e9t"])
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_key_that_is_none_is_not_quoted(kind: type[Client] | type[AsyncClient], key: str) -> None:
    with pytest.raises(InputError, match="copy it again") as caught:
        kind(key=key)
    assert caught.value.code == "bad_key" and "secr" not in caught.value.message


def test_what_http_forbids_is_neither_tried_again_nor_quoted(client: Client, gateway: Gateway) -> None:
    gateway.faults.append(("models", httpx.LocalProtocolError("Illegal header value b'Bearer secret'")))
    with pytest.raises(InputError, match="none that HTTP allows") as caught:
        client.models()
    assert len(gateway.log) == 1
    assert "secret" not in "".join(traceback.format_exception(caught.value))
