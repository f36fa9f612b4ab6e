"""OpenVINO, imported so that it tells nobody about the models it reads."""

from __future__ import annotations

import sys
from typing import Any


def openvino() -> Any:
    """The ``openvino`` module.

    Its wheel depends on ``openvino_telemetry``, which forks the process and sends a request to its maker each time a
    network is read, unless the user once opted out. Nothing may leave a hospital's machine unasked: its import is made
    to fail, and OpenVINO then uses a stub of its own.
    """
    blocked: dict[str, Any] = {"openvino_telemetry": None}
    sys.modules.update(blocked)
    import openvino as module

    return module
