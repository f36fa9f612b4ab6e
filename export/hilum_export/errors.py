"""What can go wrong while a trained network is exported.

HilumError
└── ExportError
    └── GateError   the exported file does not compute what the network computes; nothing was published
"""

from __future__ import annotations

from hilum_inference.errors import HilumError


class ExportError(HilumError):
    """Base of the errors of export."""

    code = "export_failed"


class GateError(ExportError):
    """The exported file failed a check."""

    code = "export_gate"
