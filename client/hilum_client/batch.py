"""``hilum batch``: a folder of volumes in, masks and one report out; it can be killed and started again."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

from hilum_client import wire
from hilum_client.backend import Where, chosen, open_backend
from hilum_client.errors import ConnectError, InputError, MissingExtra, told, told_file
from hilum_client.layouts import LAYOUTS, Case, Source, check_labels, find_cases, find_task, named
from hilum_client.options import Key, Model, Repository, Server, Threads, Variant, application
from hilum_client.payload import dicom_files, read_chunks
from hilum_client.report import Entry, Report

if TYPE_CHECKING:
    from hilum_client.answers import Result

app = application()
log = logging.getLogger(__name__)

Segment = Callable[[Source, Path], "Result"]


class Watch(Protocol):
    """Hears of each case: that it begins, and what became of it."""

    def begins(self, case: Case) -> None:
        """A case is being segmented."""
        ...

    def ended(self, entry: Entry, skipped: bool) -> None:
        """A case is in the report; ``skipped`` where an earlier run had finished it."""
        ...


def run_batch(cases: Sequence[Case], segment: Segment, report: Report, watch: Watch) -> int:
    """Segment what the report does not hold yet, writing it after every case; how many cases failed.

    A case is finished where the report names the same content, model digest and mask. A failed one is tried again.
    The report is written in any case, also with no case done.

    Raises:
        ConnectError: the server is gone; what is done is in the report.
        MissingExtra, ModuleNotFoundError: a part of the wheel is not installed.
    """
    failed = 0
    try:
        for case in cases:
            watch.begins(case)
            entry, skipped = _entry(case, segment, report)
            if not skipped:
                report.add(entry)
                failed += entry.status == "failed"
            watch.ended(entry, skipped)
    finally:
        report.write()
    return failed


def _entry(case: Case, segment: Segment, report: Report) -> tuple[Entry, bool]:
    """The entry of a case, and whether an earlier run had finished it."""
    try:
        content = content_hash(case.path, *case.further)
    except OSError as error:
        return report.failed(case.name, "", *told_file(error), 0.0), False
    known = report.finished(case.name, content)
    return (known, True) if known is not None else (_one(case, content, segment, report), False)


def content_hash(path: Path, *further: Path) -> str:
    """SHA-256 of a file, or of the names and bytes of a folder's DICOM files; of several, over those of each."""
    digest = hashlib.sha256()
    if further:
        digest.update(" ".join(content_hash(each) for each in (path, *further)).encode())
        return digest.hexdigest()
    for file in dicom_files(path) if path.is_dir() else [path]:
        if path.is_dir():
            digest.update(f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\0".encode())
        for chunk in read_chunks(file):
            digest.update(chunk)
    return digest.hexdigest()


def _one(case: Case, content: str, segment: Segment, report: Report) -> Entry:
    """One case, done or failed; an error that is no fault of the case goes on upwards."""
    start = time.perf_counter()
    mask = report.folder / case.mask
    try:
        mask.parent.mkdir(parents=True, exist_ok=True)
        result = segment(case.source, mask)
        return report.done(case.name, content, case.mask.as_posix(), result.statistics, time.perf_counter() - start)
    except (ConnectError, MissingExtra, ModuleNotFoundError):  # no other case would fare better
        raise
    except Exception as error:  # a night's batch outlives a defect that one case brings to light
        mask.unlink(missing_ok=True)  # that of an earlier content
        if told(error) is None:
            log.exception("A case failed in a way that was not foreseen.")
        return report.failed(case.name, content, *_reason(error), time.perf_counter() - start)


def _reason(error: Exception) -> tuple[str, str]:
    """Code and sentence of what a case failed with."""
    known = told(error)
    if known is not None:
        return known
    if isinstance(error, MemoryError):
        return "out_of_memory", "The case needs more memory than there is; segment it on a larger machine."
    return "internal", f"Unexpected {type(error).__name__}; its traceback is in the log."


@app.command(epilog="Example: hilum batch studies/ -o masks/")
def batch(
    folder: Annotated[Path, typer.Argument(help="Folder of volumes, searched with all folders below.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for masks, report.csv and report.json.")],
    model: Model = None,
    mask_format: Annotated[str, typer.Option("--format", help="nii.gz, nii or nrrd.")] = "nii.gz",
    layout: Annotated[
        str, typer.Option(help="flat; or msd: the test set of a task, named as the Decathlon's server takes it.")
    ] = "flat",
    server: Server = None,
    key: Key = None,
    repository: Repository = None,
    threads: Threads = None,
    variant: Variant = None,
) -> None:
    """Segment every volume of a folder, the network loaded once. Run it again to go on after a stop.

    Exit code 0: all done; 1: some failed (they are listed in the report, the rest is done).
    """
    if mask_format not in wire.MASK_FORMATS:
        raise InputError(f"--format is one of {', '.join(wire.MASK_FORMATS)}; got {mask_format!r}.", code="bad_option")
    if layout not in LAYOUTS:
        raise InputError(f"--layout is one of {', '.join(LAYOUTS)}; got {layout!r}.", code="bad_option")
    if layout == "msd" and mask_format != "nii.gz":
        raise InputError(f"--layout msd writes nii.gz alone; got --format {mask_format}.", code="bad_option")
    if out.resolve() == folder.resolve():
        raise InputError("The masks need a folder of their own: name another one with -o.", code="same_folder")
    task = find_task(folder) if layout == "msd" else None
    cases = find_cases(folder, out, mask_format) if task is None else list(task.cases)
    where = Where(server, key, tuple(repository or ()), threads, variant)
    with open_backend(where, "hilum batch") as backend:
        from hilum_client.watch import Live

        found = chosen(backend, model)
        if task is not None:
            check_labels(found.name, found.labels)
        report = Report.open(out, found, [case.name for case in cases])
        with Live(len(cases)) as live:

            def segment(image: Source, mask: Path) -> Result:
                given = named(image, found.channels)
                return backend.segment(given, model=found.name, out=mask, progress=live.windows)

            failed = run_batch(cases, segment, report, live)
    live.say(report, failed)
    if task is not None:
        typer.echo(task.verdict(out))
    incomplete = task is not None and task.first_missing(out) is not None
    raise typer.Exit(1 if failed or incomplete else 0)
