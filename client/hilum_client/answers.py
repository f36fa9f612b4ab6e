"""What a server answers, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

from hilum_client.wire import FINISHED

Json = Mapping[str, Any]


@dataclass(frozen=True)
class ModelInfo:
    """One model of a server or repository.

    ``spacing`` (mm) and ``window`` (voxels) are the network's; they and ``manifest`` are only known where one model was
    asked for by name, or in this process. ``variant`` is the one that is served, ``variants`` are all that the version
    has; ``dice_gate`` is ``passed``, ``on-training-cases``, ``compared`` (with the mask of the library that it was
    imported from), ``skipped``, or None: made before there was one.
    """

    name: str
    version: str
    title: str = ""
    task: str = "segmentation"
    channels: tuple[str, ...] = ()
    labels: Mapping[str, int] = field(default_factory=dict)
    colors: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    spacing: tuple[float, ...] | None = None
    window: tuple[int, ...] | None = None
    digest: str = ""
    variant: str = ""
    variants: tuple[str, ...] = ()
    dice_gate: str | None = None
    manifest: Json | None = None

    @classmethod
    def from_json(cls, data: Json) -> ModelInfo:
        """From an entry of ``GET /api/models``; unknown fields are ignored."""
        labels = data.get("labels") or ()
        manifest = data.get("manifest") or {}
        spacing = data.get("spacing") or manifest.get("geometry", {}).get("spacing")
        window = data.get("window") or manifest.get("windows", {}).get("size")
        return cls(
            name=str(data["name"]),
            version=str(data.get("version", "")),
            title=str(data.get("title", "")),
            task=str(data.get("task", "segmentation")),
            channels=tuple(c if isinstance(c, str) else str(c["name"]) for c in data.get("channels") or ()),
            labels={str(label["name"]): int(label["id"]) for label in labels},
            colors={str(label["name"]): tuple(label["color"]) for label in labels if label.get("color")},
            spacing=None if spacing is None else tuple(spacing),
            window=None if window is None else tuple(window),
            digest=str(data.get("digest", "")),
            variant=str(data.get("variant") or ""),
            variants=tuple(map(str, data.get("variants") or ())),
            dice_gate=data.get("dice_gate"),
            manifest=data.get("manifest"),
        )


@dataclass(frozen=True)
class VolumeInfo:
    """A volume that a server holds: ``id`` is what ``segment`` and ``submit`` take."""

    id: str
    kind: str = ""
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    orientation: str = ""
    dtype: str = ""
    channels: int = 1
    bytes: int = 0
    sha256: str = ""

    @classmethod
    def from_json(cls, data: Json) -> VolumeInfo:
        """From the answer of ``PUT /api/volumes``."""
        return cls(
            id=str(data["id"]),
            kind=str(data.get("kind", "")),
            shape=tuple(data.get("shape") or ()),
            spacing=tuple(data.get("spacing") or ()),
            orientation=str(data.get("orientation", "")),
            dtype=str(data.get("dtype", "")),
            channels=int(data.get("channels", 1)),
            bytes=int(data.get("bytes", 0)),
            sha256=str(data.get("sha256", "")),
        )


@dataclass(frozen=True)
class Progress:
    """Windows done, windows in all, and the seconds that are left (None: not known yet)."""

    done: int = 0
    total: int = 0
    seconds_left: float | None = None


@dataclass(frozen=True)
class Job:
    """One job of a server. Times are ISO 8601 text; ``error`` has ``code`` and ``detail``."""

    id: str
    status: str
    model: str = ""
    version: str = ""
    priority: Any = None
    progress: Progress = Progress()
    created: str | None = None
    started: str | None = None
    ended: str | None = None
    attempts: int = 0
    error: Json | None = None
    result: Json | None = None
    report: Json | None = None

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status in FINISHED

    @classmethod
    def from_json(cls, data: Json) -> Job:
        """From a job of the API; unknown fields are ignored."""
        progress = data.get("progress") or {}
        return cls(
            id=str(data["id"]),
            status=str(data["status"]),
            model=str(data.get("model") or ""),
            version=str(data.get("version") or ""),
            priority=data.get("priority"),
            progress=Progress(
                int(progress.get("done") or 0), int(progress.get("total") or 0), progress.get("seconds_left")
            ),
            created=data.get("created"),
            started=data.get("started"),
            ended=data.get("ended"),
            attempts=int(data.get("attempts") or 0),
            error=data.get("error"),
            result=data.get("result"),
            report=data.get("report"),
        )


@dataclass(frozen=True)
class Result:
    """A finished segmentation.

    Attributes:
        model, version: what made it.
        statistics: one dictionary a label: ``name``, ``id``, ``voxels``, ``ml``.
        timings: seconds of each stage.
        labels: (I, J, K) on the input's own grid; None where the mask went to a file.
        affine: (4, 4) RAS, mm; None where the mask went to a file.
        mask_path: the file, where one was asked for.
        report: everything the server said about it.
    """

    model: str
    version: str
    statistics: list[dict[str, Any]]
    timings: dict[str, float]
    labels: NDArray[Any] | None = None
    affine: NDArray[np.float64] | None = None
    mask_path: Path | None = None
    report: Json = field(default_factory=dict)
