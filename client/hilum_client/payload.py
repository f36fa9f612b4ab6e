"""What is sent for an image: a file as it is, a DICOM folder as a zip, an array as NIfTI; never whole in memory."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hilum_client.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

CHUNK: Final = 1 << 20
DICOM_PREFIX: Final = b"DICM"  # at byte 128


@dataclass(frozen=True)
class Payload:
    """Bytes to send: how many, and a way to read them (again, after a broken line).

    ``temporary`` is removed by ``close``.
    """

    size: int
    open: Callable[[], Iterator[bytes]]
    temporary: Path | None = None

    def close(self) -> None:
        """Remove what was made for sending."""
        if self.temporary is not None:
            self.temporary.unlink(missing_ok=True)


def prepare(image: Path | NDArray[Any], affine: ArrayLike | None = None) -> Payload:
    """The payload of a path (file or folder of a DICOM series) or of an array (I, J, K) or (C, I, J, K).

    Raises:
        InputError: no such path, an empty folder, or an array that cannot be sent.
    """
    if not isinstance(image, Path):
        from hilum_client.nifti import encode

        size, _ = encode(image, affine)
        return Payload(size, lambda: encode(image, affine)[1])
    if image.is_dir():
        return _zipped(image)
    if not image.is_file():
        raise InputError(f"There is no file {image}.", code="no_such_file")
    return Payload(image.stat().st_size, lambda: read_chunks(image))


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM files in a folder and below, sorted by name; a DICOMDIR is not one of them."""
    found = [Path(root, name) for root, _, names in os.walk(folder) for name in names if name.upper() != "DICOMDIR"]
    return sorted(path for path in found if is_dicom(path))


def is_dicom(path: Path) -> bool:
    """Whether a file bears the mark of a DICOM file; pipes and devices are not opened: they may never answer.

    Raises:
        OSError: it cannot be read, or is a link that leads nowhere: a slice may be missing.
    """
    if path.exists() and not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == DICOM_PREFIX


def read_chunks(path: Path) -> Iterator[bytes]:
    """A file's bytes, ``CHUNK`` at a time."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def _zipped(folder: Path) -> Payload:
    """A stored zip (pixel data is compressed already or not worth the time); members are numbered, names stay here."""
    files = dicom_files(folder)
    if not files:
        raise InputError(f"The folder {folder} holds no DICOM files.", code="empty_folder")
    with _temporary(".zip") as path:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for index, file in enumerate(files):
                member = zipfile.ZipInfo(f"{index:06d}.dcm")
                with file.open("rb") as source, archive.open(member, "w") as target:
                    while chunk := source.read(CHUNK):
                        target.write(chunk)
        return Payload(path.stat().st_size, lambda: read_chunks(path), path)


@contextmanager
def _temporary(suffix: str) -> Iterator[Path]:
    """A new temporary file that is removed where its making fails."""
    handle, name = tempfile.mkstemp(suffix=suffix, prefix="hilum-")
    os.close(handle)
    path = Path(name)
    try:
        yield path
    except BaseException:
        path.unlink(missing_ok=True)
        raise
