"""kill -9, SIGTERM, a model swapped in mid-job: nothing lost, nothing doubled, nothing torn."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from hilum_serving import Server, expected_mask, make_array, publish_threshold, save, wait_for

from hilum_inference.io import read_volume

Serve = Callable[..., Server]


def result(server: Server, job_id: str) -> tuple[str, bytes]:
    """SHA-256 and bytes of a finished job's mask."""
    job = server.finished(job_id)
    assert job["status"] == "done", job
    answer = server.http.get(f"/api/jobs/{job_id}/result")
    assert hashlib.sha256(answer.content).hexdigest() == job["result"]["sha256"]
    return job["result"]["sha256"], answer.content


def no_litter(server: Server) -> None:
    """Nothing half-written lies in the data folder."""
    assert not list((server.data / "volumes" / ".arriving").iterdir())
    assert not [path for path in server.data.rglob("*") if ".part" in path.name]
    assert not [path for path in (server.data / "jobs").glob("*") if not (path / "report.json").exists()]


@pytest.fixture
def undisturbed(serve: Serve, slow_repository: Path, long_volume: Path, tmp_path: Path) -> str:
    """The SHA-256 of the long volume's mask when nothing happens."""
    server = serve(slow_repository).start()
    digest, content = result(server, server.submit(server.put(long_volume))["id"])
    mask = tmp_path / "undisturbed.nii.gz"
    mask.write_bytes(content)
    np.testing.assert_array_equal(read_volume(mask).array[0] == 1, expected_mask(long_volume))
    server.close()
    shutil.rmtree(server.data)
    return digest


def test_a_killed_gateway_and_a_killed_worker_lose_and_double_nothing(
    serve: Serve, slow_repository: Path, long_volume: Path, undisturbed: str
) -> None:
    server = serve(slow_repository).start()
    volume = server.put(long_volume)
    job = server.submit(volume, key="k")
    waiting = server.submit(volume)
    server.begun(job["id"])
    worker = server.worker_pid()
    server.kill()
    wait_for(lambda: not Path(f"/proc/{worker}/cmdline").exists() or not alive(worker), 5)

    server.start()
    assert server.submit(volume, key="k")["id"] == job["id"]
    server.begun(job["id"])
    os.kill(server.worker_pid(), signal.SIGKILL)

    assert result(server, job["id"])[0] == undisturbed
    assert result(server, waiting["id"])[0] == undisturbed
    ended = server.job(job["id"])
    assert ended["attempts"] == 3
    assert [one["id"] for one in server.http.get("/api/jobs").json()["jobs"]] == [waiting["id"], job["id"]]
    no_litter(server)


def alive(pid: int) -> bool:
    """Whether a process runs (and is no zombie)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False


def test_an_upload_cut_off_by_a_kill_leaves_nothing(serve: Serve, repository: Path, volume: Path) -> None:
    server = serve(repository).start()
    body = b"".join([volume.read_bytes()])

    def broken() -> object:
        yield body[: len(body) // 2]
        wait_for(lambda: bool(list((server.data / "volumes" / ".arriving").iterdir())), 10)
        server.kill()
        yield body[len(body) // 2 :]

    with pytest.raises(httpx.TransportError):
        server.http.put("/api/volumes", content=broken())  # type: ignore[arg-type]
    server.start()
    assert [path.name for path in (server.data / "volumes").iterdir()] == [".arriving"]
    no_litter(server)


def test_sigterm_lets_the_running_job_end_and_keeps_the_others(
    serve: Serve, slow_repository: Path, long_volume: Path
) -> None:
    server = serve(slow_repository).start()
    volume = server.put(long_volume)
    running, waiting = server.submit(volume), server.submit(volume)
    server.begun(running["id"])
    assert server.process is not None
    server.process.send_signal(signal.SIGTERM)
    wait_for(lambda: server.http.get("/readyz").status_code == 503, 5)
    unready = server.http.get("/readyz")
    assert unready.json()["code"] == "shutting_down" and int(unready.headers["Retry-After"]) >= 1
    refused = server.http.post("/api/jobs", json={"image": volume})
    assert refused.status_code == 503 and refused.json()["code"] == "shutting_down"
    assert int(refused.headers["Retry-After"]) >= 1
    assert server.http.put("/api/volumes", content=b"x").json()["code"] == "shutting_down"
    assert server.http.get("/healthz").status_code == 200
    assert server.process.wait(60) == 0
    server.start()
    assert server.job(running["id"])["status"] == "done" and server.job(running["id"])["attempts"] == 1
    assert result(server, waiting["id"])[0] == server.job(running["id"])["result"]["sha256"]


def test_sigterm_without_grace_puts_the_running_job_back(
    serve: Serve, slow_repository: Path, long_volume: Path
) -> None:
    server = serve(slow_repository, HILUM_GRACE_SECONDS="0").start()
    job = server.submit(server.put(long_volume))
    server.begun(job["id"])
    assert server.stop() == 0
    server.start()
    assert server.finished(job["id"])["status"] == "done"
    assert server.job(job["id"])["attempts"] == 1


def test_cancelling_stops_the_worker_within_a_window(serve: Serve, slow_repository: Path, long_volume: Path) -> None:
    server = serve(slow_repository).start()
    volume = server.put(long_volume)
    job = server.submit(volume)
    server.begun(job["id"])
    in_use = server.http.delete(f"/api/volumes/{volume}")
    assert in_use.status_code == 409 and in_use.json()["code"] == "volume_in_use"
    assert server.http.post(f"/api/jobs/{job['id']}/cancel").json()["status"] == "cancelled"
    assert server.http.get(f"/api/jobs/{job['id']}/result").json()["code"] == "not_done"
    wait_for(lambda: server.http.delete(f"/api/jobs/{job['id']}").status_code == 204, 2)
    assert server.http.delete(f"/api/volumes/{volume}").status_code == 204
    assert not list((server.data / "jobs").glob("*"))


def test_an_interactive_job_overtakes_a_batch_job(
    serve: Serve, slow_repository: Path, long_volume: Path, volume: Path
) -> None:
    server = serve(slow_repository).start()
    long, small = server.put(long_volume), server.put(volume)
    batch = server.submit(long)
    server.begun(batch["id"])
    click = server.http.post("/api/segment", json={"image": small})
    assert click.status_code == 200, click.text
    assert server.job(batch["id"])["status"] == "running"
    assert server.finished(batch["id"])["status"] == "done"


def test_a_job_keeps_the_version_it_was_submitted_for(
    serve: Serve, long_volume: Path, volume: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "models"
    publish_threshold(repository, width=32)
    server = serve(repository).start()
    running = server.submit(server.put(long_volume))
    waiting = server.submit(server.put(volume))
    server.begun(running["id"])
    publish_threshold(repository, threshold=0.9)
    assert server.http.get("/api/models/bright").json()["version"] == "2"
    after = server.submit(server.put(volume))
    jobs = [server.finished(job["id"]) for job in (running, waiting, after)]
    assert [job["version"] for job in jobs] == ["1", "1", "2"]
    voxels = [job["report"]["labels"][0]["voxels"] for job in jobs]
    assert voxels[1:] == [int(expected_mask(volume, threshold).sum()) for threshold in (0.5, 0.9)]
    (repository / "bright" / "2").rename(repository / "bright" / "2.withdrawn")
    assert server.submit(server.put(volume))["version"] == "1", "a roll-back is seen by the next job"


def test_a_tampered_network_is_never_run(serve: Serve, volume: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    publish_threshold(repository)
    publish_threshold(repository, name="other", threshold=0.9)
    server = serve(repository).start()
    job = server.http.post("/api/segment", json={"image": server.put(volume), "model": "bright"}).json()
    assert job["status"] == "done"
    network = repository / "bright" / "1" / "model.onnx"
    network.write_bytes(b"no network")
    answer = server.http.post("/api/segment", json={"image": server.put(volume), "model": "bright"})
    assert answer.status_code in (500, 502) and answer.json()["code"] in ("engine_failed", "bad_model")
    assert "ONNX" not in answer.text and str(tmp_path) not in answer.text
    assert server.job(answer.json()["job"])["status"] == "failed"
    other = server.http.post("/api/segment", json={"image": server.put(volume), "model": "other"})
    assert other.status_code == 200, "the other models go on"
    children = psutil.Process(server.worker_pid()).children(recursive=True)
    assert not children, "a library of the worker forked it, to report something to somebody"


def test_a_job_that_kills_every_worker_is_given_up(serve: Serve, slow_repository: Path, long_volume: Path) -> None:
    server = serve(slow_repository, HILUM_ATTEMPTS="2").start()
    job = server.submit(server.put(long_volume))
    for _ in range(2):
        server.begun(job["id"])
        os.kill(server.worker_pid(), signal.SIGKILL)
        wait_for(lambda: server.job(job["id"])["progress"]["done"] == 0, 10)
    ended = server.finished(job["id"])
    assert ended["status"] == "failed" and ended["error"]["code"] == "poison"
    wait_for(lambda: server.http.get("/readyz").status_code == 200, 30)
    again = server.http.post(f"/api/jobs/{job['id']}/retry")
    assert again.status_code == 202
    assert server.finished(job["id"])["status"] == "done"


def test_two_gateways_never_share_a_data_folder(serve: Serve, repository: Path) -> None:
    first = serve(repository).start()
    second = serve(repository)
    with pytest.raises(AssertionError, match="Another gateway works in"):
        second.start()
    assert first.http.get("/healthz").status_code == 200


def test_memory_over_the_budget_is_refused_as_the_callers_to_mend(serve: Serve, repository: Path, volume: Path) -> None:
    server = serve(repository, HILUM_MEMORY_GIB="0.0001").start()
    answer = server.http.post("/api/segment", json={"image": server.put(volume)})
    assert answer.status_code == 413 and answer.json()["code"] == "over_memory_budget"
    assert server.job(answer.json()["job"])["error"]["code"] == "over_memory_budget"


@pytest.mark.slow
def test_a_worker_killed_again_and_again_still_does_every_job_once(
    serve: Serve, slow_repository: Path, volume: Path, tmp_path: Path
) -> None:
    server = serve(slow_repository, HILUM_ATTEMPTS="100").start()
    volumes = [server.put(volume), server.put(save(tmp_path / "other.nii", make_array(7)))]
    jobs = [server.submit(volumes[number % 2], key=f"k{number}") for number in range(60)]
    for delay in np.random.default_rng(0).uniform(0.2, 1.5, 20):
        time.sleep(delay)
        with contextlib.suppress(AssertionError, ProcessLookupError):  # it is being started again just now
            os.kill(server.worker_pid(), signal.SIGKILL)
    ended = [server.finished(job["id"], 240) for job in jobs]
    assert {job["status"] for job in ended} == {"done"}
    assert [len({job["result"]["sha256"] for job in ended[half::2]}) for half in (0, 1)] == [1, 1]
    assert len(server.http.get("/api/jobs").json()["jobs"]) == 60
    no_litter(server)
