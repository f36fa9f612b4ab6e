"""What Hilum relies on of a real Triton: both protocols, batches, versions, loading, statistics, queues, restarts."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import triton_server
from hilum_testing import SIZE, manifest, publish_tiny

from hilum_inference.engines import EngineSettings, open_engine
from hilum_inference.engines.triton import How, TritonEngine
from hilum_inference.engines.triton.engine import LOOK_SECONDS
from hilum_inference.errors import EngineError, ModelError, UnknownModelError
from hilum_inference.remote import RemoteRepository
from hilum_inference.repository import Model

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not triton_server.installed(), reason="no test Triton: run make triton-env"),
]

WINDOWS = np.random.default_rng(0).random((2, 1, *SIZE), np.float32)
SPECIFIC = "version_policy { specific { versions: [1, 3] } }"


class Served:
    """Two models behind a Triton that loads what it is told: one with three versions, one not loaded."""

    def __init__(self, folder: Path) -> None:
        models = folder / "models"
        self.model: Model = publish_tiny(models, manifest())[0]
        publish_tiny(models, manifest())
        self.third: Model = publish_tiny(models, manifest())[0]
        self.other: Model = publish_tiny(models, manifest(name="other"), features=2, with_head=True)[0]
        triton_server.python_backed(models, folder / "served", extra=SPECIFIC, seconds=0.02)
        config = folder / "served" / "other" / "configs" / "python-fp32.pbtxt"
        config.write_text(config.read_text().replace(SPECIFIC, ""))
        (folder / "served" / "foreign" / "1").mkdir(parents=True)
        self.server = triton_server.Triton(
            folder / "served",
            folder / "scratch",
            "--model-control-mode=explicit",
            "--load-model=tiny",
        )


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("triton"))
    with served.server:
        yield served


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{served.server.http}/v2", timeout=30, trust_env=False) as client:
        yield client


def load(client: httpx.Client, verb: str, name: str) -> None:
    assert client.post(f"/repository/models/{name}/{verb}", json={}).status_code == 200


@pytest.mark.parametrize("shared", [True, False], ids=["shared memory", "wire"])
@pytest.mark.parametrize("output", ["logits", "features"])
def test_grpc_answers_as_the_embedded_engine(served: Served, client: httpx.Client, shared: bool, output: Any) -> None:
    load(client, "load", "other")
    here = open_engine(served.other, EngineSettings(threads=1))
    there = TritonEngine(served.other, served.server.address, How(shared_memory=shared))
    np.testing.assert_array_equal(there.run(WINDOWS, output), here.run(WINDOWS, output))
    np.testing.assert_allclose(there.run_weighted(WINDOWS, output), here.run_weighted(WINDOWS, output), atol=1e-5)
    out = np.empty_like(there.run_weighted(WINDOWS, output))
    assert there.run_weighted(WINDOWS, output, out) is out
    assert (there.shares_memory, there.precision) == (shared, "python-fp32")
    there.close()


def test_http_answers_the_very_same(served: Served, client: httpx.Client) -> None:
    image = {
        "name": "image",
        "shape": WINDOWS.shape,
        "datatype": "FP32",
        "parameters": {"binary_data_size": WINDOWS.nbytes},
    }
    order = {"inputs": [image], "outputs": [{"name": "logits", "parameters": {"binary_data": True}}]}
    head = json.dumps(order).encode()
    size = "Inference-Header-Content-Length"
    reply = client.post(
        "/models/tiny/versions/3/infer", content=head + WINDOWS.tobytes(), headers={size: str(len(head))}
    )
    answer = np.frombuffer(reply.content[int(reply.headers[size]) :], np.float32)
    engine = TritonEngine(served.third, served.server.address)
    np.testing.assert_array_equal(answer, engine.run(WINDOWS).ravel())
    engine.close()


def test_a_window_that_does_not_fit_is_refused_here_and_there(served: Served) -> None:
    engine = TritonEngine(served.third, served.server.address)
    with pytest.raises(ValueError, match=r"takes \(N, 1, 16, 16, 16\), got"):
        engine.run(WINDOWS[..., :8])
    with pytest.raises(ValueError, match="gives no features"):
        engine.run(WINDOWS, "features")
    start = time.monotonic()
    with pytest.raises(EngineError, match="refused the window") as caught:
        engine.run(np.repeat(WINDOWS, 3, axis=0))  # 6, where 4 are the most
    assert (caught.value.code, time.monotonic() - start < 5) == ("triton_failed", True)
    assert np.isfinite(engine.run(WINDOWS)).all()
    engine.close()


def test_windows_of_several_callers_are_put_together(served: Served) -> None:
    engine = TritonEngine(served.third, served.server.address)
    expected = engine.run(WINDOWS[:1])
    inferences, executions = served.server.counts("tiny")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: engine.run(WINDOWS[:1]), range(24)))
    more, calls = served.server.counts("tiny")
    assert more - inferences == 24
    assert calls - executions < 24
    for answer in answers:
        np.testing.assert_array_equal(answer, expected)
    engine.close()


def test_only_versions_of_the_policy_are_served(served: Served) -> None:
    for model in (served.model, served.third):
        engine = TritonEngine(model, served.server.address)
        assert np.isfinite(engine.run(WINDOWS)).all()
        engine.close()
    repository = RemoteRepository(served.server.address)
    assert [(m.name, m.version) for m in repository.models() if m.name == "tiny"] == [("tiny", 3)]
    assert repository.model("tiny", 1).version == 1
    with pytest.raises(UnknownModelError, match="has not loaded version 2 of tiny; loaded: 1, 3"):
        repository.model("tiny", 2)
    repository.close()


def test_a_remote_repository_tells_what_a_local_one_does(served: Served, client: httpx.Client) -> None:
    load(client, "load", "other")
    repository = RemoteRepository(served.server.address)
    assert {m.name: m.digest for m in repository.models()} == {
        "other": served.other.digest,
        "tiny": served.third.digest,
    }
    assert repository.model("other").manifest == served.other.manifest
    with pytest.raises(UnknownModelError, match="Name a model, there are several: other, tiny"):
        repository.model()
    with pytest.raises(UnknownModelError, match="Triton has no model 'nobody'; it has"):
        repository.model("nobody")
    load(client, "unload", "other")
    assert repository.model().name == "tiny"
    assert "Triton has not loaded other" in repository.broken["other"]
    with pytest.raises(ModelError, match="has not loaded other"):
        repository.model("other")
    repository.close()


def test_a_remote_repository_refuses_another_variant(served: Served) -> None:
    repository = RemoteRepository(served.server.address, "tensorrt-fp16")
    assert repository.models() == ()
    assert "serves the variant python-fp32 of tiny, not tensorrt-fp16" in repository.broken["tiny"]
    repository.close()


def test_a_remote_repository_remembers_while_the_server_is_away(served: Served) -> None:
    repository = RemoteRepository(served.server.address)
    before = repository.models()
    served.server.kill()
    try:
        assert repository.models() == before
        assert repository.model("tiny", 3) == before[0]
        fresh = RemoteRepository(served.server.address)
        with pytest.raises(EngineError, match="does not answer"):
            fresh.models()
        fresh.close()
    finally:
        served.server.start()
    assert repository.model("tiny", 3) == before[0]
    repository.close()


def test_a_model_can_be_unloaded_and_loaded_below_an_engine(served: Served, client: httpx.Client) -> None:
    load(client, "load", "other")
    engine = TritonEngine(served.other, served.server.address, How(patience=20.0))
    expected = engine.run(WINDOWS)
    load(client, "unload", "other")
    threading.Timer(1.0, load, [client, "load", "other"]).start()
    np.testing.assert_array_equal(engine.run(WINDOWS), expected)
    load(client, "unload", "other")
    engine._how = How(patience=0.1)
    with pytest.raises(EngineError) as caught:
        engine.run(WINDOWS)
    assert caught.value.code == "triton_unavailable"
    engine.close()


def test_a_model_that_is_exchanged_between_windows_spoils_the_job_and_not_the_next(
    served: Served, client: httpx.Client
) -> None:
    """No connection is lost, and each window gets its answer."""
    load(client, "load", "other")
    engine = TritonEngine(served.other, served.server.address)
    job = engine.for_job(False, lambda: False)
    job.run(WINDOWS)
    job.settle()
    config = served.server.launch.repository / "other" / "configs" / "python-fp32.pbtxt"
    text = config.read_text()
    config.write_text(text.replace('"python-fp32"', '"python-int8"'))
    try:
        load(client, "load", "other")
        with pytest.raises(ModelError, match="other files of the model") as caught:
            job.settle()
        assert caught.value.code == "model_changed"
        time.sleep(LOOK_SECONDS)
        with pytest.raises(ModelError, match="other files of the model"):
            job.run(WINDOWS)  # it does not wait for the job's end: the first model may be back by then
        following = engine.for_job(False, lambda: False)
        assert following.precision == "python-int8"
        following.run(WINDOWS)
        following.settle()
        config.write_text(text.replace("hilum_manifest", "somebodys_manifest"))
        load(client, "load", "other")
        with pytest.raises(ModelError, match="does not say which other 1 it serves"):
            engine.for_job(False, lambda: False)
    finally:
        config.write_text(text)
        load(client, "load", "other")
        engine.close()


def test_a_request_that_waits_too_long_in_the_queue_is_given_up_there(served: Served) -> None:
    """Eight callers, 20 ms each, and a queue that lets nobody wait for more than 30 ms: some are turned away."""
    engine = TritonEngine(served.third, served.server.address, How(timeout=0.03 / 5, patience=0.0))
    engine._wait = lambda call, order: _patient(call)  # type: ignore[method-assign]

    def ask(_: int) -> str:
        try:
            engine.run(WINDOWS)
        except EngineError as error:
            return error.code
        return "answered"

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(16)))
    assert set(found) == {"answered", "triton_unavailable"}
    engine.close()


def _patient(call: Any) -> Any:
    import grpc

    from hilum_inference.engines.triton.channel import failure_of

    try:
        return call.result(timeout=30)
    except grpc.RpcError as error:
        raise failure_of(error) from error


def test_statistics_count_what_was_asked(served: Served) -> None:
    engine = TritonEngine(served.third, served.server.address)
    before, _ = served.server.counts("tiny")
    engine.run(WINDOWS)
    assert served.server.counts("tiny")[0] == before + len(WINDOWS)
    engine.close()
