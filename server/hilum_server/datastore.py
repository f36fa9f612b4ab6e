"""The folder of volumes: each in ``volumes/<id>/`` with its decoded file and ``meta.json``, visible only when whole."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hilum_inference.errors import HilumError
from hilum_inference.files import sync_folder, write_atomically
from hilum_server.files import MASK_NAME, REPORT_NAME
from hilum_server.problems import disk_full, not_found

META_NAME = "meta.json"
ORPHANS = ".orphaned"
"""Folder within the jobs' outputs for results that the store does not know."""
DELETED = ".deleted"
"""File in a job's folder whose deletion has begun."""
_ID = re.compile(r"[0-9a-f]{32}")

log = logging.getLogger("hilum.gateway")


class DataFolderError(HilumError):
    """The data folder cannot be used; the message says why."""

    code = "data_folder"


@dataclass(frozen=True)
class VolumeInfo:
    """What is known of a stored volume.

    Attributes:
        shape: voxels along i, j, k.
        spacing: mm along i, j, k.
        orientation: direction in which i, j, k increase, such as ``LPS``.
        bytes, sha256: of the upload as it arrived.
        file: name of the decoded file within the volume's folder.
        created: seconds since 1970.
    """

    id: str
    owner: str
    kind: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    orientation: str
    dtype: str
    channels: int
    bytes: int
    sha256: str
    file: str
    created: float

    def public(self) -> dict[str, Any]:
        """What the API shows."""
        return {name: value for name, value in asdict(self).items() if name not in ("owner", "file", "created")}


class Volumes:
    """Stored volumes under one folder; blocking, a few file-system calls each."""

    def __init__(self, folder: Path, reserve: int = 0) -> None:
        self._folder = folder
        self._arriving = folder / ".arriving"
        self._reserve = reserve
        self._told: set[str] = set()

    def open(self) -> None:
        """Make the folder and remove what an interrupted gateway left half received."""
        shutil.rmtree(self._arriving, ignore_errors=True)
        self._arriving.mkdir(parents=True, mode=0o700)

    def check_space(self, needed: int) -> None:
        """Refuse before the first byte what would fill the disk.

        Raises:
            ProblemError: 507.
        """
        if shutil.disk_usage(self._folder).free < needed + self._reserve:
            raise disk_full()

    @contextmanager
    def arrival(self, volume_id: str) -> Iterator[Path]:
        """A private folder to receive into; whatever is not moved out by ``keep`` is removed at the end."""
        folder = self._arriving / volume_id
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def keep(self, arrived: Path, info: VolumeInfo) -> None:
        """Make a received volume visible, atomically and durably."""
        write_atomically(arrived / META_NAME, json.dumps(asdict(info)).encode())
        arrived.rename(self._folder / info.id)
        sync_folder(self._folder)

    def get(self, volume_id: str, owner: str | None) -> VolumeInfo:
        """One volume of ``owner`` (None: of anyone).

        One whose description is damaged has no owner any more: who sees everyone's gets it, of kind ``damaged``.

        Raises:
            ProblemError: 404, the same for unknown, malformed and another's id.
        """
        info = self._read(volume_id) if _ID.fullmatch(volume_id) else None
        if info is None and owner is None and _ID.fullmatch(volume_id) and (self._folder / volume_id).is_dir():
            return _damaged(volume_id)
        if info is None or (owner is not None and info.owner != owner):
            raise not_found("volume")
        return info

    def locate(self, volume_id: str) -> Path | None:
        """The decoded file of a volume."""
        info = self._read(volume_id) if _ID.fullmatch(volume_id) else None
        return None if info is None else self._folder / volume_id / info.file

    def delete(self, volume_id: str) -> None:
        """Remove a volume: first from sight, then from the disk."""
        gone = self._arriving / f"{volume_id}.gone"
        try:
            (self._folder / volume_id).rename(gone)
        except FileNotFoundError:
            raise not_found("volume") from None
        sync_folder(self._folder)
        shutil.rmtree(gone, ignore_errors=True)

    def older_than(self, moment: float) -> list[str]:
        """Ids of volumes that came before ``moment``."""
        names = [entry.name for entry in os.scandir(self._folder) if _ID.fullmatch(entry.name)]
        return [name for name in names if self._came(name) < moment]

    def _came(self, volume_id: str) -> float:
        """When a volume came; one whose description is damaged when its folder was last written."""
        info = self._read(volume_id)
        if info is not None:
            return info.created
        try:
            return (self._folder / volume_id).stat().st_mtime
        except OSError:  # its owner was quicker
            return math.inf

    def _read(self, volume_id: str) -> VolumeInfo | None:
        """What is known of a volume; None where it is not there, or its description is damaged: it counts as lost."""
        try:
            meta: Mapping[str, Any] = json.loads((self._folder / volume_id / META_NAME).read_bytes())
            return VolumeInfo(**{**meta, "shape": tuple(meta["shape"]), "spacing": tuple(meta["spacing"])})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            if volume_id not in self._told:
                self._told.add(volume_id)
                log.error("a volume's %s is damaged (%s); the volume counts as lost", META_NAME, type(error).__name__)
            return None


def tidy_outputs(folder: Path, known: frozenset[str]) -> None:
    """Remove from the jobs' outputs what a killed gateway left: half-written files, and folders without a job.

    A whole result is never removed: where the store was moved away or restored from a backup it knows less than the
    disk. Such results are set aside, and come back with the store that knows them.
    """
    if not folder.is_dir():
        return
    _take_back(folder, known)
    for entry in list(folder.iterdir()):
        if entry.name in known:
            for part in entry.glob(".*"):
                part.unlink(missing_ok=True)
        elif _whole(entry):
            _set_aside(entry)
        elif entry.name != ORPHANS:
            shutil.rmtree(entry, ignore_errors=True)
    aside = folder / ORPHANS
    if aside.is_dir() and (count := len(list(aside.iterdir()))):
        text = "%d results that the job store does not know lie in %s; they stay there until you remove them"
        log.warning(text, count, aside)


def forget_outputs(folder: Path) -> None:
    """Say in a job's folder that its deletion has begun, so that a kill amid it leaves nothing for ``tidy_outputs``."""
    with contextlib.suppress(OSError):  # it has no outputs, or the disk is full
        (folder / DELETED).touch()


def _whole(outputs: Path) -> bool:
    return all((outputs / name).is_file() for name in (MASK_NAME, REPORT_NAME)) and not (outputs / DELETED).exists()


def _set_aside(outputs: Path) -> None:
    aside = outputs.with_name(ORPHANS)
    try:
        aside.mkdir(mode=0o700, exist_ok=True)
        outputs.rename(aside / outputs.name)
    except OSError as error:
        log.warning("a result that the job store does not know stays in %s: %s", outputs.parent, error.strerror)


def _take_back(folder: Path, known: frozenset[str]) -> None:
    aside = folder / ORPHANS
    for entry in list(aside.iterdir()) if aside.is_dir() else ():
        if entry.name in known and not (folder / entry.name).exists():
            with contextlib.suppress(OSError):  # it stays where it is, and is counted
                entry.rename(folder / entry.name)


def hold(data: Path) -> int:
    """Make the data folder and hold it alone; the handle to keep open (released when the process ends).

    Raises:
        DataFolderError: it cannot be made, or another gateway holds it.
    """
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(data / "gateway.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DataFolderError(
            f"The data folder {data} cannot be used: {error.strerror}; choose another with --data."
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise DataFolderError(
            f"Another gateway works in {data}; stop it, choose another folder with --data, or talk to it with --server."
        ) from error
    return handle


def _damaged(volume_id: str) -> VolumeInfo:
    """What is left to say of a volume whose description is damaged."""
    return VolumeInfo(volume_id, "", "damaged", (0, 0, 0), (0.0, 0.0, 0.0), "", "", 0, 0, "", "", 0.0)


def new_info(volume_id: str, owner: str, found: Mapping[str, Any]) -> VolumeInfo:
    """A volume that has just arrived."""
    return VolumeInfo(id=volume_id, owner=owner, created=time.time(), **found)
