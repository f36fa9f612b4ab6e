"""The inference worker, ``python -m hilum_server.worker``: owns the engines and all their threads.

It speaks JSON lines. Read from standard input: first the configuration, then orders::

    {"repositories": [...] | null, "data": "...", "threads": 0, "memory": null, "triton": null,
     "variant": null, "signed_by": null}
    {"do": "run", "job": id, "lane": "interactive" | "batch", "model", "version", "digest", "images": [paths], "folder"}
    {"do": "cancel", "job": id}
    {"do": "ping"}
    {"do": "models", "ask": n}
    {"do": "model", "ask": n, "name", "version": 1}
    {"do": "convert", "ask": n, "mask": path, "target": path, "image": path | null}

Written to standard output: ``ready``, ``progress``, ``done``, ``cancelled``, ``failed``, ``answer``, ``pong`` (see
``Worker``).
Standard error carries the log, one JSON object a line. When its input ends, or its parent dies, it ends.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from hilum_inference.errors import (
    CancelledError,
    EngineError,
    HilumError,
    ModelError,
    OutOfMemoryError,
    UnknownModelError,
)
from hilum_server.files import convert, read, save, timed
from hilum_server.lanes import PriorityEngine, Turnstile
from hilum_server.logs import set_up

if TYPE_CHECKING:
    from hilum_inference.engines import Engine, EngineSettings
    from hilum_inference.pipeline import Plan
    from hilum_inference.remote import RemoteRepository
    from hilum_inference.repository import Model, Repository

    Models = Repository | RemoteRepository

Message = dict[str, Any]
Say = Callable[[Message], None]

LANES = ("interactive", "batch")
NICE = 5
PROGRESS_SECONDS = 0.1
ENGINES_KEPT = 4
AWAY = ("triton_unavailable", "triton_not_ready")
AWAY_SECONDS = 0.5
FIRST_LOOK_SECONDS, LOOK_SECONDS = 5.0, 600.0
"""Between two tries to open a default model that could not be opened: doubled from the first to the last."""
NOT_OPENED = "The default model cannot be opened; the gateway's log says why."

T = TypeVar("T")

log = logging.getLogger("hilum.worker")


@dataclass(frozen=True)
class WorkerConfig:
    """What the worker is told first.

    Attributes:
        repositories: model folders; of two models of one name that of the earlier folder is served. None with a
            Triton: its own models.
        data: the data folder, where precision choices are recorded.
        threads: of the engine; 0 is all cores.
        memory: budget in bytes for one job; None: a share of what is free when it starts.
        triton: ``host:port`` of a Triton's gRPC endpoint; None: the embedded engine.
        triton_seconds: of its silence, after which it counts as hanging.
        triton_patience: seconds for which a job waits for it to come back.
        variant: of every model; None: the default configuration.
        signed_by: public key of the models' signatures; None: do not look at them.
    """

    repositories: tuple[Path, ...]
    data: Path
    threads: int = 0
    memory: int | None = None
    triton: str | None = None
    triton_seconds: float = 120.0
    triton_patience: float = 30.0
    variant: str | None = None
    signed_by: Path | None = None

    @classmethod
    def from_message(cls, message: Message) -> WorkerConfig:
        """From the first line of standard input."""
        folders = tuple(Path(folder) for folder in message["repositories"] or ())
        data = Path(message["data"])
        if not folders and not message.get("triton"):
            from hilum_inference.repository import shipped_repository

            folders = (data / "models", shipped_repository())
        names = ("threads", "memory", "triton", "triton_seconds", "triton_patience", "variant")
        settings = {name: message[name] for name in names if name in message}
        key = message.get("signed_by")
        return cls(folders, data, **settings, signed_by=None if key is None else Path(key))


def models_of(config: WorkerConfig) -> Models:
    """Those of the folders; with a Triton those that it serves, and where folders were named those of them alike."""
    from hilum_inference.repository import Repository

    if config.triton is None:
        return Repository(config.repositories, config.variant, config.signed_by)
    from hilum_inference.remote import RemoteRepository

    local = Repository(config.repositories, signed_by=config.signed_by) if config.repositories else None
    return RemoteRepository(config.triton, config.variant, local)


class Engines:
    """Opened engines, kept for the next job; the one unused for longest goes first."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._open: dict[tuple[str, int, str, str], Engine] = {}
        self.speeds: dict[str, float] = {}  # digest of a model -> seconds a window, as last measured

    def get(self, model: Model) -> Engine:
        """The engine of a model, opened where needed."""
        from hilum_inference.engines import open_engine

        key = _key(model)
        with self._lock:
            engine = self._open.pop(key, None)
            if engine is None:
                engine = open_engine(model, self._settings())
            self._open[key] = engine
            while len(self._open) > ENGINES_KEPT:
                self._open.pop(next(iter(self._open)))  # closed when the last job that uses it lets go
            return engine

    def holds(self, model: Model) -> bool:
        """Whether a model's engine is open."""
        with self._lock:
            return _key(model) in self._open

    def ready(self) -> list[str]:
        """Names of models that can run at once."""
        with self._lock:
            return sorted({name for (name, *_), engine in self._open.items() if engine.ready()})

    def _settings(self) -> EngineSettings:
        from hilum_inference.engines import EngineSettings

        config = self._config
        record = config.data / "precision.json"
        return EngineSettings(
            config.threads or None, config.triton, config.triton_seconds, record, config.triton_patience
        )


def _key(model: Model) -> tuple[str, int, str, str]:
    """What makes an engine another one: a Triton runs a network in several versions and variants."""
    return model.name, model.version, model.digest, model.variant


class Worker:
    """Runs jobs in two lanes, one thread each, and answers questions in between.

    Says ``{"say": "ready", "lacks"}`` once the default model is compiled, and again when ``lacks`` changes: why no
    model can be used, or None; to each ping ``{"say": "pong"}``; for each job ``{"say": "progress", "job",
    "done", "total", "seconds"}``, the first with ``"plan"``, then one of ``{"say": "done", "job", "result",
    "report"}``, ``{"say": "cancelled", "job"}``, ``{"say": "failed", "job", "status", "code", "detail"}``; for each
    question ``{"say": "answer", "ask", ...}``.
    """

    def __init__(self, config: WorkerConfig, repository: Models, say: Say) -> None:
        self._config = config
        self._repository = repository
        self._say = say
        self._engines = Engines(config)
        self._turnstile = Turnstile()
        self._orders: dict[str, queue.SimpleQueue[Message]] = {lane: queue.SimpleQueue() for lane in (*LANES, "desk")}
        self._cancelled: dict[str, threading.Event] = {}
        self._lacks: str | None = None
        self._look_at, self._pause = 0.0, FIRST_LOOK_SECONDS

    def start(self) -> None:
        """Start the threads and open the default model's engine."""
        for lane in self._orders:
            threading.Thread(target=self._serve, args=(lane,), name=lane, daemon=True).start()
        self._lacks = self._look()
        self._say({"say": "ready", "lacks": self._lacks})
        return_memory()

    def order(self, message: Message) -> None:
        """Take one order."""
        match message["do"]:
            case "run":
                self._cancelled[message["job"]] = threading.Event()
                self._orders[message["lane"]].put(message)
            case "cancel":
                if event := self._cancelled.get(message["job"]):
                    event.set()
            case "ping":
                self._say({"say": "pong"})
                if self._lacks is not None and time.monotonic() > self._look_at and self._orders["desk"].empty():
                    self._orders["desk"].put({"do": "look"})
            case _:
                self._orders["desk"].put(message)

    def _serve(self, lane: str) -> None:
        act = self._answer if lane == "desk" else self._run
        while True:
            message = self._orders[lane].get()
            act(message)
            del message
            if lane != "desk":
                return_memory()

    def _run(self, message: Message) -> None:
        job = message["job"]
        try:
            self._say({"say": "done", "job": job} | self._segment(message))
        except CancelledError:
            self._say({"say": "cancelled", "job": job})
        except Exception as error:  # noqa: BLE001 - the outermost door of a job: it must end in one message
            self._say({"say": "failed", "job": job} | told(error))
        finally:
            self._cancelled.pop(job, None)

    def _segment(self, message: Message) -> Message:
        from hilum_inference.engines import for_job, settle
        from hilum_inference.memory import free_memory
        from hilum_inference.pipeline import Segmenter

        cancelled = self._cancelled[message["job"]].is_set
        name, version = message["model"], int(message["version"])
        model = self._awaited(lambda: self._repository.model(name, version), cancelled)
        if model.digest != message["digest"]:
            raise ModelError("The model's files changed after the job was submitted.", code="model_changed")
        timings: dict[str, float] = {}
        with timed(timings, "read"):
            volume = read(message["images"])
        with timed({} if self._engines.holds(model) else timings, "engine"):
            opened = self._awaited(lambda: self._engines.get(model), cancelled)
        urgent = message["lane"] == "interactive"
        own = self._awaited(lambda: for_job(opened, urgent, cancelled), cancelled)
        engine = PriorityEngine(own, self._turnstile, urgent)
        try:
            known = self._engines.speeds.get(model.digest)
            segmenter = Segmenter(model, engine, self._config.memory or free_memory(), known)
            progress = Progress(message["job"], self._say)
            found = segmenter.segment(volume, progress, cancelled, progress.planned)
        finally:
            engine.finish()
        self._awaited(lambda: settle(own), cancelled)
        if segmenter.seconds_a_window is not None:
            self._engines.speeds[model.digest] = segmenter.seconds_a_window
        report = found.report() | {"planned_seconds": found.plan.seconds}
        report["timings"] |= timings
        return save(Path(message["folder"]), found.labels, volume, report)

    def _awaited(self, act: Callable[[], T], cancelled: Callable[[], bool]) -> T:
        """What ``act`` gives; a Triton that is not there, or still loads, is waited for."""
        end = time.monotonic() + self._config.triton_patience
        while True:
            try:
                return act()
            except EngineError as error:
                if error.code not in AWAY or time.monotonic() > end:
                    raise
            if cancelled():
                raise CancelledError("The segmentation was cancelled.")
            time.sleep(AWAY_SECONDS)

    def _look(self) -> str | None:
        """Why no model can be used, or None; opens the default model's engine."""
        try:
            if not self._repository.models():
                return lacking(self._repository)
            self._engines.get(self._repository.model())
        except UnknownModelError:  # several: who submits names one
            return None
        except (HilumError, OSError) as error:
            if isinstance(error, EngineError) and error.code in AWAY:  # jobs wait for it
                return None
            if self._lacks != NOT_OPENED:
                log.warning("the default model cannot be used: %s", error)
            return NOT_OPENED
        return None

    def _tell(self, lacks: str | None) -> None:
        if lacks != self._lacks:
            self._lacks = lacks
            self._say({"say": "ready", "lacks": lacks})

    def _answer(self, message: Message) -> None:
        if message["do"] == "look":
            self._tell(self._look())
            if self._lacks == NOT_OPENED:  # it may take long to say so, and all wait for the lock of engines meanwhile
                self._pause = min(2 * self._pause, LOOK_SECONDS)
                self._look_at = time.monotonic() + self._pause
            return
        answer: Message = {"say": "answer", "ask": message["ask"]}
        try:
            match message["do"]:
                case "models":
                    answer |= describe(self._repository) | {"ready": self._engines.ready()}
                    if not answer["models"]:
                        self._tell(lacking(self._repository))
                case "model":
                    answer |= {"model": describe_model(self._repository.model(message["name"], message["version"]))}
                case "convert":
                    image = message.get("image")
                    convert(Path(message["mask"]), Path(message["target"]), None if image is None else Path(image))
        except Exception as error:  # noqa: BLE001 - as for a job: every question gets one answer
            answer |= {"error": told(error)}
        self._say(answer)


class Progress:
    """Reports windows done, at most every PROGRESS_SECONDS."""

    def __init__(self, job: str, say: Say) -> None:
        self._job = job
        self._say = say
        self._started = time.monotonic()
        self._last = 0.0

    def planned(self, plan: Plan) -> None:
        """Tell what the job will cost, before its first window; from here on its pace is measured."""
        self._started = time.monotonic()
        told = {"windows": plan.windows, "bytes": plan.bytes, "seconds": plan.seconds}
        message = {"say": "progress", "job": self._job, "done": 0, "total": plan.windows, "seconds": plan.seconds}
        self._say({**message, "plan": told})

    def __call__(self, done: int, total: int) -> None:
        """Take note that ``done`` of ``total`` windows are ready."""
        now = time.monotonic()
        if now - self._last < PROGRESS_SECONDS and done != total:
            return
        self._last = now
        left = (now - self._started) / done * (total - done) if done > 0 else None
        self._say({"say": "progress", "job": self._job, "done": done, "total": total, "seconds": left})


def told(error: Exception) -> Message:
    """``status``, ``code`` and ``detail`` of a failure that the caller may read.

    What a back-end said goes to the log; the text of any other failure does not, for it may name a volume.
    """
    from hilum_server.problems import BACK_END_TEXTS, ProblemError, public_error

    said = error.message if isinstance(error, EngineError | ModelError) else type(error).__name__
    log.warning("job or question failed: %s", said, exc_info=error)
    if isinstance(error, ProblemError):
        return {"status": error.status, "code": error.code, "detail": error.detail}
    if isinstance(error, MemoryError):
        error = OutOfMemoryError("out of memory")
    if isinstance(error, HilumError):
        status, code, detail = public_error(error)
        return {"status": status, "code": code, "detail": detail}
    if isinstance(error, OSError):
        detail = "The server could not read or write its data folder; nothing was saved."
        return {"status": 507, "code": "storage_failed", "detail": detail}
    return {"status": 500, "code": "internal", "detail": BACK_END_TEXTS["internal"]}


def describe(repository: Models) -> Message:
    """Models as the API shows them, the name of the default one, and what is broken and why."""
    models = [describe_model(model) for model in repository.models()]
    try:
        default = repository.model().manifest.name
    except HilumError:
        default = None
    return {"models": models, "default": default, "broken": dict(repository.broken)}


def lacking(repository: Models) -> str:
    """Why a repository without a model has none, without naming any: strangers may read it."""
    if repository.broken:
        return "Every model was refused; GET /api/models says why."
    return "There is no model; publish one, or name the folder of models with --repository."


def describe_model(model: Model) -> Message:
    """One version of a model with its manifest."""
    manifest = model.manifest
    labels = [{"name": label.name, "id": label.id, "color": label.color} for label in manifest.labels]
    names = [channel.name for channel in manifest.channels]
    head = {"name": manifest.name, "version": str(model.version), "title": manifest.title, "task": manifest.task}
    return {
        **head,
        "channels": names,
        "labels": labels,
        "digest": model.digest,
        "variant": model.variant,
        "variants": model.variants,
        "dice_gate": manifest.provenance.dice_gate,
        "manifest": json.loads(manifest.to_json()),
    }


def return_memory() -> None:
    """Give freed memory back to the system: glibc keeps a finished job's arrays otherwise."""
    if sys.platform == "linux":
        import ctypes

        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # absent in musl
        if trim is not None:
            trim(0)


def die_with_parent(parent: int) -> None:
    """Ask the kernel to end this process when its parent ends (Linux)."""
    if sys.platform == "linux":
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel was asked
        raise SystemExit(1)


def _private_output() -> IO[bytes]:
    """The channel to the gateway; whatever a library prints goes to standard error instead."""
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return channel


def main() -> None:
    """Serve until standard input ends."""
    die_with_parent(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the gateway says when to end
    os.nice(NICE)
    set_up("info")
    channel, lock = _private_output(), threading.Lock()

    def say(message: Message) -> None:
        with lock:
            channel.write(json.dumps(message).encode() + b"\n")
            channel.flush()

    config = WorkerConfig.from_message(json.loads(sys.stdin.buffer.readline()))
    if config.triton is not None:
        from hilum_inference.engines.triton.memory import reuse_freed_memory

        reuse_freed_memory()  # return_memory gives it back after each job
    worker = Worker(config, models_of(config), say)
    worker.start()
    for line in sys.stdin.buffer:
        worker.order(json.loads(line))


if __name__ == "__main__":
    main()
