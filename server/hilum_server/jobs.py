"""The durable queue: what is to be done, what is being done, and what became of it.

The store holds every change of state before anyone hears of it; progress lives here. One interactive and one batch job
run at a time, each in its lane of the worker. All methods belong to the event loop; the store runs in one thread.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from sqlalchemy.exc import DBAPIError

from hilum_client.wire import Status
from hilum_server.datastore import forget_outputs, tidy_outputs
from hilum_server.files import MASK_NAME
from hilum_server.link import Message, WorkerLink
from hilum_server.metrics import Metrics
from hilum_server.problems import BACK_END_TEXTS, ProblemError, key_reused, not_found, shutting_down, volume_lost
from hilum_server.progress import Progress, reported
from hilum_server.settings import ServerSettings
from hilum_server.store import Job, Store, now_after, requeued
from hilum_server.worker import LANES

P = ParamSpec("P")
T = TypeVar("T")

GUESSED_SECONDS = 10.0
"""Length of a job before the first has ended, for Retry-After."""
POISON: Mapping[str, Any] = {"status": 500, "code": "poison", "detail": BACK_END_TEXTS["poison"]}

PAUSES = (0.5, 30.0)
"""Seconds before a job that the store did not let begin or end is tried again: the first, doubled up to the last."""

log = logging.getLogger("hilum.jobs")


@dataclass
class _Live:
    """An unfinished job with what only memory knows."""

    job: Job
    paths: Sequence[str]
    progress: Progress = field(default_factory=Progress)
    changed: asyncio.Event = field(default_factory=asyncio.Event)


def new_id() -> str:
    """128 random bits as 32 hexadecimal digits."""
    return secrets.token_hex(16)


class Jobs:
    """The queue of one gateway.

    Args:
        store: opened.
        folder: each job's outputs lie in ``folder/<id>``.
    """

    def __init__(self, store: Store, link: WorkerLink, folder: Path, limits: ServerSettings, metrics: Metrics) -> None:
        self._store = store
        self._link = link
        self._folder = folder
        self._limits = limits
        self._metrics = metrics
        self._live: dict[str, _Live] = {}
        self._lanes: dict[str, str | None] = dict.fromkeys(LANES)
        self._ended: dict[str, Message] = {}  # by job: what the worker said last, and the store does not know yet
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._turn = asyncio.Lock()
        self._seconds = GUESSED_SECONDS
        self._pause = PAUSES[0]
        self._again: asyncio.Task[None] | None = None
        self._closing = False
        self.draining = False
        self._deadline: float | None = None

    async def start(self, locate: Callable[[str], Path | None]) -> None:
        """Take up what an earlier gateway left in the opened store; ``locate`` finds a volume's file by its id."""
        for job in await self._in_thread(self._store.recover, self._limits.attempts, POISON):
            found = [locate(volume) for volume in job.images.values()]
            if None in found:
                await self._change(job, status="failed", ended=now_after(job.created), error=_LOST)
            else:
                self._live[job.id] = _Live(job, [str(path) for path in found])
        await self._in_thread(tidy_outputs, self._folder, await self._in_thread(self._store.ids))

    async def drain(self) -> None:
        """Take and begin nothing new, let running jobs end within the grace period, then let go of those who follow."""
        self.draining = True
        if self._deadline is None:  # asked twice, when the server ends and when the application does: one grace period
            self._deadline = time.monotonic() + self._limits.grace_seconds
        while (any(self._lanes.values()) or self._ended) and time.monotonic() < self._deadline:
            await asyncio.sleep(0.02)
        self._closing = True
        for live in self._live.values():
            self._pulse(live)

    async def stop(self) -> None:
        """Drain, end the worker, put what still ran back into the queue and close the store."""
        await self.drain()
        await self._link.stop()
        if self._again is not None:
            self._again.cancel()
        await self._dispatch()  # the last chance for what has ended and is not in the store
        for live in list(self._live.values()):
            if live.job.status == "running":  # stopped by us, not its fault: this attempt does not count
                attempts = live.job.attempts - 1
                await self._change(live.job, status="queued", started=None, attempts=attempts)
        await self._in_thread(self._store.close)
        self._thread.shutdown()

    async def submit(self, job: Job, paths: Sequence[str]) -> Job:
        """Accept a job, or answer the one its owner submitted under the same key.

        Raises:
            ProblemError: 422 key used for another request, 429 or 503 queue full, 503 shutting down.
        """
        async with self._turn:
            self._admit(job)
            kept, new = await self._in_thread(self._store.add, replace(job, created=time.time()))
            if not kept.same_order(job):
                raise key_reused()
            if new:
                self._live[kept.id] = _Live(kept, paths)
        await self._dispatch()
        return self._live[kept.id].job if kept.id in self._live else kept

    async def known(self, job: Job) -> Job | None:
        """The job already submitted under this owner and key.

        Raises:
            ProblemError: 422 where that was for another request.
        """
        if job.key is None:
            return None
        same = await self._in_thread(self._store.by_key, job.owner, job.key)
        if same is not None and not same.same_order(job):
            raise key_reused()
        return same

    async def get(self, job_id: str, owner: str | None) -> Job:
        """One job of ``owner`` (None: of anyone).

        Raises:
            ProblemError: 404.
        """
        live = self._live.get(job_id)
        job = live.job if live else await self._in_thread(self._store.get, job_id)
        if job is None or (owner is not None and job.owner != owner):
            raise not_found("job")
        return job

    async def list(
        self, owner: str | None, limit: int, status: Status | None = None, before: str | None = None
    ) -> Sequence[Job]:
        """The newest jobs first; those in ``status``, and those that came before the job ``before``.

        Raises:
            ProblemError: 404 where that one is not there.
        """
        if before is not None:
            await self.get(before, owner)
        return await self._in_thread(self._store.list, owner, limit, status, before)

    def progress(self, job: Job) -> Progress:
        """How far a job is."""
        if live := self._live.get(job.id):
            return live.progress
        return reported(job.report or {})

    async def wait(self, job: Job, seconds: float) -> Job:
        """The job once it is finished, or as it is after ``seconds``."""
        deadline = time.monotonic() + seconds
        while (live := self._live.get(job.id)) and (left := deadline - time.monotonic()) > 0:
            try:
                await asyncio.wait_for(live.changed.wait(), left)
            except TimeoutError:
                break
        return await self.get(job.id, None)

    async def follow(self, job: Job, heartbeat: float) -> AsyncIterator[Job | None]:
        """The job now and after each change until it is finished; None each ``heartbeat`` seconds without one."""
        while True:
            live = self._live.get(job.id)
            changed = live.changed if live else None
            job = await self.get(job.id, None)
            yield job
            if changed is None or job.finished or self._closing:
                return
            while True:
                try:
                    await asyncio.wait_for(changed.wait(), heartbeat)
                    break
                except TimeoutError:
                    yield None

    async def cancel(self, job: Job) -> Job:
        """Cancel a job; compute stops before its next window.

        Raises:
            ProblemError: 409 where it has already ended otherwise.
        """
        async with self._turn:
            job = await self.get(job.id, None)
            if job.status == "cancelled":
                return job
            if job.finished:
                raise ProblemError(
                    409, "already_finished", f"The job is {job.status}; only unfinished jobs can be cancelled."
                )
            self._link.send({"do": "cancel", "job": job.id})
            return await self._change(job, status="cancelled", ended=now_after(job.created, job.started))

    async def retry(self, job: Job, paths: Sequence[str]) -> Job:
        """Queue a failed or cancelled job again, its attempts counted from nought.

        Raises:
            ProblemError: 409 where it is neither or its lane has not let go of it yet; as ``submit``.
        """
        async with self._turn:
            job = await self.get(job.id, None)
            self._check_stopped(job, "not_retryable")
            if job.status not in ("failed", "cancelled"):
                raise ProblemError(
                    409, "not_retryable", f"The job is {job.status}; only failed and cancelled ones can be retried."
                )
            self._admit(job)
            fresh = replace(job, status="queued", attempts=0, started=None, ended=None, error=None)
            if await self._in_thread(self._store.save, fresh, job.status):
                self._live[job.id] = _Live(fresh, paths)
        await self._dispatch()
        return fresh

    async def delete(self, job: Job) -> None:
        """Forget a finished job and its outputs.

        Raises:
            ProblemError: 409 where it is not finished or its lane has not let go of it yet.
        """
        async with self._turn:
            job = await self.get(job.id, None)
            self._check_stopped(job, "not_finished")
            if not job.finished:
                raise ProblemError(409, "not_finished", f"The job is {job.status}; cancel it before deleting it.")
            await self._forget(job)

    async def sweep(self, moment: float) -> None:
        """Delete jobs that ended before ``moment``."""
        for job in await self._in_thread(self._store.finished_before, moment):
            if job.id not in self._lanes.values():
                await self._forget(job)

    def folder(self, job: Job) -> Path:
        """Where a job's outputs lie."""
        return self._folder / job.id

    def mask(self, job: Job) -> Path:
        """The mask of a finished job, ``.nii.gz``."""
        return self.folder(job) / MASK_NAME

    def uses(self, volume: str) -> bool:
        """Whether an unfinished job needs this volume."""
        return any(volume in live.job.images.values() for live in self._live.values())

    def counts(self) -> Mapping[str, int]:
        """Unfinished jobs by status."""
        states = [live.job.status for live in self._live.values()]
        return {status: states.count(status) for status in ("queued", "running")}

    async def heard(self, message: Message) -> None:
        """Take a message of the worker."""
        if message["say"] == "ready":
            await self._dispatch()
            return
        live = self._live.get(message["job"])
        if message["say"] == "progress":
            if live and live.job.status == "running":
                plan = message.get("plan", live.progress.plan)
                live.progress = Progress(message["done"], message["total"], message["seconds"], plan)
                self._pulse(live)
            return
        self._ended[message["job"]] = message | {"ended": time.time()}
        await self._dispatch()

    async def died(self) -> None:
        """The worker died: its jobs go back to the queue, or fail where their attempts are used up."""
        async with self._turn:
            self._lanes = dict.fromkeys(LANES)
            for live in list(self._live.values()):
                if live.job.status == "running" and live.job.id not in self._ended and not self.draining:
                    again = requeued(live.job, self._limits.attempts, POISON)
                    live.progress = Progress()
                    await self._save(live.job, again)

    def _admit(self, job: Job) -> None:
        if self.draining:
            raise shutting_down()
        waiting = [live.job.owner for live in self._live.values()]
        if len(waiting) >= self._limits.queue:
            text = f"The queue is full ({self._limits.queue} jobs); try again later."
            raise ProblemError(503, "queue_full", text, {"Retry-After": str(self.retry_after())})
        if waiting.count(job.owner) >= self._limits.queue_per_user:
            text = f"You have {self._limits.queue_per_user} unfinished jobs, the most allowed; wait for one to end."
            raise ProblemError(429, "too_many_jobs", text, {"Retry-After": str(self.retry_after())})

    def retry_after(self) -> int:
        """Seconds until a place in the queue should be free: what is left of the jobs that run, at least 1."""
        running = [live.progress.seconds_left for live in self._live.values() if live.job.status == "running"]
        known = [seconds for seconds in running if seconds is not None]
        return max(1, min(3600, math.ceil(min(known) if known else self._seconds)))

    async def _dispatch(self) -> None:
        async with self._turn:
            try:
                for job_id in list(self._ended):
                    await self._end(self._ended.pop(job_id))
                for lane in LANES:
                    if self._lanes[lane] is None and self._link.ready and not self.draining:
                        await self._begin(lane)
                self._pause = PAUSES[0]
            except DBAPIError as error:  # the job stays as it is: nobody else would come back to it
                log.warning("the job store takes no change; tried again in %.1f s", self._pause, exc_info=error)
                self._try_again()

    def _try_again(self) -> None:
        async def later(seconds: float) -> None:
            await asyncio.sleep(seconds)
            self._again = None
            await self._dispatch()

        if self._again is None and not self._closing:
            self._again = asyncio.create_task(later(self._pause), name="dispatch")
            self._pause = min(2 * self._pause, PAUSES[1])

    async def _begin(self, lane: str) -> None:
        for live in self._live.values():
            if live.job.status == "queued" and live.job.priority == lane:
                break
        else:
            return
        attempts = live.job.attempts + 1
        started = now_after(live.job.created)
        job = await self._change(live.job, status="running", started=started, attempts=attempts)
        self._lanes[lane] = job.id
        order = {"model": job.model, "version": job.version, "digest": job.digest, "images": list(live.paths)}
        self._link.send({"do": "run", "job": job.id, "lane": lane, "folder": str(self.folder(job)), **order})

    async def _end(self, message: Message) -> None:
        """Save how a job ended; until the store takes that, the message is kept: the mask is on the disk by now."""
        self._let_go(message["job"])
        live = self._live.get(message["job"])
        if live is None or live.job.status != "running":  # cancelled meanwhile
            await self._in_thread(shutil.rmtree, self._folder / message["job"], True)
            return
        try:
            job = await self._change(live.job, **_outcome(live.job, message))
        except (DBAPIError, asyncio.CancelledError):
            self._ended[message["job"]] = message
            raise
        if job.status == "done":
            self._seconds += 0.3 * ((job.ended or 0.0) - (job.started or 0.0) - self._seconds)
            self._metrics.finished(message["report"])

    async def _forget(self, job: Job) -> None:
        await self._in_thread(forget_outputs, self.folder(job))
        await self._in_thread(self._store.delete, job.id)
        await self._in_thread(shutil.rmtree, self.folder(job), True)

    def _check_stopped(self, job: Job, code: str) -> None:
        if job.finished and job.id in self._lanes.values():
            text = f"The job is {job.status}, but its last window is still being run; try again in a moment."
            raise ProblemError(409, code, text, {"Retry-After": "1"})

    def _let_go(self, job_id: str) -> None:
        for lane, running in self._lanes.items():
            if running == job_id:
                self._lanes[lane] = None

    async def _change(self, job: Job, **changes: Any) -> Job:
        return await self._save(job, replace(job, **changes))

    async def _save(self, was: Job, job: Job) -> Job:
        await self._in_thread(self._store.save, job, was.status)
        live = self._live.get(job.id)
        if live is not None:
            live.job = job
            if job.finished:
                del self._live[job.id]
            self._pulse(live)
        if job.finished:
            self._metrics.ended(job.status)
        return job

    @staticmethod
    def _pulse(live: _Live) -> None:
        live.changed.set()
        live.changed = asyncio.Event()

    async def _in_thread(self, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: act(*args, **kwargs))


def _outcome(job: Job, message: Message) -> dict[str, Any]:
    """What a job becomes by the worker's last word on it."""
    changes = {"status": message["say"], "ended": max(message["ended"], job.started or job.created)}
    match message["say"]:
        case "done":
            return changes | {"result": message["result"], "report": message["report"]}
        case "failed":
            return changes | {"error": {name: message[name] for name in ("status", "code", "detail")}}
    return changes


_LOST: Mapping[str, Any] = {name: volume_lost().body()[name] for name in ("status", "code", "detail")}
