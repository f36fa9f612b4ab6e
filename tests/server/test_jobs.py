"""The queue with a real store and a worker on a string."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from hilum_server import jobs
from hilum_server.datastore import forget_outputs
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


async def test_a_whole_result_that_the_store_does_not_know_is_set_aside_and_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with bench(tmp_path) as b:
        job = await b.submit()
        await b.say("done", job, **DONE)
    for file in ("mask.nii.gz", "report.json"):
        write(tmp_path / "jobs" / job.id / file)
    known = tmp_path / "jobs.sqlite"
    known.rename(tmp_path / "damaged.sqlite")
    with caplog.at_level(logging.WARNING):
        async with bench(tmp_path):
            assert (tmp_path / "jobs" / ".orphaned" / job.id / "mask.nii.gz").read_bytes() == b"x"
        async with bench(tmp_path):
            assert len(list((tmp_path / "jobs" / ".orphaned").iterdir())) == 1
    assert f"1 results that the job store does not know lie in {tmp_path / 'jobs' / '.orphaned'}" in caplog.text
    (tmp_path / "damaged.sqlite").replace(known)
    async with bench(tmp_path) as b:
        assert b.jobs.mask(job).read_bytes() == b"x"


async def test_a_deletion_that_a_kill_cut_short_is_finished(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        job = await b.submit()
        await b.say("done", job, **DONE)
        for file in ("mask.nii.gz", "report.json"):
            write(tmp_path / "jobs" / job.id / file)
        forget_outputs(b.jobs.folder(job))
        b.store.delete(job.id)
    async with bench(tmp_path):
        assert not list((tmp_path / "jobs").iterdir())


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")


def locked(b: Bench, times: int) -> None:
    """Let the store refuse so many changes."""
    save, failures = b.store.save, iter(range(times))

    def failing(job: Job, was: Any) -> bool:
        if next(failures, None) is not None:
            raise OperationalError("UPDATE", {}, Exception("database is locked"))
        return save(job, was)

    b.store.save = failing  # type: ignore[method-assign]


@pytest.mark.parametrize("end", ["done", "failed", "cancelled"])
async def test_an_end_that_the_store_did_not_take_is_saved_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(jobs, "PAUSES", (0.01, 0.02))
    async with bench(tmp_path) as b:
        b.jobs._pause = 0.01
        job, other = await b.submit("interactive"), await b.submit()
        locked(b, 3)
        said: dict[str, dict[str, Any]] = {
            "done": DONE,
            "failed": {"status": 502, "code": "engine_failed", "detail": "…"},
            "cancelled": {},
        }
        await b.say(end, job, **said[end])  # raises nothing: the link would end the worker, and the other lane's job
        assert await b.status(job) == "running" and b.metrics.windows == 0
        async with asyncio.timeout(5):
            while await b.status(job) != end:
                await asyncio.sleep(0.01)
        ended = b.store.get(job.id)
        assert ended is not None and (ended.status, ended.attempts) == (end, 1)
        assert (await b.jobs.get(other.id, None)).attempts == 1
        assert b.metrics.windows == (4 if end == "done" else 0)


async def test_a_job_that_ended_is_not_run_again_where_its_worker_dies_before_the_store_knows(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        job = await b.submit()
        locked(b, 1)
        await b.say("done", job, **DONE)
        await b.jobs.died()
        await b.jobs.heard({"say": "ready"})
        ended = await b.jobs.get(job.id, None)
        assert (ended.status, ended.attempts) == ("done", 1) and b.link.running() == [job.id]


async def test_an_end_is_saved_at_the_latest_when_the_gateway_stops(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        job = await b.submit()
        locked(b, 1)
        await b.say("done", job, **DONE)
        assert await b.status(job) == "running"
    kept = Store(tmp_path / "jobs.sqlite").open()
    assert [found.status for found in kept.list()] == ["done"]
    kept.close()


async def test_a_job_cancelled_while_its_end_waits_for_the_store_stays_cancelled(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        job = await b.submit()
        locked(b, 1)
        write(b.jobs.mask(job))
        await b.say("done", job, **DONE)
        assert (await b.jobs.cancel(job)).status == "cancelled"
        await b.jobs.heard({"say": "ready"})
        assert await b.status(job) == "cancelled" and not b.jobs.folder(job).exists()


async def test_no_job_ends_before_it_began_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(tmp_path) as b:
        job, cancelled = await b.submit(), await b.submit("interactive")
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now - 7200)
        await b.say("done", job, **DONE)
        await b.jobs.cancel(cancelled)
        for ended in (await b.jobs.get(job.id, None), await b.jobs.get(cancelled.id, None)):
            assert ended.started is not None and ended.ended is not None
            assert ended.created <= ended.started <= ended.ended


async def test_while_a_cancelled_job_still_runs_retry_and_delete_say_so(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        job = await b.submit()
        await b.jobs.cancel(job)
        for act, code in ((b.jobs.retry(job, ["/v.nii"]), "not_retryable"), (b.jobs.delete(job), "not_finished")):
            with pytest.raises(ProblemError, match="still being run; try again in a moment") as caught:
                await act
            assert (caught.value.status, caught.value.code) == (409, code)
        await b.say("cancelled", job)
        assert (await b.jobs.retry(job, ["/v.nii"])).status == "queued"


async def test_older_jobs_are_listed_page_by_page_and_by_status(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        made = [await b.submit(owner="ben" if number == 2 else "anna") for number in range(5)]
        await b.say("failed", made[0], status=502, code="engine_failed", detail="…")
        pages = [await b.jobs.list("anna", 2)]
        while pages[-1]:
            pages.append(await b.jobs.list("anna", 2, before=pages[-1][-1].id))
        ids = [job.id for job in made]
        assert [[ids.index(job.id) for job in page] for page in pages] == [[4, 3], [1, 0], []]
        assert [job.id for job in await b.jobs.list(None, 10, status="failed")] == [made[0].id]
        with pytest.raises(ProblemError) as caught:
            await b.jobs.list("anna", 2, before=made[2].id)
        assert caught.value.code == "unknown_job", "another's job is as unknown as none"


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


async def test_the_grace_period_is_given_once(tmp_path: Path) -> None:
    """The server drains when it is told to end, and the application once more when it does."""
    b = Bench(tmp_path, grace_seconds=1)
    await b.jobs.start(lambda _volume: Path("/v.nii"))
    job = await b.submit()
    await b.jobs.drain()
    assert b.link.running() == [job.id]
    await asyncio.wait_for(b.jobs.drain(), 0.5)
    await b.jobs.stop()


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
