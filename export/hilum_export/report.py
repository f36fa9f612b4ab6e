"""The report beside a published network: which checks it passed, on what, made with what."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from hilum_export.gates import Gate

NAME = "gates.json"
FORMAT = "hilum.gates/1"
LIBRARIES = ("hilum", "onnx", "onnxruntime", "openvino", "torch")


def report(gates: Sequence[Gate], audit: Mapping[str, Any], network_sha256: str, why: str = "") -> bytes:
    """JSON of all checks of one file.

    Args:
        gates: passed and failed ones.
        audit: what the file is made of.
        network_sha256: of the file.
        why: where it first differs, if it does.
    """
    content = {
        "format": FORMAT,
        "network_sha256": network_sha256,
        "passed": all(gate.passed for gate in gates),
        "gates": [gate.fields() for gate in gates],
        "first_difference": why or None,
        "audit": dict(audit),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": platform.machine(),
        "software": {name: version(name) for name in LIBRARIES},
    }
    return (json.dumps(content, indent=1) + "\n").encode()
