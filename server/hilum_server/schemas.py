"""The API's JSON objects, with the examples that OpenAPI shows."""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from hilum_client.wire import Status
from hilum_server.progress import Progress
from hilum_server.store import Job

VOLUME_ID = "0f5c2b6f5d1e4f0c9a7be3d2c1a09876"
JOB_ID = "7e1f0a9b8c7d6e5f4a3b2c1d0e9f8a7b"

MODEL: dict[str, Any] = {
    "name": "ct-abdomen",
    "version": "1",
    "title": "Liver, spleen and bone in CT",
    "task": "segmentation",
    "channels": ["CT"],
    "labels": [{"name": "liver", "id": 1, "color": [221, 130, 101]}],
    "digest": "9f2c…",
    "variant": "onnxruntime-fp32",
    "variants": ["onnxruntime-fp32", "python-int8"],
    "dice_gate": "passed",
}
JOB: dict[str, Any] = {
    "id": JOB_ID,
    "status": "running",
    "model": "ct-abdomen",
    "version": "1",
    "priority": "interactive",
    "progress": {"done": 12, "total": 75, "seconds_left": 9.5},
    "plan": {"windows": 75, "bytes": 402653184, "seconds": 11.25},
    "created": "2026-01-02T03:04:05.000+00:00",
    "started": "2026-01-02T03:04:06.250+00:00",
    "ended": None,
    "attempts": 1,
    "error": None,
    "result": None,
    "report": None,
}
REPORT: dict[str, Any] = {
    "model": "ct-abdomen",
    "version": 1,
    "digest": "9f2c…",
    "variant": "onnxruntime-fp32",
    "precision": "f32",
    "labels": [{"name": "liver", "id": 1, "voxels": 1542117, "ml": 1480.432}],
    "timings": {"read": 0.41, "network": 9.8, "restore": 0.35, "write": 0.22, "total": 11.9},
    "windows": 75,
    "planned_bytes": 402653184,
    "planned_seconds": 11.25,
}

Name = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class HealthModel(_Body):
    """The gateway lives."""

    model_config = ConfigDict(json_schema_extra={"example": {"ok": True}})
    ok: bool


class ReadyModel(_Body):
    """The gateway can work."""

    model_config = ConfigDict(json_schema_extra={"example": {"ready": True}})
    ready: bool


class LabelModel(_Body):
    """One label of a model."""

    name: str
    id: int
    color: tuple[int, int, int] | None = None


class ModelModel(_Body):
    """One version of a model: the variant that is served, all that it has, and whether a Dice gate passed it."""

    model_config = ConfigDict(json_schema_extra={"example": MODEL})
    name: str
    version: str
    title: str
    task: str
    channels: list[str]
    labels: list[LabelModel]
    digest: str
    variant: str = ""
    variants: list[str] = []
    dice_gate: Literal["passed", "on-training-cases", "compared", "skipped"] | None = None


class ModelWithManifest(ModelModel):
    """One version of a model with its whole manifest."""

    manifest: dict[str, Any]


class ModelList(_Body):
    """All models that can be served; ``broken`` names those that were refused, and why."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"models": [MODEL], "default": "ct-abdomen", "broken": {"mr-brain": "config.pbtxt is empty."}}
        }
    )
    models: list[ModelModel]
    default: str | None
    broken: dict[str, str]


class VolumeModel(_Body):
    """A stored volume."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": VOLUME_ID,
                "kind": "nifti",
                "shape": [512, 512, 300],
                "spacing": [0.8, 0.8, 1.5],
                "orientation": "LPS",
                "dtype": "int16",
                "channels": 1,
                "bytes": 78643552,
                "sha256": "5d41…",
            }
        }
    )
    id: str
    kind: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    orientation: str
    dtype: str
    channels: int
    bytes: int
    sha256: str


class Options(_Body):
    """How a job is done."""

    priority: Literal["interactive", "batch"] | None = None


class SegmentRequest(_Body):
    """What to segment with which model."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"image": VOLUME_ID},
                {"model": "mr-brain", "image": {"T1": VOLUME_ID, "T2": "a" * 32}, "options": {"priority": "batch"}},
            ]
        },
    )
    model: Name | None = None
    version: Name | None = None
    image: Name | Annotated[dict[Name, Name], Field(min_length=1, max_length=64)]
    options: Options = Options()


class ProgressModel(_Body):
    """Windows done, all windows, seconds left where known."""

    done: int
    total: int
    seconds_left: float | None


class ErrorModel(_Body):
    """Why a job failed."""

    code: str
    detail: str


class ResultModel(_Body):
    """The mask's SHA-256 and size."""

    sha256: str
    bytes: int


class PlanModel(_Body):
    """What a job costs, told before its first window: windows, peak memory in bytes, network seconds where known."""

    windows: int
    bytes: int
    seconds: float | None


class JobModel(_Body):
    """One job."""

    model_config = ConfigDict(json_schema_extra={"example": JOB})
    id: str
    status: Status
    model: str
    version: str
    priority: Literal["interactive", "batch"]
    progress: ProgressModel
    plan: PlanModel | None
    created: str
    started: str | None
    ended: str | None
    attempts: int
    error: ErrorModel | None
    result: ResultModel | None
    report: dict[str, Any] | None


class JobList(_Body):
    """Jobs, the newest first."""

    model_config = ConfigDict(json_schema_extra={"example": {"jobs": [JOB]}})
    jobs: list[JobModel]


class LabelStatisticsModel(BaseModel):
    """One label of a mask: how much of it there is, and where; voxel indices along i, j, k, millimetres LPS."""

    model_config = ConfigDict(extra="allow")
    name: str
    id: int
    voxels: int
    ml: float


class StatisticsModel(BaseModel):
    """The report of a finished job; timings in seconds, the network's beside the others'."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"example": REPORT})
    model: str
    version: int
    digest: str
    variant: str = ""
    precision: str
    labels: list[LabelStatisticsModel]
    timings: dict[str, float]
    windows: int
    planned_bytes: int
    planned_seconds: float | None = None


class ProblemModel(BaseModel):
    """RFC 9457 problem."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "type": "urn:hilum:problem:unreadable_volume",
                "title": "Unprocessable Content",
                "status": 422,
                "detail": "The NIfTI header asks for 157 MB of voxels, the file holds 12 MB; send the whole file.",
                "code": "unreadable_volume",
            }
        }
    )
    type: str
    title: str
    status: int
    detail: str
    code: str


def public_job(job: Job, progress: Progress) -> dict[str, Any]:
    """A job as the API shows it."""
    done = {"done": progress.done, "total": progress.total, "seconds_left": progress.seconds_left}
    return {
        "id": job.id,
        "status": job.status,
        "model": job.model,
        "version": job.version,
        "priority": job.priority,
        "progress": done,
        "plan": progress.plan,
        "created": _iso(job.created),
        "started": _iso(job.started),
        "ended": _iso(job.ended),
        "attempts": job.attempts,
        "error": {"code": job.error["code"], "detail": job.error["detail"]} if job.error else None,
        "result": job.result,
        "report": job.report,
    }


def _iso(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="milliseconds")
