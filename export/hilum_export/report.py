"""The report beside a published network: which checks its files passed, on what, made with what."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from hilum_export.checks import Checked
    from hilum_export.held_out import Kept

NAME = "gates.json"
FORMAT = "hilum.gates/2"
LIBRARIES: Final = (
    "hilum",
    "onnx",
    "onnxconverter-common",
    "onnxruntime",
    "openvino",
    "nncf",
    "tensorrt-rtx-cu12",
    "torch",
)


def report(files: Sequence[Checked], passed: bool, kept: Kept | None = None) -> bytes:
    """JSON of all checks of a version's files, published or withheld.

    Args:
        files: FP32 first.
        passed: the verdict; an export's is FP32's, since what else failed is not published.
        kept: the cases that decided; None where none did.
    """
    content = {
        "format": FORMAT,
        "passed": passed,
        "networks": {file.name: _told(file) for file in files},
        "cases": None if kept is None else {"part": kept.part, "names": [one.what.name for one in kept.cases]},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": platform.machine(),
        "software": _software(),
    }
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


def _told(file: Checked) -> dict[str, Any]:
    return {
        "file": file.path.name,
        "sha256": file.sha256,
        "bytes": file.path.stat().st_size,
        "passed": file.passed,
        "gates": [gate.fields() for gate in file.gates],
        "first_difference": file.why or None,
        "skipped": list(file.skipped),
        "audit": file.audit,
    }


def _software() -> dict[str, str]:
    """Versions of what the checks were made with; what is not installed is not named."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
