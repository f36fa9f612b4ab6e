"""A gateway from Python: ``Client`` for plain code, ``AsyncClient`` for an event loop; the same verbs and answers."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import httpx

from hilum_client import wire
from hilum_client.answers import Job, ModelInfo, Result, VolumeInfo
from hilum_client.errors import InputError
from hilum_client.steps import Call, Pause, Retry, Step, Steps
from hilum_client.verbs import Order, Verbs, jobs_of, models_of, refused_of

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from hilum_client.verbs import Image, Images, Progress

T = TypeVar("T")

DEFAULT_SERVER: Final = f"http://127.0.0.1:{wire.DEFAULT_PORT}"
DEFAULT_TIMEOUT: Final = httpx.Timeout(60.0, connect=5.0)
"""Seconds without a byte; a job may last as long as it likes."""


class Client:
    """A gateway, for plain code. Use it as a context manager, or ``close`` it.

    Args:
        server: its address.
        key: a key of ``hilum key new``; none is needed on the same machine.
        timeout: seconds without a byte, or an ``httpx.Timeout``.
        transport: for tests and special networks.
        retry: how often a call is tried again where the line broke or the server was full.

    Every verb raises the errors of ``hilum_client.errors``.
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        key: str | None = None,
        timeout: float | httpx.Timeout = DEFAULT_TIMEOUT,
        transport: httpx.BaseTransport | None = None,
        retry: Retry = Retry(),  # noqa: B008 - frozen
    ) -> None:
        self._verbs = Verbs(retry)
        self._http = httpx.Client(
            base_url=address(server),
            headers=headers(key),
            timeout=timeout,
            transport=transport,
            trust_env=not is_loopback(server),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def models(self) -> list[ModelInfo]:
        """All models of the server."""
        return self._run(self._verbs.get("/models", models_of))

    def refused(self) -> dict[str, str]:
        """The models that the server cannot use: name -> why."""
        return self._run(self._verbs.get("/models", refused_of))

    def model(self, name: str) -> ModelInfo:
        """One model, with its manifest."""
        return self._run(self._verbs.get(f"/models/{name}", ModelInfo.from_json))

    def upload(self, image: Image, affine: ArrayLike | None = None, sent: Progress | None = None) -> VolumeInfo:
        """Send a file, a folder of a DICOM series, or an array (I, J, K) or (C, I, J, K) with its RAS affine in mm.

        ``sent(bytes done, bytes in all)`` is called as they go. The server keeps the volume until it is deleted.
        """
        return self._run(self._verbs.upload(image, affine, sent))

    def delete_volume(self, volume: VolumeInfo | str) -> None:
        """Remove a volume from the server."""
        self._run(self._verbs.delete_volume(_id(volume)))

    def submit(
        self,
        image: VolumeInfo | str | Mapping[str, VolumeInfo | str],
        model: ModelInfo | str | None = None,
        priority: str = "batch",
        idempotency_key: str | None = None,
    ) -> Job:
        """Queue a segmentation of uploaded volumes (one, or channel name -> volume) and return its job at once."""
        key = idempotency_key or secrets.token_hex(16)
        return self._run(self._verbs.submit(_ids(image), model, priority, key))

    def jobs(self) -> list[Job]:
        """The newest jobs first."""
        return self._run(self._verbs.get("/jobs", jobs_of))

    def job(self, job: Job | str) -> Job:
        """One job as it is now."""
        return self._run(self._verbs.get(f"/jobs/{_id(job)}", Job.from_json))

    def cancel(self, job: Job | str) -> Job:
        """Stop a job."""
        return self._run(self._verbs.cancel(_id(job)))

    def wait(self, job: Job | str, progress: Progress | None = None) -> Job:
        """Follow a job to its end, whatever end that is."""
        return self._run(self._verbs.wait(_id(job), progress))

    def result(self, job: Job, out: Path | str | None = None) -> Result:
        """Fetch what a finished job made: into memory, or its mask into a file."""
        return self._run(self._verbs.result(job, None if out is None else Path(out)))

    def segment(
        self,
        image: Images,
        model: ModelInfo | str | None = None,
        *,
        progress: Progress | None = None,
        out: Path | str | None = None,
        priority: str = "batch",
        affine: ArrayLike | None = None,
    ) -> Result:
        """Segment an image: send it, wait, and fetch the mask, which lies on the image's own grid.

        Args:
            image: a path (file or DICOM folder), an array, an uploaded volume, or channel name -> any of these.
            model: a name, or one of ``models()``: that very version; None: the server's only one for segmentation.
            progress: called with windows done and windows in all.
            out: a file for the mask (``.nii.gz``, ``.nii``, ``.nrrd``); None: the mask comes as ``Result.labels``.
            priority: ``interactive`` goes before the next window of any ``batch`` job.
            affine: (4, 4) RAS, mm, of an array.
        """
        order = Order(model, None if out is None else Path(out), priority, affine, progress)
        return self._run(self._verbs.segment(image, order))

    def _run(self, steps: Steps[T]) -> T:
        outcome: Any = None
        failed: BaseException | None = None
        while True:
            try:
                step = steps.send(outcome) if failed is None else steps.throw(failed)
            except StopIteration as end:
                value: T = end.value
                return value
            outcome, failed = None, None
            try:
                outcome = self._carry_out(step)
            except BaseException as error:  # noqa: BLE001 - the generator decides, and lets through what is not its own
                failed = error

    def _carry_out(self, step: Step) -> Any:
        match step:
            case Pause(seconds):
                return time.sleep(seconds)
            case Call():
                return self._call(step)
            case _:
                return step.run()

    def _call(self, call: Call) -> httpx.Response:
        content = None if call.body is None else call.body()
        with self._http.stream(**_request(call), content=content) as response:
            if call.sink is None or not response.is_success:
                response.read()
            else:
                sink = call.sink()
                for chunk in response.iter_bytes():
                    sink(chunk)
        return response


class AsyncClient:
    """A gateway, for an event loop: the verbs of ``Client``, awaited. Files are read and written in threads."""

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        key: str | None = None,
        timeout: float | httpx.Timeout = DEFAULT_TIMEOUT,
        transport: httpx.AsyncBaseTransport | None = None,
        retry: Retry = Retry(),  # noqa: B008 - frozen
    ) -> None:
        self._verbs = Verbs(retry)
        self._http = httpx.AsyncClient(
            base_url=address(server),
            headers=headers(key),
            timeout=timeout,
            transport=transport,
            trust_env=not is_loopback(server),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def models(self) -> list[ModelInfo]:
        """All models of the server."""
        return await self._run(self._verbs.get("/models", models_of))

    async def refused(self) -> dict[str, str]:
        """As ``Client.refused``."""
        return await self._run(self._verbs.get("/models", refused_of))

    async def model(self, name: str) -> ModelInfo:
        """One model, with its manifest."""
        return await self._run(self._verbs.get(f"/models/{name}", ModelInfo.from_json))

    async def upload(self, image: Image, affine: ArrayLike | None = None, sent: Progress | None = None) -> VolumeInfo:
        """As ``Client.upload``."""
        return await self._run(self._verbs.upload(image, affine, sent))

    async def delete_volume(self, volume: VolumeInfo | str) -> None:
        """Remove a volume from the server."""
        await self._run(self._verbs.delete_volume(_id(volume)))

    async def submit(
        self,
        image: VolumeInfo | str | Mapping[str, VolumeInfo | str],
        model: ModelInfo | str | None = None,
        priority: str = "batch",
        idempotency_key: str | None = None,
    ) -> Job:
        """As ``Client.submit``."""
        key = idempotency_key or secrets.token_hex(16)
        return await self._run(self._verbs.submit(_ids(image), model, priority, key))

    async def jobs(self) -> list[Job]:
        """The newest jobs first."""
        return await self._run(self._verbs.get("/jobs", jobs_of))

    async def job(self, job: Job | str) -> Job:
        """One job as it is now."""
        return await self._run(self._verbs.get(f"/jobs/{_id(job)}", Job.from_json))

    async def cancel(self, job: Job | str) -> Job:
        """Stop a job."""
        return await self._run(self._verbs.cancel(_id(job)))

    async def wait(self, job: Job | str, progress: Progress | None = None) -> Job:
        """Follow a job to its end, whatever end that is."""
        return await self._run(self._verbs.wait(_id(job), progress))

    async def result(self, job: Job, out: Path | str | None = None) -> Result:
        """As ``Client.result``."""
        return await self._run(self._verbs.result(job, None if out is None else Path(out)))

    async def segment(
        self,
        image: Images,
        model: ModelInfo | str | None = None,
        *,
        progress: Progress | None = None,
        out: Path | str | None = None,
        priority: str = "batch",
        affine: ArrayLike | None = None,
    ) -> Result:
        """As ``Client.segment``; cancelling the task cancels the job."""
        order = Order(model, None if out is None else Path(out), priority, affine, progress)
        return await self._run(self._verbs.segment(image, order))

    async def _run(self, steps: Steps[T]) -> T:
        outcome: Any = None
        failed: BaseException | None = None
        while True:
            try:
                step = steps.send(outcome) if failed is None else steps.throw(failed)
            except StopIteration as end:
                value: T = end.value
                return value
            outcome, failed = None, None
            try:
                outcome = await self._carry_out(step)
            except BaseException as error:  # noqa: BLE001 - as in Client
                failed = error

    async def _carry_out(self, step: Step) -> Any:
        match step:
            case Pause(seconds):
                return await asyncio.sleep(seconds)
            case Call():
                return await self._call(step)
            case _:
                return await asyncio.to_thread(step.run)

    async def _call(self, call: Call) -> httpx.Response:
        content = None if call.body is None else _in_threads(call.body())
        async with self._http.stream(**_request(call), content=content) as response:
            if call.sink is None or not response.is_success:
                await response.aread()
            else:
                sink = call.sink()
                async for chunk in response.aiter_bytes():
                    sink(chunk)
        return response


def address(server: str) -> str:
    """A server's address with its scheme: ``gateway:8000`` is ``http://gateway:8000``."""
    return (server if "://" in server else f"http://{server}").rstrip("/")


def is_loopback(server: str) -> bool:
    """Whether a server is this machine: then no proxy of the environment stands in between."""
    return httpx.URL(address(server)).host in ("127.0.0.1", "localhost", "::1")


def headers(key: str | None) -> dict[str, str]:
    """The headers of every request. White space around the key is dropped: a mounted secret ends with a line end.

    Raises:
        InputError: the key holds what no key has; the sentence does not quote it.
    """
    key = (key or "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError(
            "The key holds a line end or another character that no key has; copy it again as hilum key new printed it.",
            code="bad_key",
        )
    return {"Authorization": f"Bearer {key}"} if key else {}


def _request(call: Call) -> dict[str, Any]:
    return {
        "method": call.method,
        "url": call.path,
        "json": call.json,
        "params": dict(call.params),
        "headers": dict(call.headers),
    }


async def _in_threads(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    while chunk := await asyncio.to_thread(next, chunks, b""):
        yield chunk


def _id(thing: VolumeInfo | Job | str) -> str:
    return thing if isinstance(thing, str) else thing.id


def _ids(image: VolumeInfo | str | Mapping[str, VolumeInfo | str]) -> str | dict[str, str]:
    if isinstance(image, Mapping):
        return {channel: _id(volume) for channel, volume in image.items()}
    return _id(image)
