"""``hilum batch``: a folder of volumes in, masks and one report out; it can be killed and started again."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

from hilum_client import wire
from hilum_client.backend import Where, choose, open_backend
from hilum_client.errors import ConnectError, InputError, MissingExtra, told, told_file
from hilum_client.options import Key, Model, Repository, Server, Threads, application
from hilum_client.payload import dicom_files, is_dicom, read_chunks
from hilum_client.report import Entry, Report
from hilum_client.segment import stem

if TYPE_CHECKING:
    from hilum_client.answers import Result

app = application()
log = logging.getLogger(__name__)

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".zip")
Segment = Callable[[Path, Path], "Result"]


@dataclass(frozen=True)
class Case:
    """One volume.

    Attributes:
        name: its path below the folder, with ``/``.
        path: the file, or the folder of a DICOM series.
        mask: path of its mask below the output folder.
    """

    name: str
    path: Path
    mask: Path


class Watch(Protocol):
    """Hears of each case: that it begins, and what became of it."""

    def begins(self, case: Case) -> None:
        """A case is being segmented."""
        ...

    def ended(self, entry: Entry, skipped: bool) -> None:
        """A case is in the report; ``skipped`` where an earlier run had finished it."""
        ...


def find_cases(folder: Path, skip: Path, suffix: wire.MaskFormat = "nii.gz") -> list[Case]:
    """The volumes in a folder and below, by name: NIfTI, NRRD, zips, and folders of DICOM files.

    Args:
        folder: where to look; hidden files and links to folders are passed over.
        skip: a folder inside that is passed over: that of the masks.
        suffix: of the masks.

    Raises:
        InputError: no such folder, or no volume in it.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}.", code="no_such_folder")
    found = sorted(_volumes(folder, skip.resolve()))
    if not found:
        raise InputError(f"{folder} holds no volumes ({', '.join(SUFFIXES)} or DICOM).", code="no_volumes")
    stems = Counter(path.relative_to(folder).with_name(stem(path)) for path in found)
    cases = []
    for path in found:
        own = path.relative_to(folder)
        short = own.with_name(stem(path))
        mask = short if stems[short] == 1 else own.with_name(path.resolve().name)
        cases.append(Case(own.as_posix(), path, mask.with_name(f"{mask.name}-mask.{suffix}")))
    return cases


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
        content = content_hash(case.path)
    except OSError as error:
        return report.failed(case.name, "", *told_file(error), 0.0), False
    known = report.finished(case.name, content)
    return (known, True) if known is not None else (_one(case, content, segment, report), False)


def content_hash(path: Path) -> str:
    """SHA-256 of a file, or of the names and bytes of a folder's DICOM files."""
    digest = hashlib.sha256()
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
        result = segment(case.path, mask)
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


def _volumes(folder: Path, skip: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        here = Path(root)
        folders[:] = sorted(n for n in folders if not n.startswith(".") and (here / n).resolve() != skip)
        seen = [here / name for name in sorted(names) if not name.startswith(".")]
        volumes = [path for path in seen if path.name.lower().endswith(SUFFIXES)]
        yield from volumes
        rest = [path for path in seen if path not in volumes and path.name.upper() != "DICOMDIR"]
        if any(is_dicom(path) for path in rest):
            yield here


@app.command(epilog="Example: hilum batch studies/ -o masks/")
def batch(
    folder: Annotated[Path, typer.Argument(help="Folder of volumes, searched with all folders below.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for masks, report.csv and report.json.")],
    model: Model = None,
    mask_format: Annotated[str, typer.Option("--format", help="nii.gz, nii or nrrd.")] = "nii.gz",
    server: Server = None,
    key: Key = None,
    repository: Repository = None,
    threads: Threads = None,
) -> None:
    """Segment every volume of a folder, the network loaded once. Run it again to go on after a stop.

    Exit code 0: all done; 1: some failed (they are listed in the report, the rest is done).
    """
    if mask_format not in wire.MASK_FORMATS:
        raise InputError(f"--format is one of {', '.join(wire.MASK_FORMATS)}; got {mask_format!r}.", code="bad_option")
    if out.resolve() == folder.resolve():
        raise InputError("The masks need a folder of their own: name another one with -o.", code="same_folder")
    cases = find_cases(folder, out, mask_format)
    where = Where(server, key, tuple(repository or ()), threads)
    with open_backend(where, "hilum batch") as backend:
        from hilum_client.watch import Live

        chosen = choose(backend.models(), model)
        report = Report.open(out, chosen, [case.name for case in cases])
        with Live(len(cases)) as live:
            failed = run_batch(
                cases,
                lambda image, mask: backend.segment(image, model=chosen.name, out=mask, progress=live.windows),
                report,
                live,
            )
    live.say(report, failed)
    raise typer.Exit(1 if failed else 0)
