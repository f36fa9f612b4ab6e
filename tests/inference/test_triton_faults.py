"""A Triton that dies, hangs, is restarted, lies or is not needed any more: the same mask as ever, or none."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import triton_server
from hilum_testing import SIZE, manifest, phantom, publish_tiny
from triton_relay import Relay

from hilum_inference.engines.triton import How, TritonEngine
from hilum_inference.engines.triton.channel import Channel
from hilum_inference.errors import CancelledError, EngineError, ModelError
from hilum_inference.head import Labels
from hilum_inference.pipeline import Segmenter
from hilum_inference.repository import Model
from hilum_inference.volume import Volume

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not triton_server.installed(), reason="no test Triton: run make triton-env"),
]

VOLUME = Volume.from_array(phantom((40, 33, 25)))
WINDOW = np.random.default_rng(0).random((1, 1, *SIZE), np.float32)
BOTH_WAYS = pytest.mark.parametrize("shared", [True, False], ids=["shared memory", "wire"])


class Served:
    """A tiny model behind a Triton, and the mask it must give."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.model: Model = publish_tiny(folder / "models", manifest())[0]
        triton_server.python_backed(folder / "models", folder / "served", seconds=seconds)
        self.server = triton_server.Triton(folder / "served", folder / "scratch").start()
        with_wire = self.engine(shared_memory=False)
        self.mask = Segmenter(self.model, with_wire).segment(VOLUME).labels
        with_wire.close()

    def engine(self, address: str = "", **how: Any) -> TritonEngine:
        return TritonEngine(self.model, address or self.server.address, How(**{"timeout": 20.0, **how}))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("triton"), seconds=0.02)
    yield served
    served.server.close()


def segmented(served: Served, engine: TritonEngine, at_window: int, act: Callable[[], None]) -> Labels:
    """The mask, while ``act`` was done in the middle of it."""

    def progress(done: int, _: int) -> None:
        if done == at_window:
            act()

    return Segmenter(served.model, engine.for_job(False, lambda: False)).segment(VOLUME, progress).labels


@BOTH_WAYS
def test_killed_and_started_again_in_the_middle_of_a_volume(served: Served, shared: bool) -> None:
    engine = served.engine(shared_memory=shared)
    ready: list[float] = []
    answered: list[float] = []

    def restart() -> None:
        served.server.start()
        ready.append(time.monotonic())

    def kill() -> None:
        served.server.kill()
        thread.start()

    def progress(done: int, _: int) -> None:
        if done == 10:
            kill()
        if ready and not answered:
            answered.append(time.monotonic())

    thread = threading.Thread(target=restart)
    job = engine.for_job(False, lambda: False)
    labels = Segmenter(served.model, job).segment(VOLUME, progress).labels
    thread.join()
    np.testing.assert_array_equal(labels, served.mask)
    assert engine.shares_memory == shared
    assert answered[0] - ready[0] < 2.0
    engine.close()


@BOTH_WAYS
def test_a_server_that_hangs_is_noticed_and_used_again_when_it_goes_on(served: Served, shared: bool) -> None:
    engine = served.engine(shared_memory=shared, timeout=0.7)

    def hang() -> None:
        served.server.signal(signal.SIGSTOP)
        threading.Timer(2.5, served.server.signal, [signal.SIGCONT]).start()

    np.testing.assert_array_equal(segmented(served, engine, 10, hang), served.mask)
    assert engine.ready()
    engine.close()
    assert own_regions(served) == []


def test_a_server_that_hangs_for_good_is_one_error_in_time(served: Served) -> None:
    engine = served.engine(timeout=0.5, patience=1.0)
    served.server.signal(signal.SIGSTOP)
    start = time.monotonic()
    try:
        with pytest.raises(EngineError, match="does not answer") as caught:
            engine.run(WINDOW)
        assert time.monotonic() - start < 10
        assert caught.value.code == "triton_unavailable"
        assert not engine.ready()
    finally:
        served.server.signal(signal.SIGCONT)
    assert np.isfinite(engine.run(WINDOW)).all()
    engine.close()


def own_regions(served: Served) -> list[str]:
    channel = Channel(served.server.address)
    try:
        return [name for name in channel.regions() if f"-{os.getpid()}-" in name]
    finally:
        channel.close()


def test_shared_memory_leaves_nothing_behind(served: Served) -> None:
    engine = served.engine()
    engine.run(WINDOW)
    assert len(own_regions(served)) == 1
    assert not list(Path("/dev/shm").glob(f"hilum-*-{os.getpid()}-*")), "it has a name only while the server opens it"
    engine.close()
    assert own_regions(served) == []


def spoil_type(reply: Any) -> None:
    reply.outputs[0].datatype = "FP16"


def spoil_shape(reply: Any) -> None:
    reply.outputs[0].shape[2] = SIZE[0] - 1


def spoil_name(reply: Any) -> None:
    reply.outputs[0].name = "features"


def spoil_model(reply: Any) -> None:
    reply.model_version = "2"


def spoil_twice(reply: Any) -> None:
    reply.outputs.add().CopyFrom(reply.outputs[0])


def spoil_nothing(reply: Any) -> None:
    del reply.outputs[:]


EVERY_WAY = [spoil_type, spoil_shape, spoil_name, spoil_model, spoil_twice, spoil_nothing]


def spoil_length(reply: Any) -> None:
    reply.raw_output_contents[0] = reply.raw_output_contents[0][:-4]


def spoil_content(reply: Any) -> None:
    del reply.raw_output_contents[:]


def spoil_value(reply: Any) -> None:
    values = np.frombuffer(reply.raw_output_contents[0], np.float32).copy()
    values[len(values) // 2] = np.inf
    reply.raw_output_contents[0] = values.tobytes()


def spoil_place(reply: Any) -> None:
    reply.raw_output_contents[:] = [b"\0" * 16]


@pytest.mark.parametrize(
    ("shared", "spoil"),
    [
        *((False, each) for each in (*EVERY_WAY, spoil_length, spoil_content, spoil_value)),
        *((True, each) for each in (*EVERY_WAY, spoil_place)),
    ],
)
def test_an_answer_that_the_model_did_not_promise_is_never_used(
    served: Served, shared: bool, spoil: Callable[[Any], None]
) -> None:
    with Relay(served.server.address) as relay:
        engine = served.engine(relay.address, shared_memory=shared, in_flight=1)
        engine.run(WINDOW)
        assert engine.shares_memory == shared
        relay.spoil = spoil
        before = relay.infers
        with pytest.raises(EngineError, match="the model promises logits FP32") as caught:
            engine.run_weighted(WINDOW)
        assert caught.value.code == "bad_reply"
        assert relay.infers == before + 1, "a wrong answer says something about the server: it is not asked again"
        with pytest.raises(EngineError):
            Segmenter(served.model, engine).segment(VOLUME)
        relay.spoil = None
        assert np.isfinite(engine.run(WINDOW)).all()
        engine.close()


def test_a_server_that_says_done_and_wrote_nothing_is_seen(served: Served) -> None:
    """What lies in the memory then is an earlier answer, which fits and is finite, but for the poison."""

    def elsewhere(request: Any) -> None:
        request.outputs[0].parameters.clear()  # over the wire, then

    def nowhere(reply: Any) -> None:
        reply.raw_output_contents[:] = [b""]

    with Relay(served.server.address) as relay:
        engine = served.engine(relay.address)
        engine.run(WINDOW)
        relay.twist, relay.spoil = elsewhere, nowhere
        with pytest.raises(EngineError, match="not finite") as caught:
            engine.run(WINDOW)
        assert (engine.shares_memory, caught.value.code) == (True, "bad_reply")
        engine.close()


def test_another_model_after_a_restart_ends_the_job_instead_of_mixing_two(served: Served, tmp_path: Path) -> None:
    model, _ = publish_tiny(tmp_path / "models", manifest())
    triton_server.python_backed(tmp_path / "models", tmp_path / "served", seconds=0.02)
    with triton_server.Triton(tmp_path / "served", tmp_path / "scratch") as server:
        engine = TritonEngine(model, server.address, How(timeout=20.0))

        def exchange(done: int, _: int) -> None:
            if done != 5:
                return
            server.kill()
            for config in (tmp_path / "served").glob("*/configs/*.pbtxt"):
                config.write_text(config.read_text().replace('"python-fp32"', '"python-int8"'))
            server.start()

        with pytest.raises(ModelError, match="other files") as caught:
            Segmenter(model, engine.for_job(False, lambda: False)).segment(VOLUME, exchange)
        assert caught.value.code == "model_changed"
        assert engine.for_job(False, lambda: False).precision == "python-int8", "the next job takes what is served now"
        engine.close()


def test_a_cancelled_job_calls_its_windows_back_from_the_server(tmp_path: Path) -> None:
    model, _ = publish_tiny(tmp_path / "models", manifest())
    triton_server.python_backed(tmp_path / "models", tmp_path / "served", seconds=0.5)
    with triton_server.Triton(tmp_path / "served", tmp_path / "scratch") as server:
        engine = TritonEngine(model, server.address)
        stop = threading.Event()
        job = Segmenter(model, engine.for_job(False, stop.is_set))
        threading.Timer(0.8, stop.set).start()
        start = time.monotonic()
        with pytest.raises(CancelledError):
            job.segment(VOLUME, cancelled=stop.is_set)
        assert time.monotonic() - start < 1.3, "nobody waits for windows that are called back"
        time.sleep(1.6)  # what runs, ends
        sent, _ = server.counts(model.name)
        assert server.log().count("a request is run") < sent, "the server was told"
        assert np.isfinite(engine.run(WINDOW)).all()
        engine.close()


def test_after_some_windows_in_vain_all_fail_at_once_until_the_server_is_back(served: Served) -> None:
    engine = served.engine(patience=0.2)
    served.server.kill()
    try:
        for _ in range(3):
            with pytest.raises(EngineError, match="does not answer"):
                engine.run(WINDOW)
        start = time.monotonic()
        with pytest.raises(EngineError, match="does not answer") as caught:
            engine.run(WINDOW)
        assert time.monotonic() - start < 0.1
        assert caught.value.code == "triton_unavailable"
    finally:
        served.server.start()
    time.sleep(0.5)
    assert np.isfinite(engine.run(WINDOW)).all()
    engine.close()
