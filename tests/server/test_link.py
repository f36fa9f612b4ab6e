"""The gateway's end of the worker, with workers of a few lines."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hilum_server.link import Message, WorkerGoneError, WorkerLink

ECHO = """
import json, sys
config = json.loads(sys.stdin.readline())
print("not JSON, but a library's chatter", file=sys.stderr, flush=True)
print(json.dumps({"level": "WARNING", "name": "hilum.worker", "message": "a log line"}), file=sys.stderr, flush=True)
print(json.dumps({"say": "ready", "model": config["model"]}), flush=True)
for line in sys.stdin:
    order = json.loads(line)
    if order["do"] == "die":
        sys.exit(1)
    if "ask" in order:
        print(json.dumps({"say": "answer", "ask": order["ask"], "echo": order["do"]}), flush=True)
    else:
        print(json.dumps({"say": "progress", "job": order["do"]}), flush=True)
"""


HANGS = """
import json, os, signal, sys, time
sys.stdin.readline()
print(json.dumps({"say": "ready"}), flush=True)
for line in sys.stdin:
    match json.loads(line)["do"]:
        case "ping":
            print(json.dumps({"say": "pong"}), flush=True)
        case "hang":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "compute":  # as a library's call that lets no other thread run
            end = time.process_time() + 1.5
            while time.process_time() < end:
                pass
"""


class Listener:
    """Notes what it hears; fails as often as asked."""

    def __init__(self, failures: int = 0) -> None:
        self.heard: list[Message] = []
        self.deaths = 0
        self.failures = failures

    async def hear(self, message: Message) -> None:
        self.heard.append(message)

    async def died(self) -> None:
        if self.failures:
            self.failures -= 1
            raise OSError("the disk is full")
        self.deaths += 1


@pytest.fixture
def link(tmp_path: Path) -> WorkerLink:
    script = tmp_path / "worker.py"
    script.write_text(ECHO)
    return WorkerLink((sys.executable, str(script)), {"model": "bright"})


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WorkerLink:
    """A worker that hangs or computes when it is told to; the gateway is quick to lose its patience."""
    monkeypatch.setattr("hilum_server.link.PING_SECONDS", 0.1)
    script = tmp_path / "worker.py"
    script.write_text(HANGS)
    return WorkerLink((sys.executable, str(script)), {})


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_messages_and_questions(link: WorkerLink, caplog: pytest.LogCaptureFixture) -> None:
    listener = Listener()
    link.spawn()
    with pytest.raises(WorkerGoneError):
        await link.ask(do="early")
    link.start(listener.hear, listener.died)
    with caplog.at_level(logging.WARNING):
        await until(lambda: link.ready)
        answers = await asyncio.gather(*(link.ask(do=f"q{n}") for n in range(5)))
        assert [answer["echo"] for answer in answers] == [f"q{n}" for n in range(5)]
        link.send({"do": "job-1"})
        await until(lambda: len(listener.heard) == 2)
        await until(lambda: len(caplog.records) >= 2)
    assert listener.heard == [{"say": "ready", "model": "bright"}, {"say": "progress", "job": "job-1"}]
    assert {record.getMessage() for record in caplog.records} >= {"a log line", "not JSON, but a library's chatter"}
    await link.stop()
    assert link.pid is None and listener.deaths == 0


async def test_a_dead_worker_is_started_again_and_its_question_ends(link: WorkerLink) -> None:
    listener = Listener()
    link.start(listener.hear, listener.died)
    await until(lambda: link.ready)
    first = link.pid
    question = asyncio.create_task(link.ask(do="die"))
    with pytest.raises(WorkerGoneError):
        await question
    await until(lambda: link.ready)
    assert listener.deaths == 1 and link.restarts == 1 and link.pid != first
    await link.stop()


async def test_a_failure_in_the_gateway_does_not_end_the_watch(link: WorkerLink) -> None:
    listener = Listener(failures=1)
    link.start(listener.hear, listener.died)
    await until(lambda: link.ready)
    link.send({"do": "die"})
    await until(lambda: listener.deaths == 1)
    await until(lambda: link.ready)
    await link.stop()


async def test_a_worker_that_hangs_is_not_ready_and_then_started_again(
    hanging: WorkerLink, caplog: pytest.LogCaptureFixture
) -> None:
    listener = Listener()
    hanging.start(listener.hear, listener.died)
    await until(lambda: hanging.ready)
    await asyncio.sleep(1.0)  # longer than any patience: it answers
    assert hanging.ready and listener.deaths == 0
    first = hanging.pid
    hanging.send({"do": "hang"})
    await until(lambda: not hanging.ready)
    assert hanging.pid == first, "first it only counts as not ready"
    await until(lambda: hanging.ready)
    assert listener.deaths == 1 and hanging.pid != first and "the worker hangs" in caplog.text
    await hanging.stop()


async def test_a_worker_that_goes_on_in_time_is_kept(hanging: WorkerLink) -> None:
    listener = Listener()
    hanging.start(listener.hear, listener.died)
    await until(lambda: hanging.ready)
    first = hanging.pid
    assert first is not None
    os.kill(first, signal.SIGSTOP)
    await until(lambda: not hanging.ready)
    os.kill(first, signal.SIGCONT)
    await until(lambda: hanging.ready)
    assert listener.deaths == 0 and hanging.pid == first
    assert listener.heard.count({"say": "ready"}) == 2, "what waited meanwhile is begun"
    await hanging.stop()


async def test_a_worker_that_computes_without_a_word_is_never_ended(hanging: WorkerLink) -> None:
    listener = Listener()
    hanging.start(listener.hear, listener.died)
    await until(lambda: hanging.ready)
    first = hanging.pid
    hanging.send({"do": "compute"})
    await until(lambda: not hanging.ready)
    await until(lambda: hanging.ready)
    assert listener.deaths == 0 and hanging.pid == first
    await hanging.stop()


async def test_a_gateway_that_is_busy_itself_blames_no_worker(hanging: WorkerLink) -> None:
    listener = Listener()

    async def slow(message: Message) -> None:
        await listener.hear(message)
        if message["say"] == "ready":
            await asyncio.sleep(1.5)  # a store that is locked, say

    hanging.start(slow, listener.died)
    await until(lambda: hanging.ready)
    await asyncio.sleep(1.2)
    assert hanging.ready and listener.deaths == 0
    await hanging.stop()
