"""A gateway in front of a real Triton: the same masks whatever happens to it, and a clear error when it stays away."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import triton_server
from hilum_serving import Server, save, wait_for
from hilum_testing import manifest, phantom, publish_tiny

Serve = Callable[..., Server]

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not triton_server.installed(), reason="no test Triton: run make triton-env"),
]


class Served:
    """A Triton, the folder that it serves, and a volume with its mask by the embedded engine."""

    def __init__(self, folder: Path) -> None:
        self.models = folder / "models"
        publish_tiny(self.models, manifest())
        triton_server.python_backed(self.models, folder / "served", seconds=0.02)
        self.config = folder / "served" / "tiny" / "configs" / "python-fp32.pbtxt"
        with_variant(self.models, self.config.read_text())
        explicit = ("--model-control-mode=explicit", "--load-model=tiny")
        self.triton = triton_server.Triton(folder / "served", folder / "scratch", *explicit)
        self.image = save(folder / "ct.nii", phantom((40, 33, 25)))
        embedded = Server(folder / "gateway" / "data", self.models).start()
        self.mask = mask(embedded, embedded.finished(embedded.submit(embedded.put(self.image))["id"]))
        embedded.close()

    def load(self, config: str) -> None:
        """Let the Triton load the model anew, as a configuration describes it."""
        self.config.write_text(config)
        url = f"http://{self.triton.http}/v2/repository/models/tiny/load"
        assert httpx.post(url, json={}, timeout=30, trust_env=False).is_success

    def gateway(self, serve: Serve, repository: Path | None = None, **environment: str) -> Server:
        return serve(repository, ("--triton", self.triton.address), **environment).start()

    def check(self, server: Server, job: dict[str, Any]) -> None:
        """At most a voxel whose two best logits are equal to the last bit may differ."""
        assert job["status"] == "done", (job, server.log()[-3000:])
        found = mask(server, job)
        assert found.size == self.mask.size
        assert np.count_nonzero(found != self.mask) <= 1


def with_variant(models: Path, config: str) -> None:
    """Give version 1 of the published model its variant."""
    own = models / "tiny" / "1" / "configs"
    own.mkdir(exist_ok=True)
    (own / "python-fp32.pbtxt").write_text(config)


def mask(server: Server, job: dict[str, Any]) -> Any:
    return np.frombuffer(server.http.get(f"/api/jobs/{job['id']}/result?format=nii").content, np.uint8)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("triton"))
    with served.triton:
        yield served


def test_the_address_of_a_triton_is_enough(serve: Serve, served: Served) -> None:
    server = served.gateway(serve)
    (model,) = server.http.get("/api/models").json()["models"]
    assert (model["name"], model["variant"]) == ("tiny", "python-fp32")
    job = server.finished(server.submit(server.put(served.image), options={"priority": "interactive"})["id"])
    served.check(server, job)
    report = server.http.get(f"/api/jobs/{job['id']}/statistics").json()
    assert (report["variant"], report["precision"]) == ("python-fp32", "python-fp32")


def test_a_folder_may_describe_what_a_triton_runs(serve: Serve, served: Served) -> None:
    server = served.gateway(serve, served.models)
    job = server.finished(server.submit(server.put(served.image))["id"])
    served.check(server, job)
    assert server.http.get(f"/api/jobs/{job['id']}/statistics").json()["variant"] == "python-fp32", "what Triton runs"


def test_a_folder_of_other_weights_is_refused(serve: Serve, served: Served, tmp_path: Path) -> None:
    publish_tiny(tmp_path / "models", manifest(), features=5)
    triton_server.python_backed(tmp_path / "models", tmp_path / "served")
    with_variant(tmp_path / "models", (tmp_path / "served/tiny/configs/python-fp32.pbtxt").read_text())
    server = serve(tmp_path / "models", ("--triton", served.triton.address)).start(ready=False)
    wait_for(lambda: server.http.get("/readyz").json()["code"] == "no_model", 60)
    told = server.http.get("/api/models").json()
    assert told["models"] == []
    assert told["broken"]["tiny"] == "Triton serves another tiny 1 than the repository holds."


def test_a_folder_without_the_variant_that_is_served_is_refused(serve: Serve, served: Served, tmp_path: Path) -> None:
    shutil.copytree(served.models, tmp_path / "models")
    shutil.rmtree(tmp_path / "models/tiny/1/configs")
    server = serve(tmp_path / "models", ("--triton", served.triton.address)).start(ready=False)
    wait_for(lambda: server.http.get("/readyz").json()["code"] == "no_model", 60)
    told = server.http.get("/api/models").json()
    assert (told["models"], "has no variant 'python-fp32'" in told["broken"]["tiny"]) == ([], True)


def test_no_mask_is_made_of_two_networks_where_triton_loads_another_in_place(serve: Serve, served: Served) -> None:
    server = served.gateway(serve)
    text = served.config.read_text()
    job = server.submit(server.put(served.image))["id"]
    server.begun(job)
    note = 'parameters { key: "note" value { string_value: "exchanged" } }\n'
    try:
        served.load(text + note)
        ended = server.finished(job)
        assert (ended["status"], ended["error"]["code"]) == ("failed", "model_changed")
        assert server.http.get(f"/api/jobs/{job}/result").status_code == 409
        served.check(server, server.finished(server.submit(server.put(served.image))["id"]))
        served.load(text)
        served.check(server, server.finished(server.submit(server.put(served.image))["id"]))
    finally:
        served.load(text)


def test_a_triton_that_is_killed_and_started_again_costs_a_job_nothing_but_time(serve: Serve, served: Served) -> None:
    server = served.gateway(serve)
    job = server.submit(server.put(served.image))["id"]
    server.begun(job)
    served.triton.kill()
    time.sleep(0.5)
    served.triton.start()
    served.check(server, server.finished(job))


def test_a_triton_that_hangs_for_a_while_as_well(serve: Serve, served: Served) -> None:
    server = served.gateway(serve, HILUM_TRITON_SECONDS="1")
    job = server.submit(server.put(served.image))["id"]
    server.begun(job)
    served.triton.signal(signal.SIGSTOP)
    try:
        assert server.http.get("/healthz").json() == {"ok": True}
        assert server.http.get(f"/api/jobs/{job}").json()["status"] == "running"
        time.sleep(2.5)
    finally:
        served.triton.signal(signal.SIGCONT)
    served.check(server, server.finished(job))


def test_a_cancelled_job_ends_at_once_also_where_triton_hangs(serve: Serve, served: Served) -> None:
    server = served.gateway(serve)
    job = server.submit(server.put(served.image))["id"]
    server.begun(job)
    served.triton.signal(signal.SIGSTOP)
    try:
        start = time.monotonic()
        assert server.http.post(f"/api/jobs/{job}/cancel").is_success
        wait_for(lambda: server.job(job)["status"] == "cancelled", 10)
        assert time.monotonic() - start < 3
    finally:
        served.triton.signal(signal.SIGCONT)


def test_a_triton_that_stays_away_is_a_clear_error_and_its_models_stay_known(serve: Serve, served: Served) -> None:
    server = served.gateway(serve, HILUM_TRITON_PATIENCE="1")
    before = server.http.get("/api/models").json()["models"]
    volume = server.put(served.image)
    served.triton.kill()
    try:
        job = server.finished(server.submit(volume)["id"])
        assert (job["status"], job["error"]["code"]) == ("failed", "triton_unavailable")
        assert "127.0.0.1" not in job["error"]["detail"]
        assert server.http.get("/healthz").json() == {"ok": True}
        assert server.http.get("/api/models").json()["models"] == before
    finally:
        served.triton.start()
    served.check(server, server.finished(server.submit(volume)["id"]))


def test_a_gateway_may_be_there_before_its_triton(serve: Serve, served: Served) -> None:
    served.triton.kill()
    try:
        server = served.gateway(serve)
        answer = server.http.get("/api/models")
        assert (answer.status_code, answer.json()["code"]) == (503, "triton_unavailable")
    finally:
        served.triton.start()

    def there() -> bool:
        reply: httpx.Response = server.http.get("/api/models")
        return reply.is_success

    wait_for(there, 10)
    served.check(server, server.finished(server.submit(server.put(served.image))["id"]))
