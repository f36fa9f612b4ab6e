"""The folder of volumes, and what lies there damaged."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hilum_serving import Server, wait_for

from hilum_server.datastore import Volumes, new_info
from hilum_server.problems import ProblemError

FOUND = {"kind": "nifti", "shape": (4, 5, 6), "spacing": (1.0, 1.0, 2.0), "orientation": "LPS", "dtype": "int16"} | {
    "channels": 1,
    "bytes": 120,
    "sha256": "5a",
    "file": "volume.nii",
}
GOOD, BAD = "a" * 32, "b" * 32


@pytest.fixture
def volumes(tmp_path: Path) -> Volumes:
    """Two volumes of anna's."""
    made = Volumes(tmp_path)
    made.open()
    for volume_id in (GOOD, BAD):
        with made.arrival(volume_id) as folder:
            (folder / "volume.nii").write_bytes(b"x")
            made.keep(folder, new_info(volume_id, "anna", FOUND))
    return made


@pytest.mark.parametrize("meta", [b"", b"\0" * 300, b"{", b"[]", b"{}", b'{"shape": 3}', b"\xff\xfe"])
def test_a_volume_whose_description_is_damaged_counts_as_lost(
    volumes: Volumes, tmp_path: Path, meta: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / BAD / "meta.json").write_bytes(meta)
    assert volumes.locate(BAD) is None and volumes.locate(GOOD) == tmp_path / GOOD / "volume.nii"
    with pytest.raises(ProblemError, match="no volume of this id"):
        volumes.get(BAD, "anna")
    assert volumes.get(BAD, None).kind == "damaged", "who sees everyone's may see it, and delete it"
    assert [record.levelno for record in caplog.records] == [logging.ERROR], "told once, not with each sweep"
    assert BAD not in caplog.text
    volumes.delete(BAD)
    assert not (tmp_path / BAD).exists()


def test_a_damaged_volume_is_as_old_as_its_folder(volumes: Volumes, tmp_path: Path) -> None:
    (tmp_path / BAD / "meta.json").write_bytes(b"")
    now = time.time()
    assert volumes.older_than(now - 60) == []
    os.utime(tmp_path / BAD, (now - 3600, now - 3600))
    assert volumes.older_than(now - 60) == [BAD]
    assert sorted(volumes.older_than(now + 60)) == [GOOD, BAD]


def test_a_damaged_volume_stops_neither_the_gateway_nor_others_studies(
    serve: Callable[..., Server], slow_repository: Path, long_volume: Path, volume: Path
) -> None:
    server = serve(slow_repository).start()
    bad, good = server.put(long_volume), server.put(volume)
    lost, other = server.submit(bad), server.submit(good)
    server.begun(lost["id"])
    server.kill()
    (server.data / "volumes" / bad / "meta.json").write_bytes(b"")
    server.start()
    assert server.finished(other["id"])["status"] == "done"
    assert server.job(lost["id"])["error"]["code"] == "volume_lost"
    told = server.http.get(f"/api/volumes/{bad}")
    assert (told.status_code, told.json()["kind"]) == (200, "damaged"), told.text
    refused = server.http.post("/api/jobs", json={"image": bad})
    assert refused.status_code == 422, refused.text
    assert server.http.delete(f"/api/volumes/{bad}").status_code == 204
    assert not (server.data / "volumes" / bad).exists()


def test_the_sweep_goes_on_past_a_damaged_volume(serve: Callable[..., Server], repository: Path, volume: Path) -> None:
    server = serve(repository, HILUM_KEEP_HOURS="0.0003").start()
    bad = server.put(volume)
    (server.data / "volumes" / bad / "meta.json").write_bytes(b"")
    good = server.put(volume)
    wait_for(lambda: server.http.get(f"/api/volumes/{good}").status_code == 404, 20)
    wait_for(lambda: not (server.data / "volumes" / bad).exists(), 20)
