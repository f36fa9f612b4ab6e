"""Hostile input, before anything else sees it: checked while its bytes arrive, decoded in a caged child."""

from hilum_inference.gate.cage import Cage, Decoded
from hilum_inference.gate.intake import Intake, Stored
from hilum_inference.gate.limits import Limits

__all__ = ["Cage", "Decoded", "Intake", "Limits", "Stored"]
