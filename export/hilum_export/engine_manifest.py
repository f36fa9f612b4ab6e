"""What a TensorRT plan was built from, with what and for what: ``<plan>.json`` beside it.

A plan is not part of a signed publication: it is built later, on another machine. This record ties it to the network
that was published, and to the GPU and the TensorRT that can run it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter

from hilum_export.errors import EngineBuildError
from hilum_export.gpu import Gpu
from hilum_export.precision import Wire
from hilum_export.repository import Profile
from hilum_inference.files import write_atomically

FORMAT: Final = "hilum.engine/1"
AMPERE: Final = (8, 0)
AGAIN: Final = "build it again here with hilum build-engine"


@dataclass(frozen=True)
class EngineManifest:
    """Of one plan.

    Attributes:
        onnx, onnx_sha256: the network's file and its digest.
        plan_sha256: of the plan.
        tensorrt: version that built it.
        gpu: that it was built on.
        profile: batches that it takes.
        window: channels, depth, height, width.
        flags: TensorRT's names of what was switched on.
        compatibility: which other GPUs may run it: ``none``, ``ampere+``, ``same-cc``.
        version_compatible: whether later versions of TensorRT may run it.
        created: when, in UTC.
        wire: what it takes and gives; older records do not say, and their plans have FP32.
    """

    onnx: str
    onnx_sha256: str
    plan_sha256: str
    tensorrt: str
    gpu: Gpu
    profile: Profile
    window: tuple[int, int, int, int]
    flags: tuple[str, ...]
    compatibility: str
    version_compatible: bool
    created: str
    wire: Wire = "fp32"

    def to_json(self) -> bytes:
        """As it is written."""
        return (json.dumps({"format": FORMAT} | asdict(self), indent=1) + "\n").encode()


@dataclass(frozen=True)
class Here:
    """What would run a plan: the version of TensorRT, and the GPU."""

    tensorrt: str
    gpu: Gpu


def manifest_file(plan: Path) -> Path:
    """Where the record of a plan lies."""
    return plan.with_name(f"{plan.name}.json")


def write_manifest(plan: Path, manifest: EngineManifest) -> None:
    """Write the record of a plan beside it."""
    write_atomically(manifest_file(plan), manifest.to_json())


def read_manifest(plan: Path) -> EngineManifest:
    """The record of a plan.

    Raises:
        EngineBuildError: none there, or none of this format.
    """
    path = manifest_file(plan)
    try:
        fields: dict[str, Any] = json.loads(path.read_bytes())
        if fields.pop("format") != FORMAT:
            raise ValueError("another format")
        return TypeAdapter(EngineManifest).validate_python(fields)
    except FileNotFoundError as error:
        raise EngineBuildError(f"{plan.name} has no record {path.name}: nobody knows what it is; {AGAIN}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineBuildError(f"{path.name} is no record of a plan in the format {FORMAT}; {AGAIN}.") from error


def check_engine(plan: Path, onnx: Path, here: Here | None = None) -> EngineManifest:
    """Refuse a plan of another network, TensorRT or GPU.

    Args:
        plan: with its record beside it.
        onnx: the network that it must have been built from.
        here: what is to run it; None: only the files are looked at.

    Returns:
        The plan's record.

    Raises:
        EngineBuildError: it must not be used, and why.
    """
    if not plan.is_file():
        raise EngineBuildError(f"There is no plan {plan.name}; {AGAIN}.")
    manifest = read_manifest(plan)
    if digest(plan) != manifest.plan_sha256:
        raise EngineBuildError(f"{plan.name} was changed since it was built; {AGAIN}.")
    if digest(onnx) != manifest.onnx_sha256:
        raise EngineBuildError(f"{plan.name} was built from another network than {onnx.name}; {AGAIN}.")
    if here is not None:
        _check_tensorrt(plan, manifest, here.tensorrt)
        _check_gpu(plan, manifest, here.gpu)
    return manifest


def _check_tensorrt(plan: Path, manifest: EngineManifest, version: str) -> None:
    """Another major version is refused, and another version, too, unless the plan was built for later ones."""
    built, now = _numbers(manifest.tensorrt), _numbers(version)
    fits = built[0] == now[0] and now >= built if manifest.version_compatible else built == now
    if not fits:
        raise EngineBuildError(f"{plan.name} was built with TensorRT {manifest.tensorrt}, here is {version}; {AGAIN}.")


def _check_gpu(plan: Path, manifest: EngineManifest, gpu: Gpu) -> None:
    built = manifest.gpu
    capability = tuple(_numbers(gpu.capability))
    fits = {
        "none": (built.name, built.capability) == (gpu.name, gpu.capability),
        "same-cc": built.capability == gpu.capability,
        "ampere+": capability >= AMPERE,
    }
    if not fits.get(manifest.compatibility, False):
        was, now = (f"{each.name} ({each.capability})" for each in (built, gpu))
        raise EngineBuildError(f"{plan.name} was built for {was}, here is {now}; {AGAIN}.")


def _numbers(version: str) -> list[int]:
    """Of a version: what it says before any letters."""
    found = []
    for part in version.split("."):
        if not part.isdecimal():
            break
        found.append(int(part))
    return found or [-1]


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def now() -> str:
    """The time, as records have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
