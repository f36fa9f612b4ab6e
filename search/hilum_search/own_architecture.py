"""A network that its author builds in Python: all that a recipe can say of it."""

from __future__ import annotations

from dataclasses import dataclass

from hilum_search.errors import ArchitectureError


@dataclass(frozen=True)
class OwnNetwork:
    """A network of the caller's own; it is handed to ``train``, ``read_trained`` and ``export`` and never built here.

    Attributes:
        name: what the record calls it.
        stride: every side of a window must be a multiple of this many voxels.

    Raises:
        ArchitectureError: a stride below 1.
    """

    name: str
    stride: int = 1

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise ArchitectureError(f"stride is {self.stride}; it must be at least 1.")

    @property
    def family(self) -> str:
        """Name of the family in JSON."""
        return "own"
