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
from hilum_client.errors import ConnectError, InputError, MissingExtra, told
from hilum_client.layouts import LAYOUTS, Case, Source, check_labels, find_cases, find_task, named
from hilum_client.options import Force, Key, Model, Repository, Server, Threads, Variant, application
from hilum_client.payload import dicom_files, read_chunks
from hilum_client.report import EXISTS, Entry, Report

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


def run_batch(cases: Sequence[Case], segment: Segment, report: Report, watch: Watch, *, force: bool = False) -> int:
    """Segment what the report does not hold yet, writing it after every case; how many cases failed.

    A case is finished where the report names the same content, model digest and mask. A failed one is tried again.
    A mask that lies there and that no batch wrote is left alone, and its case fails, unless ``force``.
    The report is written in any case, also with no case done.

    Raises:
        ConnectError: the server is gone; what is done is in the report.
        MissingExtra, ModuleNotFoundError: a part of the wheel is not installed.
    """
    failed = 0
    try:
        for case in cases:
            watch.begins(case)
            entry, skipped = _entry(case, segment, report, force)
            if entry.status == "failed":
                report.add(entry)
                failed += 1
            watch.ended(entry, skipped)
    finally:
        report.write()
    return failed


def _entry(case: Case, segment: Segment, report: Report, force: bool) -> tuple[Entry, bool]:
    """The entry of a case (a done one is in the report already), and whether an earlier run had finished it."""
    try:
        content = content_hash(case.path, *case.further)
        known = report.finished(case.name, content, case.mask.as_posix())
    except (OSError, ValueError) as error:  # a name that no encoding takes is a ValueError
        return report.failed(case.name, "", *_reason(error), 0.0), False
    return (known, True) if known is not None else (_one(case, content, segment, report, force), False)


def content_hash(path: Path, *further: Path) -> str:
    """SHA-256 of a file, or of the names and bytes of a folder's DICOM files; of several, over those of each."""
    digest = hashlib.sha256()
    if further:
        digest.update(" ".join(content_hash(each) for each in (path, *further)).encode())
        return digest.hexdigest()
    for file in dicom_files(path) if path.is_dir() else [path]:
        if path.is_dir():
            head = f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\0"
            digest.update(head.encode("utf-8", "surrogateescape"))  # a file's name need not be text
        for chunk in read_chunks(file):
            digest.update(chunk)
    return digest.hexdigest()


def _one(case: Case, content: str, segment: Segment, report: Report, force: bool) -> Entry:
    """One case, done or failed; an error that is no fault of the case goes on upwards.

    The mask is made beside its place and goes there once the report names it: however hard a batch is stopped, what
    lies there is ours where the report says so, and nobody else's work is lost.
    """
    start = time.perf_counter()
    name, mask = case.mask.as_posix(), report.folder / case.mask
    part = mask.with_name(f".hilum-{mask.name}")
    try:
        _check_free(report, name, force)
        mask.parent.mkdir(parents=True, exist_ok=True)
        result = segment(case.source, part)
        entry = report.done(case.name, content, name, result, part, time.perf_counter() - start)
        _check_free(report, name, force)  # once more: a case takes minutes
        mask.unlink(missing_ok=True)
        report.add(entry)
        part.replace(mask)
        return entry
    except (ConnectError, MissingExtra, ModuleNotFoundError):  # no other case would fare better
        raise
    except Exception as error:  # a night's batch outlives a defect that one case brings to light
        if report.ours(name):
            mask.unlink(missing_ok=True)  # that of an earlier content
        if told(error) is None:
            log.exception("A case failed in a way that was not foreseen.")
        return report.failed(case.name, content, *_reason(error), time.perf_counter() - start)
    finally:
        part.unlink(missing_ok=True)


def _check_free(report: Report, name: str, force: bool) -> None:
    """Refuse to write a mask where something lies that no batch wrote.

    Raises:
        InputError: something does, be it a link that leads nowhere.
    """
    mask = report.folder / name
    if not force and (mask.exists() or mask.is_symlink()) and not report.ours(name):
        raise InputError(
            f"{mask} is there, and is not what a batch wrote; move it away, name another folder with -o, or overwrite "
            "it with --force.",
            code=EXISTS,
        )


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
    force: Force = False,
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
                return backend.segment(given, model=found, out=mask, progress=live.windows)

            failed = run_batch(cases, segment, report, live, force=force)
    live.say(report, failed)
    if task is not None:
        typer.echo(task.verdict(out))
    incomplete = task is not None and task.first_missing(out) is not None
    raise typer.Exit(1 if failed or incomplete else 0)
