"""The queue with a real store and a worker on a string."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from hilum_server import jobs
from hilum_server.jobs import Jobs, new_id
from hilum_server.link import Message, WorkerLink
from hilum_server.metrics import Metrics
from hilum_server.problems import ProblemError
from hilum_server.settings import ServerSettings
from hilum_server.store import Job, Priority, Store

DONE = {"result": {"sha256": "5a", "bytes": 1}, "report": {"windows": 4, "timings": {"network": 1.5}}}

JOB = Job("0" * 32, "anna", "bright", "1", images={"CT": "v"})


class StringLink(WorkerLink):
    """Keeps what the worker would be told."""

    def __init__(self) -> None:
        super().__init__((), {})
        self.sent: list[Message] = []
        self.ready = True

    def start(self, heard: Callable[[Message], Awaitable[None]], died: Callable[[], Awaitable[None]]) -> None:
        pass

    def send(self, message: Message) -> None:
        self.sent.append(message)

    def running(self) -> list[str]:
        return [message["job"] for message in self.sent if message["do"] == "run"]


class Bench:
    """A queue, its worker's string, and short ways to use them."""

    def __init__(self, folder: Path, **limits: Any) -> None:
        self.link = StringLink()
        self.metrics = Metrics()
        self.store = Store(folder / "jobs.sqlite").open()
        self.folder = folder / "jobs"
        self.jobs = Jobs(self.store, self.link, self.folder, ServerSettings(**limits), self.metrics)

    async def submit(self, priority: Priority = "batch", owner: str = "anna", key: str | None = None) -> Job:
        job = Job(new_id(), owner, "bright", "1", images={"CT": "v"}, priority=priority, key=key)
        return await self.jobs.submit(job, ["/v.nii"])

    async def status(self, job: Job) -> str:
        return (await self.jobs.get(job.id, None)).status

    async def say(self, say: str, job: Job, **more: Any) -> None:
        await self.jobs.heard({"say": say, "job": job.id, **more})


@asynccontextmanager
async def bench(folder: Path, **limits: Any) -> AsyncIterator[Bench]:
    made = Bench(folder, grace_seconds=0, **limits)
    await made.jobs.start(lambda _volume: Path("/v.nii"))
    yield made
    await made.jobs.stop()


async def test_one_job_of_each_priority_runs_in_the_order_they_came(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        first, second = await b.submit(), await b.submit()
        click = await b.submit("interactive")
        assert b.link.running() == [first.id, click.id]
        await b.say("done", first, **DONE)
        assert b.link.running() == [first.id, click.id, second.id]
        job = await b.jobs.get(first.id, "anna")
        assert (job.status, job.attempts, job.result) == ("done", 1, DONE["result"])
        assert b.jobs.progress(job).done == b.jobs.progress(job).total == 4
        assert b.metrics.jobs["done"] == 1 and b.metrics.windows == 4


async def test_the_row_says_running_before_the_worker_hears_of_it(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        states = []
        b.link.send = lambda message: states.append(b.store.get(message["job"]))  # type: ignore[method-assign]
        await b.submit()
        assert [job.status for job in states if job] == ["running"]


async def test_same_key_same_job(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        job = await b.submit(key="k")
        assert (await b.submit(key="k")).id == job.id
        await b.say("done", job, **DONE)
        assert (await b.submit(key="k")).status == "done"
        assert len(b.link.running()) == 1


async def test_a_key_for_another_request_is_refused(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        job = await b.submit(key="k")
        assert (await b.jobs.known(replace(job, id=new_id()))) is not None
        with pytest.raises(ProblemError) as caught:
            await b.jobs.known(replace(job, id=new_id(), images={"CT": "other"}))
        assert (caught.value.status, caught.value.code) == (422, "key_reused")


async def test_two_orders_under_one_key_at_once_are_told_apart(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        asked = [replace(JOB, id=new_id(), key="k", asked=f'["bright", {version}]') for version in (1, 1, 2)]
        found = await asyncio.gather(*(b.jobs.submit(job, ["/v.nii"]) for job in asked), return_exceptions=True)
        assert isinstance(found[0], Job) and isinstance(found[1], Job) and found[0].id == found[1].id == asked[0].id
        assert isinstance(found[2], ProblemError) and (found[2].status, found[2].code) == (422, "key_reused")
        assert len(b.store.list()) == 1


async def test_a_job_that_the_store_did_not_let_begin_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "PAUSES", (0.01, 0.02))
    async with bench(tmp_path) as b:
        b.jobs._pause = 0.01
        save, failures = b.store.save, iter(range(3))

        def failing(job: Job, was: Any) -> bool:
            if next(failures, None) is not None:
                raise OperationalError("UPDATE", {}, Exception("database or disk is full"))
            return save(job, was)

        b.store.save = failing  # type: ignore[method-assign]
        job = await b.submit(key="k")
        assert job.status == "queued" and not b.link.running() and b.jobs._pause == 0.02
        async with asyncio.timeout(5):
            while not b.link.running():
                await asyncio.sleep(0.01)
        assert b.link.running() == [job.id] and (await b.jobs.get(job.id, None)).attempts == 1


async def test_what_a_kill_left_among_the_outputs_is_removed(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        job = await b.submit()
        await b.say("done", job, **DONE)
    for name in (job.id, new_id()):
        (tmp_path / "jobs" / name).mkdir(parents=True)
        for file in ("mask.nii.gz", ".mask.nii.gz.1a2b.part"):
            (tmp_path / "jobs" / name / file).write_bytes(b"x")
    async with bench(tmp_path):
        left = [str(path.relative_to(tmp_path / "jobs")) for path in (tmp_path / "jobs").rglob("*")]
        assert sorted(left) == [job.id, f"{job.id}/mask.nii.gz"]


async def test_the_plan_is_told_before_the_first_window_and_after_the_last(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        job = await b.submit()
        assert b.jobs.progress(job).plan is None
        plan = {"windows": 4, "bytes": 1000, "seconds": None}
        await b.say("progress", job, done=0, total=4, seconds=None, plan=plan)
        await b.say("progress", job, done=1, total=4, seconds=3.0)
        assert b.jobs.progress(job).plan == plan and b.jobs.progress(job).done == 1
        await b.say("done", job, result=DONE["result"], report={"windows": 4, "planned_bytes": 1000})
        assert b.jobs.progress(await b.jobs.get(job.id, None)).plan == plan


async def test_the_queue_is_bounded_for_each_and_for_all(tmp_path: Path) -> None:
    async with bench(tmp_path, queue=3, queue_per_user=2) as b:
        job = await b.submit()
        await b.submit()
        await b.say("progress", job, done=1, total=4, seconds=30.0)
        with pytest.raises(ProblemError) as caught:
            await b.submit()
        assert (caught.value.status, caught.value.headers) == (429, {"Retry-After": "30"})
        await b.submit(owner="ben")
        with pytest.raises(ProblemError) as caught:
            await b.submit(owner="carl")
        assert caught.value.status == 503 and int(caught.value.headers["Retry-After"]) >= 1
        assert len(b.store.list()) == 3
        await b.say("done", job, **DONE)
        await b.submit()


async def test_after_its_worker_died_a_job_runs_again_three_times_at_most(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        job = await b.submit()
        for attempt in (1, 2, 3):
            assert (await b.jobs.get(job.id, None)).attempts == attempt
            await b.jobs.died()
            await b.jobs.heard({"say": "ready"})
        ended = await b.jobs.get(job.id, None)
        assert ended.status == "failed" and ended.error is not None and ended.error["code"] == "poison"
        assert len(b.link.running()) == 3


async def test_a_queued_job_is_cancelled_at_once_and_never_runs(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        first, second = await b.submit(), await b.submit()
        assert (await b.jobs.cancel(second)).status == "cancelled"
        await b.say("done", first, **DONE)
        assert b.link.running() == [first.id]
        assert (await b.jobs.cancel(second)).status == "cancelled"
        with pytest.raises(ProblemError) as caught:
            await b.jobs.cancel(first)
        assert (caught.value.status, caught.value.code) == (409, "already_finished")


async def test_cancelling_wins_over_a_result_that_comes_too_late(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        job, following = await b.submit(), await b.submit()
        await b.jobs.cancel(job)
        assert {"do": "cancel", "job": job.id} in b.link.sent
        assert b.link.running() == [job.id], "the lane is not free before the worker says so"
        b.jobs.folder(job).mkdir(parents=True)
        await b.say("done", job, **DONE)
        assert await b.status(job) == "cancelled" and not b.jobs.folder(job).exists()
        assert b.link.running() == [job.id, following.id]


async def test_retry_and_delete(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        job = await b.submit()
        with pytest.raises(ProblemError):
            await b.jobs.delete(job)
        with pytest.raises(ProblemError):
            await b.jobs.retry(job, ["/v.nii"])
        await b.say("failed", job, status=502, code="engine_failed", detail="…")
        assert (await b.jobs.retry(job, ["/v.nii"])).status == "queued"
        assert b.link.running() == [job.id, job.id]
        await b.say("done", job, **DONE)
        b.jobs.folder(job).mkdir(parents=True)
        await b.jobs.delete(job)
        assert not b.jobs.folder(job).exists()
        with pytest.raises(ProblemError) as caught:
            await b.jobs.get(job.id, None)
        assert caught.value.status == 404


async def test_another_ones_job_is_as_unknown_as_none(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        job = await b.submit(owner="anna")
        bodies = []
        for job_id in (job.id, new_id(), "../../x"):
            with pytest.raises(ProblemError) as caught:
                await b.jobs.get(job_id, "ben")
            bodies.append(caught.value.body())
        assert bodies[0] == bodies[1] == bodies[2]
        assert await b.jobs.list("ben", 10) == ()


async def test_a_follower_sees_each_change_and_the_end(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        job = await b.submit()
        seen: list[str] = []

        async def follow() -> None:
            async for change in b.jobs.follow(job, heartbeat=0.05):
                seen.append("beat" if change is None else f"{change.status} {b.jobs.progress(change).done}")

        follower = asyncio.create_task(follow())
        await asyncio.sleep(0.12)
        await b.say("progress", job, done=2, total=4, seconds=None)
        await asyncio.sleep(0.02)
        await b.say("done", job, **DONE)
        await asyncio.wait_for(follower, 5)
        assert seen[0] == "running 0" and "beat" in seen and "running 2" in seen and seen[-1] == "done 4"


async def test_waiting_ends_with_the_job_or_the_time(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        job = await b.submit()
        assert (await b.jobs.wait(job, 0.05)).status == "running"
        waiting = asyncio.create_task(b.jobs.wait(job, 10))
        await asyncio.sleep(0.01)
        await b.say("done", job, **DONE)
        assert (await asyncio.wait_for(waiting, 1)).status == "done"


async def test_an_orderly_stop_keeps_the_queue_and_counts_no_attempt(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        running, waiting = await b.submit(), await b.submit()
    kept = Store(tmp_path / "jobs.sqlite").open()
    rows = [(job.id, job.status, job.attempts) for job in kept.unfinished()]
    assert rows == [(running.id, "queued", 0), (waiting.id, "queued", 0)]
    kept.close()
    async with bench(tmp_path) as again:
        await again.jobs.heard({"say": "ready"})
        assert again.link.running() == [running.id]


async def test_a_draining_queue_takes_and_begins_nothing(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        job, waiting = await b.submit(), await b.submit()
        drain = asyncio.create_task(b.jobs.drain())
        await asyncio.sleep(0)
        with pytest.raises(ProblemError) as caught:
            await b.submit()
        assert (caught.value.status, caught.value.code) == (503, "shutting_down")
        await b.say("done", job, **DONE)
        await drain
        assert b.link.running() == [job.id] and await b.status(waiting) == "queued"


async def test_a_job_whose_volume_is_gone_fails_at_the_start(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        job = await b.submit()
    again = Bench(tmp_path, grace_seconds=0)
    await again.jobs.start(lambda _volume: None)
    ended = await again.jobs.get(job.id, None)
    assert ended.status == "failed" and ended.error is not None and ended.error["code"] == "volume_lost"
    await again.jobs.stop()


async def test_old_jobs_are_swept(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        old, running = await b.submit(), await b.submit()
        await b.say("done", old, **DONE)
        b.jobs.folder(old).mkdir(parents=True)
        await b.jobs.sweep(moment=(await b.jobs.get(old.id, None)).created - 1)
        assert b.jobs.folder(old).exists()
        await b.jobs.sweep(moment=1e12)
        assert not b.jobs.folder(old).exists() and [job.id for job in b.store.list()] == [running.id]
