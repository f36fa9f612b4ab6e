"""The native API, as a client sees it."""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hilum_serving import AFFINE, Server, expected_mask, make_array, save

from hilum_inference.io import read_volume
from hilum_inference.volume import Volume

DOCUMENT = Path(__file__).parents[2] / "docs" / "gateway.md"


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The body of a refusal, checked against RFC 9457."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["code"] == code and body["status"] == status and body["title"] and body["type"].endswith(code)
    assert body["detail"].strip() and "Traceback" not in answer.text
    return body


def fetch(server: Server, job: str, wanted: str, tmp_path: Path) -> Volume:
    """A result, checked against its SHA-256 and read."""
    answer = server.http.get(f"/api/jobs/{job}/result", params={"format": wanted})
    assert answer.status_code == 200
    assert hashlib.sha256(answer.content).hexdigest() == answer.headers["X-Content-SHA256"]
    path = tmp_path / f"mask.{wanted}"
    path.write_bytes(answer.content)
    return read_volume(path)


def test_models(server: Server) -> None:
    listed = server.http.get("/api/models").json()
    assert listed["default"] == "bright" and listed["broken"] == {}
    assert listed["models"][0]["labels"] == [{"name": "bright", "id": 1, "color": [200, 100, 50]}]
    one = server.http.get("/api/models/bright").json()
    assert one["manifest"]["windows"]["size"] == [16, 16, 16]
    assert {key: one[key] for key in listed["models"][0]} == listed["models"][0]
    assert server.http.get("/api/models/bright", params={"version": "1"}).json() == one
    for version in ("2", "-1", "x", "1" * 30):
        problem(server.http.get("/api/models/bright", params={"version": version}), 404, "unknown_model")
    problem(server.http.get("/api/models/none"), 404, "unknown_model")


def test_a_volume_comes_lies_and_goes(server: Server, volume: Path) -> None:
    data = volume.read_bytes()
    put = server.http.put("/api/volumes", content=data)
    assert put.status_code == 201
    info = put.json()
    assert len(info["id"]) == 32
    assert {key: value for key, value in info.items() if key != "id"} == {
        "kind": "nifti",
        "shape": [30, 26, 22],
        "spacing": pytest.approx([0.8, 0.9, 1.5], abs=1e-6),
        "orientation": "LPS",
        "dtype": "float32",
        "channels": 1,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    url = f"/api/volumes/{info['id']}"
    assert server.http.get(url).json() == info
    assert server.http.delete(url).status_code == 204
    problem(server.http.get(url), 404, "unknown_volume")
    problem(server.http.delete(url), 404, "unknown_volume")
    assert not (server.data / "volumes" / info["id"]).exists()


@pytest.mark.parametrize("wanted", ["nii.gz", "nii", "nrrd"])
def test_the_mask_lies_on_the_input_grid_in_every_format(
    server: Server, volume: Path, wanted: str, tmp_path: Path
) -> None:
    answer = server.http.post("/api/segment", json={"image": server.put(volume)})
    assert answer.status_code == 200, answer.text
    job = answer.json()
    assert job["status"] == "done" and job["error"] is None and job["attempts"] == 1
    mask, image = fetch(server, job["id"], wanted, tmp_path), read_volume(volume)
    assert mask.grid.shape == image.grid.shape
    np.testing.assert_allclose(mask.grid.affine, image.grid.affine, atol=1e-5)
    np.testing.assert_array_equal(mask.array[0] == 1, expected_mask(volume))
    report = server.http.get(f"/api/jobs/{job['id']}/statistics").json()
    assert report["labels"][0]["voxels"] == int(expected_mask(volume).sum())
    assert report["model"] == "bright" and report["timings"]["network"] > 0
    assert {"read", "write", "network", "total"} <= set(report["timings"])
    assert job["plan"] == {"windows": report["windows"], "bytes": report["planned_bytes"]} | {
        "seconds": report["planned_seconds"]
    }
    assert report == job["report"]


def test_compressed_and_multipart_uploads_give_the_same_mask(server: Server, volume: Path) -> None:
    digests = []
    for content in (volume.read_bytes(), gzip.compress(volume.read_bytes())):
        digests.append(segment(server, server.http.put("/api/volumes", content=content)))
    files = {"note": ("a", b"ignored"), "file": ("patient name.nii", volume.read_bytes())}
    digests.append(segment(server, server.http.put("/api/volumes", files=files)))
    assert len(set(digests)) == 1


def segment(server: Server, put: httpx.Response) -> str:
    """The SHA-256 of an uploaded volume's mask."""
    assert put.status_code == 201, put.text
    job = server.http.post("/api/segment", json={"image": put.json()["id"]}).json()
    return str(job["result"]["sha256"])


def test_a_channel_dictionary_names_the_channels(server: Server, volume: Path) -> None:
    volume_id = server.put(volume)
    assert server.http.post("/api/segment", json={"image": {"CT": volume_id}}).json()["status"] == "done"
    refused = server.http.post("/api/segment", json={"image": {"T1": volume_id}})
    assert "CT" in problem(refused, 422, "wrong_channels")["detail"]


def test_two_channels_do_not_fit_a_model_of_one(server: Server, tmp_path: Path) -> None:
    from hilum_inference.io import write_volume

    path = tmp_path / "two.nii"
    write_volume(path, Volume.from_array(np.stack([make_array(), make_array(1)]), AFFINE))
    refused = server.http.post("/api/segment", json={"image": server.put(path)})
    problem(refused, 422, "wrong_channels")


def test_a_job_by_key_is_made_once(server: Server, volume: Path) -> None:
    volume_id = server.put(volume)
    first, second = server.submit(volume_id, key="once"), server.submit(volume_id, key="once")
    assert first["id"] == second["id"] and first["priority"] == "batch"
    other = server.http.post("/api/jobs", json={"image": server.put(volume)}, headers={"Idempotency-Key": "once"})
    problem(other, 422, "key_reused")
    named = {"image": volume_id, "version": "1"}
    problem(server.http.post("/api/jobs", json=named, headers={"Idempotency-Key": "once"}), 422, "key_reused")
    server.finished(first["id"])
    server.http.delete(f"/api/volumes/{volume_id}")
    assert server.submit(volume_id, key="once")["status"] == "done", "the answer must not need the volume any more"


def test_events_tell_the_states_and_end(server: Server, volume: Path) -> None:
    job = server.submit(server.put(volume))
    events: list[tuple[str, dict[str, Any]]] = []
    kind = ""
    with server.http.stream("GET", f"/api/jobs/{job['id']}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line.startswith("data: "):
                events.append((kind, json.loads(line.removeprefix("data: "))))
    assert events[0][0] == "state" and events[-1][0] == "state"
    assert events[-1][1]["status"] == "done" and events[-1][1] == server.job(job["id"])
    plans = [event[1]["plan"] for event in events if event[0] == "progress"]
    assert plans[0]["windows"] == events[-1][1]["report"]["windows"] and plans[0]["seconds"] > 0, "measured by now"
    done = [event[1]["progress"]["done"] for event in events if event[1]["status"] == "running"]
    assert done == sorted(done)


def test_jobs_are_listed_and_deleted(server: Server, volume: Path) -> None:
    job = server.submit(server.put(volume))
    server.finished(job["id"])
    assert server.http.get("/api/jobs").json()["jobs"][0]["id"] == job["id"]
    assert len(server.http.get("/api/jobs", params={"limit": 1}).json()["jobs"]) == 1
    problem(server.http.post(f"/api/jobs/{job['id']}/cancel"), 409, "already_finished")
    problem(server.http.post(f"/api/jobs/{job['id']}/retry"), 409, "not_retryable")
    assert server.http.delete(f"/api/jobs/{job['id']}").status_code == 204
    assert not (server.data / "jobs" / job["id"]).exists()
    for path in ("", "/events", "/result", "/statistics"):
        problem(server.http.get(f"/api/jobs/{job['id']}{path}"), 404, "unknown_job")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "bad_json"),
        (b"[" * 100_000, 400, "bad_json"),
        (b"{}", 422, "invalid_request"),
        (b'{"image": 5}', 422, "invalid_request"),
        (b'{"image": {}}', 422, "invalid_request"),
        (b'{"image": "x", "surprise": 1}', 422, "invalid_request"),
        (b'{"image": "x", "options": {"priority": "now"}}', 422, "invalid_request"),
        (b'{"image": "0123456789abcdef0123456789abcdef"}', 404, "unknown_volume"),
        (b'{"image": "../../jobs.sqlite"}', 404, "unknown_volume"),
        (b'{"image": "x\\u0000"}', 404, "unknown_volume"),
        (b'{"image": "x", "model": "none"}', 404, "unknown_model"),
        (b'"' + b"x" * 300_000 + b'"', 413, "too_large"),
    ],
)
def test_wrong_orders_are_told_in_one_sentence(server: Server, body: bytes, status: int, code: str) -> None:
    for path in ("/api/segment", "/api/jobs"):
        answer = server.http.post(path, content=body, headers={"Content-Type": "application/json"})
        problem(answer, status, code)


def test_an_order_must_say_that_it_is_json(server: Server) -> None:
    answer = server.http.post("/api/jobs", content=b'{"image": "x"}', headers={"Content-Type": "text/plain"})
    problem(answer, 422, "invalid_request")


@pytest.mark.parametrize("path", ["/nothing", "/api", "/api/volumes/..%2f..%2fjobs.sqlite", "/docs", "/v2/models"])
def test_unknown_addresses(server: Server, path: str) -> None:
    answer = server.http.get(path)
    assert problem(answer, 404, answer.json()["code"])["code"] in ("not_found", "unknown_volume")


def test_wrong_methods_and_formats(server: Server) -> None:
    problem(server.http.post("/api/models"), 405, "method_not_allowed")
    problem(server.http.get("/api/jobs", params={"limit": "many"}), 422, "invalid_request")
    problem(server.http.get("/api/jobs/x/result", params={"format": "exe"}), 422, "invalid_request")


def test_health_and_front_page(server: Server) -> None:
    assert server.http.get("/healthz").json() == {"ok": True}
    assert server.http.get("/readyz").json()["ready"] is True
    page = server.http.get("/")
    assert page.status_code == 200 and "Bright &lt;things&gt;" in page.text and "<things>" not in page.text
    assert page.headers["Content-Security-Policy"] and page.headers["X-Content-Type-Options"] == "nosniff"
    assert "http" not in page.text, "the page must not need another server"


def test_metrics_count_without_ids(server: Server, volume: Path) -> None:
    job = server.submit(server.put(volume))
    server.finished(job["id"])
    text = server.http.get("/metrics").text
    assert job["id"] not in text
    assert 'hilum_requests_total{method="PUT",route="/api/volumes",status="201"}' in text
    for name in (
        'hilum_jobs_total{status="done"}',
        "hilum_windows_total",
        'hilum_stage_seconds_total{stage="network"}',
    ):
        line = next(line for line in text.splitlines() if line.startswith(name))
        assert float(line.split()[-1]) > 0
    assert "hilum_queue_length 0.0" in text and "hilum_worker_ready 1.0" in text


def test_openapi_names_every_call_with_examples_and_so_do_the_docs(server: Server) -> None:
    api = server.http.get("/openapi.json").json()
    text = DOCUMENT.read_text()
    for path, operations in api["paths"].items():
        assert f"{path.replace('{volume_id}', '{id}').replace('{job_id}', '{id}')}`" in text, f"{path} is not in docs"
        for operation in operations.values():
            assert operation["summary"]
    assert "application/problem+json" in api["paths"]["/api/segment"]["post"]["responses"]["4XX"]["content"]
    assert api["components"]["schemas"]["SegmentRequest"]["examples"]
    schemas = api["components"]["schemas"]
    for name in ("JobModel", "JobList", "ModelList", "HealthModel", "ReadyModel", "StatisticsModel"):
        assert "example" in schemas[name]
    for path in ("events", "result"):
        content = api["paths"][f"/api/jobs/{{job_id}}/{path}"]["get"]["responses"]["200"]["content"]
        assert all("example" in kind for name, kind in content.items() if name != "application/json")
        assert "application/json" not in content
    assert {"plan", "progress"} <= schemas["JobModel"]["example"].keys() <= schemas["JobModel"]["properties"].keys()
    assert "application/problem+json" in api["paths"]["/readyz"]["get"]["responses"]["503"]["content"]


def test_strangers_of_the_web_are_kept_out(server: Server) -> None:
    problem(server.http.get("/api/models", headers={"Host": "evil.example"}), 403, "bad_host")
    problem(server.http.get("/api/models", headers={"Host": "127.0.0.1.evil.example:80"}), 403, "bad_host")
    assert server.http.get("/api/models", headers={"Host": "LOCALHOST:1"}).status_code == 200
    answer = server.http.post("/api/jobs", json={"image": "x"}, headers={"Origin": "https://evil.example"})
    problem(answer, 403, "foreign_origin")
    own = server.http.post("/api/jobs", json={"image": "x"}, headers={"Origin": server.url})
    problem(own, 404, "unknown_volume")
    assert "access-control-allow-origin" not in server.http.get("/api/models", headers={"Origin": "null"}).headers


def test_twenty_clients_at_once(server: Server, tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{seed}.nii", make_array(seed)) for seed in range(20)]
    wrong: list[str] = []

    def work(path: Path) -> None:
        with httpx.Client(base_url=server.url, timeout=120, trust_env=False) as http:
            volume_id = http.put("/api/volumes", content=path.read_bytes()).json()["id"]
            job = http.post("/api/segment", json={"image": volume_id}).json()
            while job["status"] != "done":
                job = http.get(f"/api/jobs/{job['id']}").json()
            answer = http.get(f"/api/jobs/{job['id']}/result", params={"format": "nii"})
            target = path.with_suffix(".mask.nii")
            target.write_bytes(answer.content)
            if not np.array_equal(read_volume(target).array[0] == 1, expected_mask(path)):
                wrong.append(path.name)
            http.delete(f"/api/volumes/{volume_id}")
            http.delete(f"/api/jobs/{job['id']}")

    files, volumes = open_files(server), len(list((server.data / "volumes").iterdir()))
    threads = [threading.Thread(target=work, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    waits = []
    while any(thread.is_alive() for thread in threads):
        waits.append(server.http.get("/healthz").elapsed.total_seconds())
    assert not wrong
    assert sorted(waits)[int(len(waits) * 0.99)] < 1.0, "the event loop was blocked"
    assert len(list((server.data / "volumes").iterdir())) == volumes
    assert not list((server.data / "volumes" / ".arriving").iterdir())
    assert open_files(server) <= files + 5


def open_files(server: Server) -> int:
    """Open files and sockets of the gateway."""
    assert server.process is not None
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))
