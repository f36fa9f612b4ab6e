"""``hilum doctor``: what is installed, reachable and fast enough, and what to do where it is not."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal

import typer

from hilum_client.backend import DATA_FOLDER, Where, repositories
from hilum_client.errors import ClientError, told
from hilum_client.extras import EXTRAS, load, missing_modules
from hilum_client.options import AsJson, Key, Repository, Server, application

app = application()

WANTED: Final = ("inference", "dicom", "serve")
"""Extras without which a warning is due: they make this machine a gateway."""

GIB: Final = 1 << 30
LEAST_MEMORY: Final = 4 * GIB
LEAST_DISK: Final = 5 * GIB
SLOW_WINDOW: Final = 5.0
"""Seconds a window: above it a whole CT takes many minutes."""

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, how it is, what was found, and what to do about it."""

    name: str
    status: Status
    found: str
    advice: str = ""


@app.command(epilog="Example: hilum doctor --server http://127.0.0.1:8000")
def doctor(server: Server = None, key: Key = None, repository: Repository = None, as_json: AsJson = False) -> None:
    """Check this installation. Exit code 1 where something fails, 0 with warnings."""
    where = Where(server, key, tuple(repository or ()))
    checks = []
    for check in examine(where):
        checks.append(check)
        if not as_json:
            show(check)
    if as_json:
        typer.echo(json.dumps([asdict(check) for check in checks], indent=2))
    raise typer.Exit(int(any(check.status == "fail" for check in checks)))


def examine(where: Where) -> Iterator[Check]:
    """All checks, each as soon as it is known."""
    yield versions()
    yield from extras()
    yield cpu()
    yield memory()
    yield disk(DATA_FOLDER.expanduser())
    if not missing_modules("inference"):
        yield from models(where)
    if where.server is not None:
        yield reachable(where)


def show(check: Check) -> None:
    """One line for people."""
    color = {"ok": typer.colors.GREEN, "warn": typer.colors.YELLOW, "fail": typer.colors.RED}[check.status]
    typer.echo(typer.style(f"{check.status:<5}", fg=color) + f"{check.name}: {check.found}")
    if check.advice:
        typer.echo(f"      {check.advice}")


def versions() -> Check:
    """Hilum, Python, the machine."""
    found = f"hilum {metadata.version('hilum')}, Python {platform.python_version()}, {platform.platform(terse=True)}"
    return Check("version", "ok", found)


def extras() -> Iterator[Check]:
    """One line for what is installed, one for each extra that a gateway needs and that is not there."""
    missing = {name: missing_modules(name) for name in EXTRAS}
    installed = [name for name in EXTRAS if not missing[name]]
    yield Check("installed", "ok", ", ".join(["client", *installed]))
    for name in WANTED:
        if missing[name]:
            lacks = ", ".join(missing[name])
            yield Check(f"extra [{name}]", "warn", f"not installed (no {lacks})", f"pip install 'hilum[{name}]'")


def cpu(flags: set[str] | None = None) -> Check:
    """Cores and the instructions that make a network fast."""
    known = cpu_flags() if flags is None else flags
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    fast = [name for name in ("avx2", "avx512f", "avx512_vnni", "amx_bf16", "asimd") if name in known]
    found = f"{cores} cores, {platform.machine()}, {' '.join(fast) or 'instructions unknown'}"
    if known and not fast:
        return Check("cpu", "warn", found, "Without AVX2 a network runs several times slower; use another machine.")
    return Check("cpu", "ok", found)


def cpu_flags(path: Path = Path("/proc/cpuinfo")) -> set[str]:
    """What the kernel says the processor can do; empty where it says nothing."""
    if not path.is_file():
        return set()
    lines = [line for line in path.read_text().splitlines() if line.startswith(("flags", "Features"))]
    return set(lines[0].partition(":")[2].split()) if lines else set()


def memory() -> Check:
    """Memory in all, and free: on the machine, or in the container where that is less."""
    try:
        import psutil

        available = load("hilum_inference.memory:available", "inference", "hilum doctor")()
    except ModuleNotFoundError:
        return Check("memory", "warn", "unknown", "pip install 'hilum[inference]' to have it looked at.")
    found = f"{psutil.virtual_memory().total / GIB:.1f} GiB, {available / GIB:.1f} GiB free"
    if available < LEAST_MEMORY:
        return Check("memory", "warn", found, f"Large scans may be refused below {LEAST_MEMORY // GIB} GiB free.")
    return Check("memory", "ok", found)


def disk(folder: Path) -> Check:
    """Room in the data folder, or where it would be made."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    found = f"{free / GIB:.1f} GiB free for {folder}"
    if not os.access(there, os.W_OK):
        return Check(
            "data folder", "fail", f"{there} cannot be written to", "Choose another: hilum serve --data FOLDER"
        )
    if free < LEAST_DISK:
        return Check("data folder", "warn", found, "Uploads are refused when it runs full; make room.")
    return Check("data folder", "ok", found)


def models(where: Where) -> Iterator[Check]:
    """Each model of this machine, the refused ones too, and the speed of the default one."""
    advice = "Fetch one, or name its folder: --repository FOLDER"
    try:
        folders = repositories(where)
    except ClientError as error:
        yield Check("models", "fail", error.message, advice)
        return
    repository = load("hilum_inference.repository:Repository", "inference", "hilum doctor")(folders)
    good = repository.models()
    for name, reason in repository.broken.items():
        yield Check(f"model {name}", "fail", reason, "Export it again, or remove its folder.")
    if not good:
        yield Check("models", "fail", f"none in {', '.join(map(str, folders))}", advice)
        return
    yield Check("models", "ok", ", ".join(f"{model.name} {model.version}" for model in good))
    for model in good:
        yield attempt("engine", partial(speed, model))


def speed(model: Any) -> Check:
    """One window of a model, timed: the median of three after one that warms up."""
    import numpy as np

    start = time.perf_counter()
    engine = load("hilum_inference.engines:open_engine", "inference", "hilum doctor")(model)
    ready = time.perf_counter() - start
    window = np.zeros((1, len(model.manifest.channels), *model.manifest.windows.size), np.float32)
    output = "features" if model.manifest.blends_features else "logits"
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        engine.run(window, output)
        seconds.append(time.perf_counter() - start)
    engine.close()
    median = sorted(seconds[1:])[1]
    size = " x ".join(map(str, model.manifest.windows.size))
    found = f"{model.name}: {median:.3f} s a window of {size}, {engine.precision}, ready in {ready:.2f} s"
    if median > SLOW_WINDOW:
        return Check("engine", "warn", found, "A whole scan will take many minutes; use a machine with more cores.")
    return Check("engine", "ok", found)


def reachable(where: Where) -> Check:
    """Whether the server answers, and with which models."""
    from hilum_client.client import Client
    from hilum_client.steps import Retry

    def ask() -> Check:
        with Client(where.server or "", where.key, retry=Retry(attempts=1)) as client:
            names = ", ".join(f"{model.name} {model.version}" for model in client.models())
        if not names:
            return Check("server", "warn", f"{where.server} has no models", "Start it with --repository FOLDER")
        return Check("server", "ok", f"{where.server} has {names}")

    return attempt("server", ask)


def attempt(name: str, look: Callable[[], Check]) -> Check:
    """A check whose own failure is its finding."""
    try:
        return look()
    except Exception as error:
        known = told(error)
        if known is None:
            raise
        return Check(name, "fail", known[1])
