"""The parts of the Triton engine that need no server."""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hilum_testing import SIZE, manifest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from hilum_inference.engines.triton import memory
from hilum_inference.engines.triton.breaker import Breaker, Patience
from hilum_inference.engines.triton.channel import CallError, failure_of
from hilum_inference.engines.triton.memory import Regions
from hilum_inference.engines.triton.reply import Expected, checked
from hilum_inference.engines.triton.wire import parsed
from hilum_inference.errors import EngineError, OutOfMemoryError

WINDOW = np.ones((1, 1, *SIZE), np.float32)
EXPECTED = Expected.of(manifest(), 1, WINDOW, "logits")


class Failed:
    """A gRPC error."""

    def __init__(self, code: grpc.StatusCode, text: str | None) -> None:
        self._code, self._text = code, text

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str | None:
        return self._text


@pytest.mark.parametrize(
    ("code", "text", "kind", "passes", "public"),
    [
        ("UNAVAILABLE", "failed to connect to all addresses", "gone", True, "triton_unavailable"),
        ("UNAVAILABLE", "Request timeout expired", "gone", True, "triton_unavailable"),
        ("NOT_FOUND", "Request for unknown model: 'tiny' is not found", "gone", True, "triton_unavailable"),
        ("CANCELLED", None, "gone", True, "triton_unavailable"),
        ("INTERNAL", "Stub process 'tiny_0_0' is not healthy.", "gone", True, "triton_unavailable"),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", "late", True, "triton_unavailable"),
        ("NOT_FOUND", "Unable to find shared memory region: 'hilum-1'", "region", True, "triton_unavailable"),
        ("INTERNAL", "Cannot unregister shared memory region 'x', it is currently in use.", "busy", False, None),
        ("INTERNAL", "Failed to increase the shared memory pool size", "memory", False, "out_of_memory"),
        ("RESOURCE_EXHAUSTED", "Received message larger than max", "memory", False, "out_of_memory"),
        ("INVALID_ARGUMENT", "unexpected shape for input 'image'", "refused", False, "triton_failed"),
        ("INTERNAL", "The network failed: /secret/path", "refused", False, "triton_failed"),
    ],
)
def test_a_failure_is_tried_again_only_where_it_says_nothing_of_the_window(
    code: str, text: str | None, kind: str, passes: bool, public: str | None
) -> None:
    failure = failure_of(Failed(getattr(grpc.StatusCode, code), text))
    assert (failure.kind, failure.passes) == (kind, passes)
    if public is not None:
        error = failure.public()
        assert error.code == public
        assert isinstance(error, OutOfMemoryError) == (kind == "memory")
        assert "/secret" not in error.message


def test_the_breaker_lets_nobody_wait_after_some_failures_and_asks_once() -> None:
    breaker, asked = Breaker(failures=2, rest=0.2), []

    def back() -> bool:
        asked.append(time.monotonic())
        time.sleep(0.1)
        return True

    breaker.gave_up()
    assert breaker.closed(back)
    breaker.gave_up()
    assert not breaker.closed(back)
    assert asked == []
    time.sleep(0.25)
    answers: list[bool] = []
    threads = [threading.Thread(target=lambda: answers.append(breaker.closed(back))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (answers, len(asked)) == ([True] * 4, 1)


def test_the_breaker_stays_open_while_the_server_is_away() -> None:
    breaker = Breaker(failures=1, rest=0.1)
    breaker.gave_up()
    time.sleep(0.15)
    assert not breaker.closed(lambda: False)
    assert not breaker.closed(lambda: True), "it rests again"
    time.sleep(0.15)
    assert breaker.closed(lambda: True)


def test_patience_runs_from_the_first_failure() -> None:
    assert not Patience(0.0).lasts()
    patience = Patience(0.1)
    assert patience.lasts()
    time.sleep(0.15)
    assert not patience.lasts()


def reply(**changes: Any) -> Any:
    output = {"name": "logits", "datatype": "FP32", "shape": EXPECTED.shape} | changes
    values = np.zeros(EXPECTED.shape, np.float32).tobytes()
    return service_pb2.ModelInferResponse(
        model_name="tiny", model_version="1", id="7", outputs=[output], raw_output_contents=[values]
    )


def test_a_reply_is_taken_apart_without_a_copy() -> None:
    message = reply()
    message.parameters["key"].int64_param = -1
    message.raw_output_contents.append(b"more")
    found = parsed(message.SerializeToString())
    assert [bytes(part) for part in found.contents] == list(message.raw_output_contents)
    del message.raw_output_contents[:]
    assert found.message == message
    assert checked(found, EXPECTED, None).shape == EXPECTED.shape


def test_an_answer_in_half_is_half_as_large_and_comes_out_as_float32() -> None:
    thin = dataclasses.replace(EXPECTED, type="FP16")
    assert 2 * thin.bytes == EXPECTED.bytes
    values = np.random.default_rng(0).normal(size=EXPECTED.shape).astype(np.float16)
    message = reply(datatype="FP16")
    message.raw_output_contents[0] = values.tobytes()
    answer = checked(parsed(message.SerializeToString()), thin, None)
    assert answer.dtype == np.float32
    np.testing.assert_array_equal(answer, values)
    values[0, 0, 1, 2, 3] = np.inf
    message.raw_output_contents[0] = values.tobytes()
    with pytest.raises(EngineError, match="not finite"):
        checked(parsed(message.SerializeToString()), thin, None)
    with pytest.raises(EngineError, match=r"it is FP16 .* the model promises logits FP32"):
        checked(parsed(message.SerializeToString()), EXPECTED, None)


@given(st.binary(max_size=40), st.integers(0, 200))
def test_what_is_no_reply_is_a_value_error(noise: bytes, cut: int) -> None:
    whole = reply().SerializeToString()
    for data in (noise, whole[:cut] + noise, whole[: len(whole) - 1 - cut]):
        try:
            found = parsed(data)
        except ValueError:
            continue
        with pytest.raises(EngineError, match="cannot be used"):
            checked(found, EXPECTED, None)


class NoServer:
    """A channel whose server takes no shared memory, for one of several reasons."""

    address = "test:1"

    def __init__(self, why: str) -> None:
        self.why = why
        self.registered: list[str] = []

    def live(self) -> bool:
        return self.why != "gone"

    def shares_memory(self) -> bool:
        return self.why != "unable"

    def regions(self) -> list[str]:
        return []

    def register(self, name: str, key: str, size: int) -> None:
        assert (memory.FOLDER / key.strip("/")).stat().st_size == size
        self.registered.append(name)
        raise CallError("gone" if self.why == "gone" else "refused", "no")

    def unregister(self, name: str) -> None: ...


@pytest.mark.parametrize("why", ["unable", "elsewhere", "full"])
def test_the_wire_is_taken_where_memory_cannot_be_shared(
    why: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    if why == "full":
        monkeypatch.setattr("hilum_inference.engines.triton.memory.os.posix_fallocate", _full)
    channel: Any = NoServer(why)
    regions = Regions(channel)
    with caplog.at_level("INFO"):
        assert regions.take(10, 10) is None
        assert regions.take(10, 10) is None
    assert len(channel.registered) == (why == "elsewhere"), "it is tried once"
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "windows travel to Triton at test"  # told once
    ]
    assert not list(memory.FOLDER.glob("hilum-*"))
    regions.close()


def _full(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def test_a_server_that_is_gone_says_nothing_about_memory() -> None:
    channel: Any = NoServer("gone")
    regions = Regions(channel)
    for _ in range(2):
        with pytest.raises(CallError):
            regions.take(10, 10)
    assert len(channel.registered) == 2
    assert not list(memory.FOLDER.glob("hilum-*"))


def test_regions_of_processes_that_ended_by_force_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    channel: Any = NoServer("elsewhere")
    forgotten: list[str] = []
    dead, alive, foreign = f"{memory._prefix()}999999999-ab", f"{memory._prefix()}1-ab", "hilum-1-999999999-ab"
    monkeypatch.setattr(channel, "regions", lambda: [dead, alive, foreign, "other"])
    monkeypatch.setattr(channel, "unregister", forgotten.append)
    Regions(channel).take(10, 10)
    assert forgotten == [dead]


def test_where_there_is_no_shared_memory_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "FOLDER", tmp_path / "none")
    channel: Any = NoServer("elsewhere")
    assert Regions(channel).take(10, 10) is None


class Sharing(NoServer):
    """A channel whose server takes shared memory, and still uses that of ``busy``."""

    def __init__(self) -> None:
        super().__init__("sharing")
        self.known: list[str] = []
        self.busy: set[str] = set()

    def register(self, name: str, key: str, size: int) -> None:
        self.known.append(name)

    def unregister(self, name: str) -> None:
        if name in self.busy:
            raise CallError("busy", "in use")
        self.known.remove(name)


def test_a_region_is_used_again_only_after_an_answer_of_the_same_server() -> None:
    channel: Any = Sharing()
    regions = Regions(channel)

    def taken(size: int = 10) -> memory.Region:
        region = regions.take(size, size)
        assert region is not None
        return region

    first = taken()
    second = taken()
    assert first.name != second.name
    regions.give_back(first)
    assert taken() is first
    channel.busy.add(first.name)
    regions.drop(first)  # its request failed: the server may write into it later
    assert taken().name not in (first.name, second.name)
    regions.renew()
    regions.give_back(second)  # of a server that is no more
    larger = taken(5000)
    assert larger.name != second.name
    assert first.name in channel.known, "the server still uses it"
    channel.busy.clear()
    regions.give_back(larger)
    regions.close()
    assert not {first.name, second.name, larger.name} & set(channel.known)


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_what_a_server_leaves_out_of_an_answer_is_not_finite(kind: type[np.floating[Any]]) -> None:
    channel: Any = Sharing()
    windows = WINDOW.astype(kind)
    region = Regions(channel).take(windows.nbytes, EXPECTED.bytes)
    assert region is not None
    answer = region.get(EXPECTED.shape, kind)
    answer[:] = 1  # an earlier one
    region.put(windows)
    pages = answer.reshape(answer.nbytes // memory.PAGE, -1)
    assert np.isnan(pages).any(axis=1).all()
    np.testing.assert_array_equal(np.frombuffer(region.memory, kind, windows.size), windows.ravel())
