"""Kept conversions of a mask: served as they were made, or made anew."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hilum_serving import Server


def test_a_kept_conversion_that_was_damaged_is_made_anew(server: Server, volume: Path) -> None:
    job = server.finished(server.submit(server.put(volume))["id"])
    for wanted in ("nii", "nrrd"):
        url = f"/api/jobs/{job['id']}/result?format={wanted}"
        made = server.http.get(url)
        kept = server.data / "jobs" / job["id"] / f"mask.{wanted}"
        assert kept.read_bytes() == made.content
        kept.write_bytes(made.content[:-50] + b"\1" * 50)
        again = server.http.get(url)
        assert again.content == made.content
        assert again.headers["X-Content-SHA256"] == hashlib.sha256(made.content).hexdigest()
        stamp = kept.stat().st_mtime_ns
        assert server.http.get(url).content == made.content and kept.stat().st_mtime_ns == stamp, "kept, not made anew"


def test_a_conversion_of_unknown_origin_is_not_served(server: Server, volume: Path) -> None:
    job = server.finished(server.submit(server.put(volume))["id"])
    kept = server.data / "jobs" / job["id"] / "mask.nii"
    kept.write_bytes(b"what an earlier release kept")
    assert server.http.get(f"/api/jobs/{job['id']}/result?format=nii").content != b"what an earlier release kept"


def test_nothing_is_converted_from_a_damaged_mask(server: Server, volume: Path) -> None:
    job = server.finished(server.submit(server.put(volume))["id"])
    mask = server.data / "jobs" / job["id"] / "mask.nii.gz"
    mask.write_bytes(mask.read_bytes()[:-9] + b"\0" * 9)
    answer = server.http.get(f"/api/jobs/{job['id']}/result?format=nii")
    assert (answer.status_code, answer.json()["code"]) == (500, "result_damaged")


def test_every_job_can_be_listed(server: Server, volume: Path) -> None:
    made = [server.submit(server.put(volume))["id"] for _ in range(3)]
    newest = server.http.get("/api/jobs", params={"limit": 1}).json()["jobs"]
    assert newest[0]["id"] == made[2]
    older = server.http.get("/api/jobs", params={"limit": 2, "before": made[2]}).json()["jobs"]
    assert [job["id"] for job in older] == [made[1], made[0]]
    assert {server.finished(job)["status"] for job in made} == {"done"}
    failed = server.http.get("/api/jobs", params={"status": "failed"}).json()["jobs"]
    assert {job["status"] for job in failed} <= {"failed"}
    assert server.http.get("/api/jobs", params={"before": "x"}).status_code == 404
    assert server.http.get("/api/jobs", params={"status": "lost"}).status_code == 422


@pytest.mark.parametrize("name", ["a?b", "a%20b"])
def test_a_data_folder_may_have_any_name(
    serve: Callable[..., Server], repository: Path, tmp_path: Path, name: str
) -> None:
    server = serve(repository)
    server.data = tmp_path / "odd" / name
    server.start()
    assert (server.data / "jobs.sqlite").exists() and (server.data / "gateway.lock").exists()
    assert sorted(path.name for path in server.data.parent.iterdir()) == [name, "log"]
