"""Uploads that are wrong, too large, too slow or broken off: one sentence, and nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import shutil
import socket
import struct
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hilum_serving import Server, wait_for
from starlette.requests import Request

from hilum_inference.errors import UnreadableError
from hilum_server.auth import LOCAL
from hilum_server.datastore import Volumes
from hilum_server.problems import ProblemError
from hilum_server.receive import UPLOADS_AT_ONCE, UPLOADS_OF_ONE, Receiver
from hilum_server.settings import Settings

FORM = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
Serve = Callable[..., Server]


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[Server]:
    """A gateway with small limits."""
    limits = {"HILUM_MAX_UPLOAD_GIB": "0.001", "HILUM_HEADER_SECONDS": "1", "HILUM_MAX_VOXELS": "100000"}
    running = Server(tmp_path_factory.mktemp("strict") / "data", repository, limits).start()
    yield running
    running.close()


def nothing_left(server: Server) -> None:
    """No volume, no part of one."""
    assert [path.name for path in (server.data / "volumes").iterdir()] == [".arriving"]
    assert not list((server.data / "volumes" / ".arriving").iterdir())


def refused(answer: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    """The problem a refused upload was answered with."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert code is None or body["code"] == code
    assert body["detail"]
    return body


def nifti1(shape: tuple[int, int, int] = (10, 9, 8)) -> bytearray:
    """A sound NIfTI-1 file of int16 noughts, 1 mm, RAS."""
    data = bytearray(352)
    struct.pack_into("<i", data, 0, 348)
    struct.pack_into("<8h", data, 40, 3, *shape, 1, 1, 1, 1)
    struct.pack_into("<2h", data, 70, 4, 16)
    struct.pack_into("<4f", data, 76, 1, 1, 1, 1)
    struct.pack_into("<f", data, 108, 352)
    struct.pack_into("<h", data, 254, 1)
    for row in range(3):
        struct.pack_into("<f", data, 280 + 20 * row, 1)
    data[344:348] = b"n+1\0"
    return data + bytes(2 * shape[0] * shape[1] * shape[2])


def test_the_sound_file_is_taken(strict: Server) -> None:
    answer = strict.http.put("/api/volumes", content=bytes(nifti1()))
    assert answer.status_code == 201, answer.text
    assert strict.http.delete(f"/api/volumes/{answer.json()['id']}").status_code == 204


@pytest.mark.parametrize(
    ("at", "kind", "value"),
    [
        (42, "<h", -5),  # a negative size
        (42, "<h", 90),  # more voxels than bytes
        (70, "<h", 2048),  # complex128
        (108, "<f", 1e9),  # offset of the voxels
        (280, "<f", 0),  # a singular affine
        (280, "<f", float("inf")),  # affine
    ],
)
def test_hostile_headers(strict: Server, at: int, kind: str, value: float) -> None:
    data = nifti1()
    struct.pack_into(kind, data, at, value)
    started = time.monotonic()
    body = refused(strict.http.put("/api/volumes", content=bytes(data)), 422)
    assert time.monotonic() - started < 2
    assert str(strict.data) not in json.dumps(body)
    nothing_left(strict)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        b"\x00" * 1000,
        b"PK\x03\x04" + b"\x00" * 100,
        b"NRRD0004\ndata file: ../secret\n\n",
        b"%PDF-1.4" * 100,
    ],
)
def test_what_is_no_volume(strict: Server, content: bytes) -> None:
    refused(strict.http.put("/api/volumes", content=content), 422)
    nothing_left(strict)


def test_damaged_and_truncated_files(strict: Server) -> None:
    data = bytes(nifti1())
    packed = bytearray(gzip.compress(data))
    packed[-6] ^= 0xFF  # the checksum
    for content in (data[: len(data) // 2], bytes(packed), bytes(packed[:-20])):
        refused(strict.http.put("/api/volumes", content=content), 422)
    nothing_left(strict)


def test_a_gzip_bomb_is_cut_off(strict: Server) -> None:
    bomb = gzip.compress(nifti1() + bytes(200_000_000))
    answer = strict.http.put("/api/volumes", content=bomb)
    assert answer.status_code in (413, 422)
    nothing_left(strict)


def test_an_honest_length_over_the_limit_is_refused_before_the_body(strict: Server) -> None:
    head = b"PUT /api/volumes HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 4000000000\r\n\r\n"
    assert b" 413 " in exchange(strict, head).split(b"\r\n")[0]
    nothing_left(strict)


def test_chunked_bodies_are_counted(strict: Server) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b"\x00" * 65536

    answer = strict.http.put("/api/volumes", content=endless())
    assert answer.status_code in (413, 422)
    nothing_left(strict)


def test_what_follows_the_voxels_is_not_taken_for_ever(strict: Server) -> None:
    def body() -> Iterator[bytes]:
        yield bytes(nifti1())
        for _ in range(100):
            yield b"\x00" * 65536

    answer = strict.http.put("/api/volumes", content=body())
    assert answer.status_code in (413, 422)
    nothing_left(strict)


def test_encoded_bodies_are_not_accepted(strict: Server, volume: Path) -> None:
    packed = gzip.compress(volume.read_bytes())
    answer = strict.http.put("/api/volumes", content=packed, headers={"Content-Encoding": "gzip"})
    refused(answer, 415, "encoded_body")


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=b", b"--b\r\nbroken"),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="other"\r\n\r\nx\r\n--b--\r\n',
        ),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: " + b"x" * 20000 + b"\r\n\r\n"),
        ("multipart/form-data; boundary=b", b"no boundary at all"),
        ("multipart/form-data; boundary=" + "b" * 5000, b"x"),
    ],
)
def test_broken_forms(strict: Server, content_type: str, body: bytes) -> None:
    answer = strict.http.put("/api/volumes", content=body, headers={"Content-Type": content_type})
    refused(answer, 400, "bad_form")
    nothing_left(strict)


def test_a_form_without_its_last_line_is_not_whole(strict: Server) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    for end in (b"", b"\r\n", b"\r\n--b", b"\r\n--b\r\n"):
        refused(strict.http.put("/api/volumes", content=FORM + nifti1() + end, headers=headers), 400, "bad_form")
    nothing_left(strict)


def test_a_form_may_be_named_in_capitals(strict: Server) -> None:
    headers = {"Content-Type": "Multipart/Form-Data ; Boundary=b"}
    answer = strict.http.put("/api/volumes", content=FORM + nifti1() + b"\r\n--b--\r\n", headers=headers)
    assert answer.status_code == 201, answer.text
    assert strict.http.delete(f"/api/volumes/{answer.json()['id']}").status_code == 204


def test_an_upload_broken_off_leaves_nothing(strict: Server, volume: Path) -> None:
    head = b"PUT /api/volumes HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\n"
    for _ in range(5):
        with socket.create_connection(address(strict)) as connection:
            connection.sendall(head + volume.read_bytes()[:5000])
            time.sleep(0.05)
    wait_for(lambda: not list((strict.data / "volumes" / ".arriving").iterdir()), 5)
    nothing_left(strict)


def test_a_full_disk_is_told(serve: Serve, repository: Path, volume: Path) -> None:
    server = serve(repository, HILUM_RESERVE_MIB=str(1 << 40)).start()
    refused(server.http.put("/api/volumes", content=volume.read_bytes()), 507, "disk_full")
    nothing_left(server)


def test_volumes_and_jobs_go_when_their_time_is_over(serve: Serve, repository: Path, volume: Path) -> None:
    server = serve(repository, HILUM_KEEP_HOURS="0.0005").start()
    volume_id = server.put(volume)
    job = server.finished(server.submit(volume_id)["id"])
    wait_for(lambda: server.http.get(f"/api/volumes/{volume_id}").status_code == 404, 20)
    wait_for(lambda: server.http.get(f"/api/jobs/{job['id']}").status_code == 404, 20)
    assert not list((server.data / "jobs").iterdir())


# Without a server


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    """One that keeps 32 MiB free, whose cage is never opened."""
    volumes = Volumes(tmp_path / "volumes", 32 << 20)
    volumes.open()
    made = Receiver(Settings(), volumes)
    yield made
    made.close()


@pytest.fixture
def lowest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A disk of 64 MiB; the free bytes that were seen."""
    seen: list[int] = []

    def usage(folder: Path) -> SimpleNamespace:
        seen.append((64 << 20) - sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))
        return SimpleNamespace(free=seen[-1])

    monkeypatch.setattr(shutil, "disk_usage", usage)
    return seen


def upload(chunks: Sequence[bytes] = (), held: asyncio.Event | None = None) -> Request:
    """An upload without a length; ``held`` keeps its end back."""
    left = [*chunks, b""]

    async def receive() -> dict[str, Any]:
        if held is not None and len(left) == 1:
            await held.wait()
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    return Request({"type": "http", "method": "PUT", "path": "/api/volumes", "headers": []}, receive)


async def refusal(receiver: Receiver, request: Request, owner: str = "anna") -> tuple[int, str]:
    """Status and code of an upload that is refused."""
    with pytest.raises(ProblemError) as caught:
        await receiver.receive(request, owner)
    return caught.value.status, caught.value.code


@pytest.mark.parametrize("packed", [False, True])
async def test_the_reserve_is_kept_whatever_the_length(
    receiver: Receiver, lowest: list[int], tmp_path: Path, packed: bool
) -> None:
    data = bytes(nifti1((400, 400, 160)))  # 49 MiB
    content = gzip.compress(data, 1) if packed else data
    chunks = [content[at : at + 65536] for at in range(0, len(content), 65536)]
    assert await refusal(receiver, upload(chunks)) == (507, "disk_full")
    assert min(lowest) > 15 << 20 and len(lowest) > 2
    assert not list((tmp_path / "volumes" / ".arriving").iterdir())


async def test_a_zip_is_not_unpacked_into_the_reserve(
    receiver: Receiver, lowest: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "series.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for number in range(3):
            file.writestr(f"{number}.dcm", bytes(12 << 20))
    monkeypatch.setattr(receiver, "warm", lambda: pytest.fail("it was handed to the cage"))
    assert await refusal(receiver, upload([path.read_bytes()])) == (507, "disk_full")
    assert not list((tmp_path / "volumes" / ".arriving").iterdir())


async def test_a_folder_that_is_gone_is_our_fault_and_named(receiver: Receiver, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "volumes")
    assert await refusal(receiver, upload([bytes(nifti1())])) == (507, "storage_failed")


async def test_slow_decodings_hold_up_nothing_else(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, let_go = threading.Event(), threading.Event()

    def decode(*_: object) -> None:
        begun.set()
        let_go.wait(20)
        raise UnreadableError("unreadable at last")

    monkeypatch.setattr(receiver, "warm", lambda: SimpleNamespace(decode=decode))
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    uploads = [asyncio.create_task(receiver.receive(upload([bytes(nifti1())]), f"user-{n}")) for n in range(3)]
    try:
        while not begun.is_set():
            await asyncio.sleep(0.01)
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "read"), 5) == "read"
    finally:
        let_go.set()
        ends = await asyncio.gather(*uploads, return_exceptions=True)
    assert [type(end) for end in ends] == [UnreadableError] * 3


async def test_slow_uploads_of_one_lock_nobody_else_out(receiver: Receiver) -> None:
    held = asyncio.Event()
    running: list[asyncio.Task[Any]] = []

    async def begin(owner: str, count: int) -> None:
        running.extend(asyncio.create_task(receiver.receive(upload(held=held), owner)) for _ in range(count))
        await asyncio.sleep(0.01)

    await begin("anna", UPLOADS_OF_ONE)
    assert await refusal(receiver, upload()) == (429, "too_many_uploads")
    with pytest.raises(UnreadableError, match="empty"):  # as far as its bytes
        await receiver.receive(upload(), "ben")
    await begin(LOCAL.name, UPLOADS_AT_ONCE - UPLOADS_OF_ONE)  # all who need no login are one owner
    assert await refusal(receiver, upload(), "ben") == (503, "too_many_uploads")
    held.set()
    await asyncio.gather(*running, return_exceptions=True)
    with contextlib.suppress(UnreadableError):  # the places are free again
        await receiver.receive(upload(), "anna")


# Below the level of a request


def test_a_slow_head_is_closed(strict: Server) -> None:
    with socket.create_connection(address(strict)) as connection:
        connection.settimeout(10)
        started = time.monotonic()
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-")
        answer = read_all(connection)
    assert 0.8 < time.monotonic() - started < 5
    assert b" 408 " in answer and b"head_too_slow" in answer


def test_drips_do_not_buy_time(strict: Server) -> None:
    with socket.create_connection(address(strict)) as connection:
        started = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - started < 10:
                connection.sendall(b"\r\n")
                time.sleep(0.1)
        assert time.monotonic() - started < 5


def test_half_open_connections_lock_nobody_out(strict: Server) -> None:
    connections = [socket.create_connection(address(strict)) for _ in range(300)]
    for connection in connections:
        connection.sendall(b"GET / HT")
    waits = [strict.http.get("/healthz").elapsed.total_seconds() for _ in range(20)]
    for connection in connections:
        connection.close()
    assert max(waits) < 1.0


@pytest.mark.parametrize(
    "head",
    [
        b"NONSENSE\r\n\r\n",
        b"PUT /api/volumes HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -5\r\n\r\n",
        b"PUT /api/volumes HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"PUT /api/volumes HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
def test_invalid_http_is_told_as_problem_json(strict: Server, head: bytes) -> None:
    answer = exchange(strict, head)
    assert answer.startswith(b"HTTP/1.1 400 ") and b"application/problem+json" in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "bad_request"


def address(server: Server) -> tuple[str, int]:
    """Host and port."""
    url = httpx.URL(server.url)
    return url.host, int(url.port or 0)


def exchange(server: Server, data: bytes) -> bytes:
    """Send bytes, read the answer."""
    with socket.create_connection(address(server)) as connection:
        connection.settimeout(5)
        connection.sendall(data)
        answer = connection.recv(65536)
        while b"}" not in answer:
            answer += connection.recv(65536)
        return answer


def read_all(connection: socket.socket) -> bytes:
    """Everything until the other end closes."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)
