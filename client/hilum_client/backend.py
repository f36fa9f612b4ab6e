"""Where the command line segments: in this process, or on a server; both behind the same two verbs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from hilum_client.answers import ModelInfo, Result
from hilum_client.errors import InputError
from hilum_client.extras import load

Progress = Callable[[int, int], None]
Input = Path | Mapping[str, Path]

DATA_FOLDER: Final = Path("~/.local/share/hilum")
MODELS: Final = "models"  # below the data folder


class Backend(Protocol):
    """What segments."""

    def models(self) -> list[ModelInfo]:
        """All models that can be asked for."""
        ...

    def segment(self, image: Input, *, model: ModelInfo | str | None, out: Path, progress: Progress | None) -> Result:
        """Segment one image (or channel name -> image) into a file; the result says what made it."""
        ...


@dataclass(frozen=True)
class Where:
    """Which back-end: a server's address and key; or folders of models, threads and a variant in this process."""

    server: str | None = None
    key: str | None = None
    repositories: tuple[Path, ...] = ()
    threads: int | None = None
    variant: str | None = None


@contextmanager
def open_backend(where: Where, user: str) -> Iterator[Backend]:
    """The back-end, closed at the end. Until then SIGTERM stops the work as Ctrl-C does.

    Raises:
        InputError: a variant is asked of a server.
        MissingExtra: in-process, but the extra [inference] is not installed; ``user`` is named in the sentence.
    """
    if where.server is not None:
        if where.variant is not None:
            raise InputError(
                "A server's variant is chosen where it starts (hilum serve --variant); leave one of both options out.",
                code="bad_option",
            )
        from hilum_client.client import Client

        with interruptible(), Client(where.server, where.key) as client:
            yield client
        return
    local = load("hilum_inference.local:LocalClient", "inference", f"{user} without --server")
    client = local(repositories=repositories(where), threads=where.threads, variant=where.variant)
    try:
        with interruptible():
            yield InProcess(client)
    finally:
        client.close()


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt here, so that jobs are cancelled, and what was sent or half written removed."""
    if threading.current_thread() is not threading.main_thread():  # no other may set a handler
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def repositories(where: Where) -> list[Path]:
    """The folders of models: those asked for, else those that come with Hilum and those of the data folder."""
    if where.repositories:
        missing = [str(folder) for folder in where.repositories if not folder.is_dir()]
        if missing:
            raise InputError(f"There is no folder {missing[0]}.", code="no_such_folder")
        return list(where.repositories)
    shipped: Path = load("hilum_inference.repository:shipped_repository", "inference", "a model of this machine")()
    return [shipped, DATA_FOLDER.expanduser() / MODELS]


class InProcess:
    """``LocalClient`` of the heart with the answers of this room."""

    def __init__(self, local: Any) -> None:
        self._local = local

    def models(self) -> list[ModelInfo]:
        """The models of the folders."""
        return [ModelInfo.from_json(model) for model in self._local.models()]

    def refused(self) -> dict[str, str]:
        """The models that ``models`` left out: name -> why."""
        return dict(self._local.refused())

    def refused_variants(self) -> dict[str, dict[str, str]]:
        """The variants that cannot be used, of each model: name -> variant -> why."""
        return {name: dict(variants) for name, variants in self._local.refused_variants().items()}

    def segment(self, image: Input, *, model: ModelInfo | str | None, out: Path, progress: Progress | None) -> Result:
        """Segment one image into a file; by one of ``models`` with that very version."""
        name, version = (model.name, int(model.version)) if isinstance(model, ModelInfo) else (model, None)
        done = self._local.segment(image, model=name, version=version, out=out, progress=progress)
        return Result(
            model=done.model,
            version=str(done.version),
            statistics=done.statistics,
            timings=done.timings,
            mask_path=done.mask_path,
            report=done.report,
        )


def chosen(backend: Backend, name: str | None) -> ModelInfo:
    """The model of a name that a back-end has, or its only one for segmentation.

    Raises:
        InputError: as ``choose``; or it is refused, with the reason.
    """
    models = backend.models()
    refused = backend.refused() if isinstance(backend, InProcess) else {}
    if name in refused or (refused and not models):
        why = refused[name] if name in refused else " ".join(refused.values())
        raise InputError(why, code="model_refused")
    return choose(models, name)


def choose(models: list[ModelInfo], name: str | None) -> ModelInfo:
    """The model of a name, or the only one for segmentation.

    Raises:
        InputError: none of that name, or no name where there are several.
    """
    known = ", ".join(sorted({model.name for model in models})) or "none"
    if name is not None:
        found = [model for model in models if model.name == name]
        if not found:
            raise InputError(f"There is no model {name!r}; known: {known}.", code="unknown_model")
        return found[-1]
    found = [model for model in models if model.task == "segmentation"]
    if len(found) != 1:
        raise InputError(f"Name one model with --model; for segmentation there are: {known}.", code="model_not_named")
    return found[0]
