"""What the worker reads and writes for a job: its volumes, its mask and report, the mask in other formats."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hilum_inference.volume import Volume

Message = dict[str, Any]

MASK_NAME = "mask.nii.gz"
REPORT_NAME = "report.json"


def read(paths: Sequence[str]) -> Volume:
    """The volume of a job, its channels stacked.

    Raises:
        ProblemError: 409 where a file is gone.
    """
    from hilum_inference.io import read_volume, stack_channels
    from hilum_server.problems import volume_lost

    try:
        volumes = [read_volume(Path(path)) for path in paths]
    except FileNotFoundError as error:
        raise volume_lost() from error
    return volumes[0] if len(volumes) == 1 else stack_channels(volumes)


@contextmanager
def timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    """Note the seconds of one stage."""
    start = time.perf_counter()
    yield
    timings[stage] = round(time.perf_counter() - start, 4)


def convert(mask: Path, target: Path, image: Path | None = None) -> None:
    """Write a stored mask in the format ``target``'s suffix names, on the exact grid of ``image`` where that is there.

    A mask's own header may hold float32: enough for a NIfTI of the same header, not for another format.
    """
    from hilum_inference.io import read_volume, write_labels

    volume = like = read_volume(mask)
    if image is not None and image.exists():
        with contextlib.suppress(OSError):  # deleted this moment
            like = read_volume(image)
    same = like.grid.shape == volume.grid.shape
    write_labels(target, volume.array[0], like if same else volume)


def save(folder: Path, labels: Any, volume: Any, report: Message) -> Message:
    """Write mask and report atomically into ``folder``; what ``done`` says."""
    import hashlib

    from hilum_inference.files import write_atomically
    from hilum_inference.io import write_labels

    folder.mkdir(parents=True, exist_ok=True)
    mask = folder / MASK_NAME
    with timed(report["timings"], "write"):
        write_labels(mask, labels, volume)
    with mask.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    result = {"sha256": digest, "bytes": mask.stat().st_size}
    write_atomically(folder / REPORT_NAME, json.dumps({"result": result, "report": report}).encode())
    return {"result": result, "report": report}
