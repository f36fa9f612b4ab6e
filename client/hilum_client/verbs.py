"""The verbs of the client as steps; see ``steps``. Nothing here knows whether it runs in a thread or an event loop."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeVar

import httpx

from hilum_client import wire
from hilum_client.answers import Job, ModelInfo, Result, VolumeInfo
from hilum_client.errors import ClientError, InputError, JobFailed, ServerError
from hilum_client.payload import Payload, prepare
from hilum_client.steps import Call, EventParser, Pause, Retry, Sink, Steps, Work, answer, call

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Image = Path | str | NDArray[Any] | VolumeInfo
    Images = Image | Mapping[str, Image]

T = TypeVar("T")
Progress = Callable[[int, int], None]

POLL_SECONDS: Final = 1.0
"""Between two looks at a job whose events cannot be followed."""


@dataclass(frozen=True)
class Order:
    """What ``segment`` is asked for.

    Attributes:
        model: a name, or one of the server's models: that very version; None: its only one for segmentation.
        out: where the mask goes (``.nii.gz``, ``.nii``, ``.nrrd``); None: into memory.
        priority: ``interactive`` goes before the next window of any ``batch`` job.
        affine: (4, 4) RAS, mm, for arrays.
        progress: called with windows done and windows in all.
    """

    model: ModelInfo | str | None = None
    out: Path | None = None
    priority: str = "batch"
    affine: ArrayLike | None = None
    progress: Progress | None = None


@dataclass(frozen=True)
class Verbs:
    """The verbs, with their rule for trying again."""

    retry: Retry = field(default_factory=Retry)

    def get(self, path: str, take: Callable[[Any], T]) -> Steps[T]:
        """GET a path and turn its JSON into an answer."""
        data = answer((yield from call(Call("GET", f"{wire.API}{path}"), self.retry)))
        return understood(take, data)

    def upload(self, image: Image, affine: ArrayLike | None, sent: Progress | None) -> Steps[VolumeInfo]:
        """Send a file, a DICOM folder or an array; ``sent(bytes done, bytes in all)``."""
        if isinstance(image, VolumeInfo):
            return image
        source = Path(image) if isinstance(image, str) else image
        payload: Payload = yield Work(lambda: prepare(source, affine))
        headers = {"Content-Type": wire.OCTETS, "Content-Length": str(payload.size)}  # no name: it may be a patient's
        request = Call("PUT", f"{wire.API}/volumes", headers=headers, body=lambda: counted(payload, sent))
        try:
            response = yield from call(request, self.retry)
        finally:
            payload.close()
        return understood(VolumeInfo.from_json, answer(response))

    def submit(
        self, image: str | Mapping[str, str], model: ModelInfo | str | None, priority: str, key: str
    ) -> Steps[Job]:
        """Put a job into the queue; the same ``key`` never makes a second one."""
        body: dict[str, Any] = {"image": image, "options": {"priority": priority}}
        if isinstance(model, ModelInfo):
            body |= {"model": model.name, "version": model.version}
        elif model is not None:
            body["model"] = model
        request = Call("POST", f"{wire.API}/jobs", json=body, headers={wire.IDEMPOTENCY_KEY: key})
        return understood(Job.from_json, answer((yield from call(request, self.retry))))

    def cancel(self, job: str) -> Steps[Job]:
        """Stop a job."""
        response = yield from call(Call("POST", f"{wire.API}/jobs/{job}/cancel"), self.retry)
        return understood(Job.from_json, answer(response))

    def delete_volume(self, volume: str) -> Steps[None]:
        """Remove a volume from the server."""
        yield from call(Call("DELETE", f"{wire.API}/volumes/{volume}"), self.retry)

    def wait(self, job: str, progress: Progress | None) -> Steps[Job]:
        """Follow a job to its end: by its events, and by asking where these break off."""
        follow = _Follow(progress)
        events = Call(
            "GET",
            f"{wire.API}/jobs/{job}/events",
            headers={"Accept": wire.EVENTS},
            sink=lambda: EventParser(follow.event),
        )
        while True:
            with contextlib.suppress(httpx.TransportError):  # the state below decides, and bridges a restart
                yield events
            state: Job = yield from self.get(f"/jobs/{job}", Job.from_json)
            follow.job(state)
            if state.finished:
                return state
            yield Pause(POLL_SECONDS)

    def segment(self, images: Images, order: Order) -> Steps[Result]:
        """Send, queue, follow, fetch. Interrupted, it cancels the job; what it sent it removes at the end."""
        mask_format(order.out)  # refused before anything is sent
        sent: list[VolumeInfo] = []
        job: Job | None = None
        try:
            image = yield from self._upload_all(images, order, sent)
            job = yield from self.submit(image, order.model, order.priority, secrets.token_hex(16))
            job = yield from self.wait(job.id, order.progress)
            return (yield from self.result(job, order.out))
        except BaseException:
            if job is not None and not job.finished:
                yield from quietly(ONCE.cancel(job.id))
            raise
        finally:
            for volume in sent:
                yield from quietly(ONCE.delete_volume(volume.id))

    def _upload_all(self, images: Images, order: Order, sent: list[VolumeInfo]) -> Steps[str | dict[str, str]]:
        named: Mapping[str, Image] = images if isinstance(images, Mapping) else {"": images}
        ids: dict[str, str] = {}
        for channel, image in named.items():
            volume = yield from self.upload(image, order.affine, None)
            if not isinstance(image, VolumeInfo):
                sent.append(volume)
            ids[channel] = volume.id
        return ids if isinstance(images, Mapping) else ids[""]

    def result(self, job: Job, out: Path | None) -> Steps[Result]:
        """Fetch what a finished job made."""
        suffix = mask_format(out)
        if job.status != "done":
            raise failure(job)
        report: Mapping[str, Any] = job.report or (yield from self.get(f"/jobs/{job.id}/statistics", _mapping))
        request = Call("GET", f"{wire.API}/jobs/{job.id}/result", params={"format": suffix})
        if out is None:
            response = yield from call(request, self.retry)
            check(response, hashlib.sha256(response.content))
            image = yield Work(lambda: _decoded(response.content))
            labels, affine = image.array, image.affine
        else:
            yield from self._download(request, out)
            labels = affine = None
        return Result(
            model=str(report.get("model") or job.model),
            version=str(report.get("version") or job.version),
            statistics=[dict(label) for label in report.get("labels") or ()],
            timings={name: float(seconds) for name, seconds in (report.get("timings") or {}).items()},
            labels=labels,
            affine=affine,
            mask_path=out,
            report=report,
        )

    def _download(self, request: Call, out: Path) -> Steps[None]:
        """To a file that appears only when it is whole."""
        part = out.with_name(f".{out.name}.{secrets.token_hex(4)}.part")
        try:
            with part.open("wb") as file:
                target = _Download(file)
                response = yield from call(replace(request, sink=target.restart), self.retry)
                file.flush()
                os.fsync(file.fileno())
            check(response, target.digest)
            part.replace(out)
        finally:
            part.unlink(missing_ok=True)


class _Download:
    """Bytes on their way to a file, hashed as they come."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def restart(self) -> Sink:
        """Begin again from nothing."""
        self._file.seek(0)
        self._file.truncate()
        self.digest = hashlib.sha256()
        return self._take

    def _take(self, data: bytes) -> None:
        self._file.write(data)
        self.digest.update(data)


ONCE: Final = Verbs(Retry(attempts=1))
"""For tidying up, where trying again is not worth anyone's time."""


class _Follow:
    """Turns states of a job into calls of ``progress``, each pair once."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._last = (0, 0)

    def event(self, _name: str, data: Any) -> None:
        if isinstance(data, Mapping) and "id" in data and "status" in data:
            self.job(Job.from_json(data))

    def job(self, job: Job) -> None:
        now = (job.progress.done, job.progress.total)
        if self._progress is not None and now[1] > 0 and now != self._last:
            self._last = now
            self._progress(*now)


def quietly(steps: Steps[Any]) -> Steps[None]:
    """Carry steps out for tidying up: what they fail with is nobody's concern any more."""
    try:
        yield from steps
    except ClientError:
        return


def mask_format(out: Path | None) -> wire.MaskFormat:
    """The format a mask's suffix names.

    Raises:
        InputError: a suffix of no known format, or a folder that is not there.
    """
    if out is None:
        return "nii.gz"
    if not out.absolute().parent.is_dir():
        raise InputError(f"There is no folder {out.parent} to write {out.name} into.", code="no_such_folder")
    for name in wire.MASK_FORMATS:
        if out.name.lower().endswith(f".{name}"):
            return name
    allowed = ", ".join(f".{name}" for name in wire.MASK_FORMATS)
    raise InputError(f"The mask {out.name} must end in one of {allowed}.", code="unknown_format")


def failure(job: Job) -> JobFailed:
    """The error of a job that failed, was cancelled, or is not finished."""
    if not job.finished:
        return JobFailed(f"The job is still {job.status}; wait for it first.", code="not_done")
    if job.status == "cancelled":
        return JobFailed("The job was cancelled.", code="cancelled")
    error = job.error or {}
    return JobFailed(str(error.get("detail") or "The job failed."), code=str(error.get("code") or "job_failed"))


def check(response: httpx.Response, digest: Any) -> None:
    """Compare what came with the SHA-256 that the server named.

    Raises:
        ServerError: they differ.
    """
    wanted = response.headers.get(wire.CONTENT_SHA256)
    if wanted and wanted.lower() != digest.hexdigest():
        raise ServerError("The mask arrived damaged: its SHA-256 is not the one the server named.", code="damaged")


def understood(take: Callable[[Any], T], data: Any) -> T:
    """An answer as a value.

    Raises:
        ServerError: a field that must be there is missing or of another kind.
    """
    try:
        return take(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ServerError(
            f"The server's answer could not be understood ({error!r}); its version may differ from the client's.",
            code="not_understood",
        ) from error


def refused_of(data: Any) -> dict[str, str]:
    """The models that a server refuses: name -> why."""
    return {str(name): str(why) for name, why in data.get("broken", {}).items()}


def models_of(data: Any) -> list[ModelInfo]:
    """The entries of ``GET /api/models``."""
    return [ModelInfo.from_json(entry) for entry in data["models"]]


def jobs_of(data: Any) -> list[Job]:
    """The entries of ``GET /api/jobs``."""
    return [Job.from_json(entry) for entry in data["jobs"]]


def counted(payload: Payload, sent: Progress | None) -> Iterator[bytes]:
    """A payload's bytes, with word of how many have gone."""
    done = 0
    for chunk in payload.open():
        yield chunk
        done += len(chunk)
        if sent is not None:
            sent(done, payload.size)


def _mapping(data: Any) -> Mapping[str, Any]:
    return dict(data)


def _decoded(data: bytes) -> Any:
    from hilum_client.nifti import decode

    return decode(data)
