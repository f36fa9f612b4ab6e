"""The gateway's end of the inference worker: starts it, talks to it, starts it again when it dies."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

Message = dict[str, Any]

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 10.0
STEADY_SECONDS = 30.0
"""A worker that lived this long starts again without a pause for earlier deaths."""
LONGEST_LINE = 16 * 1024 * 1024
ANSWER_SECONDS = 30.0

PING_SECONDS = 10.0
"""Between two questions for a sign of life, which the worker's reading thread answers while others compute."""
SILENT_PINGS = 3
"""Unanswered in a row, after which the worker counts as not ready."""
HUNG_PINGS = 6
"""Unanswered in a row without any computing, after which it is started again."""
IDLE_SHARE = 0.01
"""Of a processor; who uses more computes: a call of a library may keep the reading thread from answering."""

log = logging.getLogger("hilum.gateway")


class WorkerGoneError(Exception):
    """The worker is not there to answer."""


class WorkerLink:
    """One worker process and its restarts.

    Args:
        command: how to start it; the parent's process id is appended.
        config: its first message.

    Attributes:
        ready: its engine is open, and it gives signs of life.
        lacks: why no model can be used, as one sentence; None where one can.
    """

    def __init__(self, command: Sequence[str], config: Message) -> None:
        self._command = (*command, str(os.getpid()))
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._stdin: asyncio.StreamWriter | None = None
        self._asks: dict[int, asyncio.Future[Message]] = {}
        self._count = 0
        self._task: asyncio.Task[None] | None = None
        self._up = False
        self._arrived = False
        self.ready = False
        self.lacks: str | None = None
        self.restarts = 0

    @classmethod
    def of_module(cls, config: Message) -> WorkerLink:
        """The worker of this package."""
        return cls((sys.executable, "-m", "hilum_server.worker"), config)

    @property
    def pid(self) -> int | None:
        """Process id of the worker that runs now."""
        return None if self._process is None else self._process.pid

    def spawn(self) -> None:
        """Start the process; may be called before there is an event loop, so that it loads while the gateway does."""
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, stderr=pipe)  # noqa: S603 - our own
        if self._process.stdin is not None:
            self._process.stdin.write(json.dumps(self._config).encode() + b"\n")
            self._process.stdin.flush()

    def start(self, heard: Callable[[Message], Awaitable[None]], died: Callable[[], Awaitable[None]]) -> None:
        """Listen from now on: ``heard`` gets every message about jobs, ``died`` each death of the worker."""
        self._task = asyncio.create_task(self._keep(heard, died), name="worker")

    async def stop(self) -> None:
        """End the worker and wait for it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.end()

    def send(self, message: Message) -> None:
        """Pass one order on; lost where the worker has just died (``died`` will tell)."""
        if self._stdin is not None and not self._stdin.is_closing():
            self._stdin.write(json.dumps(message).encode() + b"\n")

    async def ask(self, **question: Any) -> Message:
        """The worker's answer to a question.

        Raises:
            WorkerGoneError: it is not there, died meanwhile or did not answer in time.
        """
        if not self.ready:
            raise WorkerGoneError
        self._count += 1
        number = self._count
        future = self._asks[number] = asyncio.get_running_loop().create_future()
        self.send({**question, "ask": number})
        try:
            return await asyncio.wait_for(future, ANSWER_SECONDS)
        except TimeoutError as error:
            raise WorkerGoneError from error
        finally:
            self._asks.pop(number, None)

    async def _keep(self, heard: Callable[[Message], Awaitable[None]], died: Callable[[], Awaitable[None]]) -> None:
        pause = FIRST_PAUSE
        while True:
            born = time.monotonic()
            await survive(lambda: self._listen(heard))
            self.end()
            log.warning("the worker ended; it is started again in %.1f s", pause)
            while not await survive(died):
                await asyncio.sleep(FIRST_PAUSE * 10)
            await asyncio.sleep(pause)
            pause = FIRST_PAUSE if time.monotonic() - born > STEADY_SECONDS else min(2 * pause, LONGEST_PAUSE)
            self.restarts += 1

    async def _listen(self, heard: Callable[[Message], Awaitable[None]]) -> None:
        if self._process is None:
            self.spawn()
        process = self._process
        if process is None or process.stdin is None or process.stdout is None or process.stderr is None:
            return
        loop = asyncio.get_running_loop()
        out, err = asyncio.StreamReader(LONGEST_LINE), asyncio.StreamReader(LONGEST_LINE)
        await loop.connect_read_pipe(lambda: _Ear(out, self._hark), process.stdout)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(err), process.stderr)
        transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, process.stdin)
        self._stdin = asyncio.StreamWriter(transport, protocol, None, loop)
        logs = asyncio.create_task(_pass_on_logs(err))
        watch = asyncio.create_task(self._watch(process, heard), name="watch")
        try:
            while line := await out.readline():
                await self._hear(json.loads(line), heard)
            await asyncio.wait([logs], timeout=1.0)
        finally:
            watch.cancel()
            logs.cancel()

    async def _watch(self, process: subprocess.Popen[bytes], heard: Callable[[Message], Awaitable[None]]) -> None:
        """Ask for signs of life; end a worker that gives none and computes nothing.

        Counted in questions, not in time: while the machine was suspended none was asked.
        """
        missed = idle = 0
        used = _cpu_seconds(process.pid)
        while True:
            await asyncio.sleep(PING_SECONDS)
            if not self._up:  # it opens its engine, and reads no orders yet
                continue
            before, used = used, _cpu_seconds(process.pid)
            idle = 0 if used is None or before is None or used - before > IDLE_SHARE * PING_SECONDS else idle + 1
            missed, self._arrived = 0 if self._arrived else missed + 1, False
            if missed == 0 and not self.ready:
                self.ready = True
                await survive(lambda: heard({"say": "ready"}))
            elif missed == SILENT_PINGS:
                log.warning("the worker has not answered for %.0f s; no job is begun", missed * PING_SECONDS)
                self.ready = False
            if min(missed, idle) >= HUNG_PINGS:
                log.error("the worker hangs: it neither answers nor computes; it is ended")
                process.kill()
                return
            self.send({"do": "ping"})

    def _hark(self) -> None:
        self._arrived = True

    async def _hear(self, message: Message, heard: Callable[[Message], Awaitable[None]]) -> None:
        if message["say"] == "answer":
            future = self._asks.get(message["ask"])
            if future is not None and not future.done():
                future.set_result(message)
            return
        if message["say"] == "pong":
            return
        if message["say"] == "ready":
            self._up = self.ready = True
            self.lacks = message.get("lacks")
        await heard(message)

    def end(self) -> None:
        """End the process at once; what it did not finish it will be asked for again."""
        self._up = self.ready = False
        if self._stdin is not None:
            self._stdin.close()
            self._stdin = None
        for future in self._asks.values():
            if not future.done():
                future.set_exception(WorkerGoneError())
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class _Ear(asyncio.StreamReaderProtocol):
    """Tells of each arrival at once, however busy the one is who reads."""

    def __init__(self, reader: asyncio.StreamReader, arrived: Callable[[], None]) -> None:
        super().__init__(reader)
        self._arrived = arrived

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        self._arrived()
        super().data_received(data)


def _cpu_seconds(pid: int) -> float | None:
    """Processor time that a process has used; None where the kernel does not tell: nobody is called idle there."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def survive(act: Callable[[], Awaitable[None]]) -> bool:
    """Whether ``act`` went well; a full disk or a locked store must not end the gateway's own tasks."""
    try:
        await act()
    except Exception:
        log.exception("a task of the gateway failed; it is tried again")
        return False
    return True


async def _pass_on_logs(lines: asyncio.StreamReader) -> None:
    while line := await lines.readline():
        try:
            entry = json.loads(line)
            level, name, text = entry["level"], entry["name"], entry["message"]
        except (ValueError, KeyError, TypeError):
            level, name, text, entry = "WARNING", "hilum.worker", line.decode(errors="replace")[:500].rstrip(), {}
        extra = {"trace": entry["trace"]} if "trace" in entry else None
        logging.getLogger(name).log(logging.getLevelNamesMapping().get(level, 30), "%s", text, extra=extra)
