"""One upload, judged while its bytes arrive: the header as soon as it is there, sizes and checksums all along.

What is stored is plain: gzip is inflated on the way to the disk, so that whoever decodes it later maps it into memory.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hilum_inference.errors import LimitError, UnreadableError
from hilum_inference.files import sync_folder
from hilum_inference.gate import archive
from hilum_inference.gate.judges import Judge, Kind, Start, Suffix
from hilum_inference.gate.limits import Limits

_KIND: dict[Suffix, Kind] = {".nii": "nifti", ".nrrd": "nrrd", ".zip": "dicom", ".dcm": "dicom"}


@dataclass(frozen=True)
class Stored:
    """An upload that passed the gate.

    Attributes:
        path: .nii or .nrrd, inflated; .zip or .dcm as received.
        bytes: as received.
        sha256: of the bytes as received, in hex.
    """

    path: Path
    kind: Kind
    bytes: int
    sha256: str


class Intake:
    """Takes one upload into ``folder``; on any error nothing is left there.

    ``feed`` costs a hash and a write, more where it ``inflates``; ``finish`` waits for the disk.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._folder = folder
        self._limits = limits
        self._part = folder / f".{secrets.token_hex(16)}.part"
        self._file: BinaryIO | None = None
        self._judge: Judge | None = None
        self._digest = hashlib.sha256()
        self._received = 0

    @property
    def inflates(self) -> bool:
        """Whether feeding inflates (then feed from a thread); known once the first bytes are fed."""
        return self._judge is not None and self._judge.inflates

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes.

        Raises:
            InputError: as soon as the bytes so far allow no other verdict.
            OSError: the disk refuses.
        """
        try:
            self._received += len(chunk)
            if self._received > self._limits.max_upload_bytes:
                raise LimitError(
                    f"The upload is longer than {self._limits.max_upload_bytes} bytes, the most that is taken.",
                    code="upload_too_large",
                )
            self._digest.update(chunk)
            if self._judge is None:
                self._file = self._part.open("xb")
                self._judge = Start(self._file, self._limits)
            self._judge = self._judge.feed(chunk)
        except BaseException:
            self.abort()
            raise

    def finish(self) -> Stored:
        """The stored upload, safe on the disk.

        Raises:
            InputError: the upload ended too early, or the directory of the zip is refused.
            OSError: the disk refuses.
        """
        try:
            return self._finish()
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Remove everything; may be called at any time, also twice."""
        file, self._file = self._file, None
        if file is not None:
            self._part.unlink(missing_ok=True)  # first: closing may fail on a full disk
            file.close()

    def _finish(self) -> Stored:
        if self._file is None or self._judge is None:
            raise UnreadableError("The upload is empty.", code="empty")
        suffix = self._judge.finish()
        self._file.flush()
        if suffix == ".zip":
            archive.check_directory(self._part, self._limits)
        os.fsync(self._file.fileno())
        path = self._folder / f"{secrets.token_hex(16)}{suffix}"
        self._part.replace(path)
        self._file.close()
        self._file = None
        sync_folder(self._folder)
        return Stored(path, _KIND[suffix], self._received, self._digest.hexdigest())
