"""Everything that can go wrong in the heart, one tree.

HilumError
├── InputError             the caller's fault: the message says what was got, what is allowed, what to do
│   ├── UnreadableError        not a volume that can be read: damaged, truncated, unsupported
│   ├── GeometryError          a grid that cannot be placed in space: singular, sheared, absurd spacing
│   ├── LimitError             larger than a limit of this machine or of the settings
│   └── MismatchError          a sound volume that does not fit the model: channels, grids, dimensions
├── ModelError             the model's fault: manifest or repository refused, with the reason
│   └── UnknownModelError      no model of that name or version
├── EngineError            a back-end failed or answered nonsense; nothing was saved
│   └── OutOfMemoryError       the back-end ran out of memory
└── CancelledError         the caller asked to stop
"""

from __future__ import annotations


class HilumError(Exception):
    """Base of all errors of the heart: a stable ``code`` for programs and one sentence for people."""

    code = "error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code


class InputError(HilumError):
    """The input is at fault."""

    code = "bad_input"


class UnreadableError(InputError):
    """The input is no volume that can be read."""

    code = "unreadable_volume"


class GeometryError(InputError):
    """The input's grid cannot be placed in space."""

    code = "bad_geometry"


class LimitError(InputError):
    """The input is larger than a limit allows."""

    code = "too_large"


class MismatchError(InputError):
    """The input is sound but does not fit the model."""

    code = "model_mismatch"


class ModelError(HilumError):
    """The model is at fault."""

    code = "bad_model"


class UnknownModelError(ModelError):
    """No such model or version."""

    code = "unknown_model"


class EngineError(HilumError):
    """A back-end failed or answered nonsense."""

    code = "engine_failed"


class OutOfMemoryError(EngineError):
    """A back-end ran out of memory."""

    code = "out_of_memory"


class CancelledError(HilumError):
    """The caller asked to stop."""

    code = "cancelled"
