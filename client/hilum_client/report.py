"""The report of a batch: one JSON that a later run reads to go on, one CSV for a spreadsheet, both always whole."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from hilum_client.errors import InputError
from hilum_client.payload import read_chunks

if TYPE_CHECKING:
    from hilum_client.answers import ModelInfo, Result

FORMAT: Final = "hilum.batch/1"
JSON_NAME: Final = "report.json"
CSV_NAME: Final = "report.csv"
EXISTS: Final = "exists"
"""Code of a case whose mask is left alone, since no batch wrote what lies there."""


@dataclass(frozen=True)
class Entry:
    """What became of one case.

    Attributes:
        case: path below the folder of volumes.
        status: ``done`` or ``failed``.
        input_sha256: of its content.
        model, version, digest: what made the mask, by its own word; of a failed case, what the batch began with.
        seconds: wall time.
        mask, mask_sha256: path below the output folder; empty where it failed. With code EXISTS: as a batch wrote it.
        labels: ``name``, ``id``, ``voxels``, ``ml`` of each label.
        code, message: why it failed.
    """

    case: str
    status: str
    input_sha256: str
    model: str
    version: str
    digest: str
    seconds: float
    mask: str = ""
    mask_sha256: str = ""
    labels: Sequence[dict[str, Any]] = ()
    code: str = ""
    message: str = ""


@dataclass
class Report:
    """The entries of a batch in its output folder; ``add`` writes both files at once.

    ``made``: SHA-256 of each mask that a batch wrote here, also of cases, formats and layouts of earlier runs.
    """

    folder: Path
    model: ModelInfo
    cases: Sequence[str]
    entries: dict[str, Entry] = field(default_factory=dict)
    made: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, model: ModelInfo, cases: Sequence[str]) -> Self:
        """The report of a folder, with what an earlier run left in it for these cases.

        Raises:
            InputError: there is a ``report.json`` that no batch wrote.
        """
        path = folder / JSON_NAME
        entries: dict[str, Entry] = {}
        made: dict[str, str] = {}
        if path.exists():
            try:
                data = json.loads(path.read_bytes())
                if data["format"] != FORMAT:
                    raise ValueError(data["format"])
                entries = {entry["case"]: Entry(**entry) for entry in data["cases"]}
                made = dict(data.get("earlier_masks", {}))
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{path} is no report of hilum batch; move it away.", code="foreign_report") from error
        folder.mkdir(parents=True, exist_ok=True)
        made |= {entry.mask: entry.mask_sha256 for entry in entries.values() if entry.mask}
        return cls(folder, model, cases, {case: entries[case] for case in cases if case in entries}, made)

    def finished(self, case: str, content: str, mask: str) -> Entry | None:
        """The entry of a case that is done: same content, same model digest, and this very mask as it was written."""
        entry = self.entries.get(case)
        if entry is None or (entry.status, entry.input_sha256, entry.mask) != ("done", content, mask):
            return None
        return entry if entry.digest == self.model.digest and self.ours(mask) else None

    def ours(self, mask: str) -> bool:
        """Whether what lies at a mask's path is, byte for byte, what a batch wrote there; unreadable, it is not."""
        try:
            return mask in self.made and sha256(self.folder / mask) == self.made[mask]
        except OSError:
            return False

    def done(self, case: str, content: str, mask: str, result: Result, file: Path, seconds: float) -> Entry:
        """The entry of a case whose mask has been written into ``file``, from where it goes to ``mask``."""
        kept = [{name: label[name] for name in ("name", "id", "voxels", "ml")} for label in result.statistics]
        made_by = result.model, result.version, str(result.report.get("digest", ""))
        return Entry(case, "done", content, *made_by, round(seconds, 3), mask, sha256(file), kept)

    def failed(self, case: str, content: str, code: str, message: str, seconds: float) -> Entry:
        """The entry of a case that could not be segmented; of one whose mask is left alone, with all that is known."""
        before = self.entries.get(case)
        if code == EXISTS and before is not None:
            return replace(before, status="failed", seconds=round(seconds, 3), code=code, message=message)
        model = self.model.name, self.model.version, self.model.digest
        return Entry(case, "failed", content, *model, round(seconds, 3), code=code, message=message)

    def add(self, entry: Entry) -> None:
        """Take an entry in and write both files, each whole or not at all."""
        self.entries[entry.case] = entry
        if entry.mask:
            self.made[entry.mask] = entry.mask_sha256
        self.write()

    def write(self) -> None:
        """Write both files."""
        entries = [asdict(self.entries[case]) for case in sorted(self.entries)]
        count = sum(entry["status"] == "done" for entry in entries)
        head: dict[str, Any] = {
            "format": FORMAT,
            "total": len(self.cases),
            "done": count,
            "failed": len(entries) - count,
        }
        head["variant"] = self.model.variant
        named = {entry["mask"] for entry in entries}
        head["earlier_masks"] = {mask: made for mask, made in self.made.items() if mask not in named}
        write_atomically(self.folder / JSON_NAME, json.dumps(head | {"cases": entries}, indent=1).encode())
        text = self._csv().encode("utf-8", "backslashreplace")  # a file's name need not be text
        write_atomically(self.folder / CSV_NAME, text)

    def _csv(self) -> str:
        names = sorted({label["name"] for entry in self.entries.values() for label in entry.labels})
        plain = ["case", "status", "code", "message", "model", "version", "seconds", "mask"]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*plain, *(f"{name}_ml" for name in names)])
        for case in sorted(self.entries):
            entry = self.entries[case]
            volumes = {label["name"]: label["ml"] for label in entry.labels}
            writer.writerow([*(getattr(entry, name) for name in plain), *(volumes.get(name, "") for name in names)])
        return text.getvalue()


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    for chunk in read_chunks(path):
        digest.update(chunk)
    return digest.hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """A file that appears only when it is whole and on the disk."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
