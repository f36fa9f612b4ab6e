"""Architectures as the command line names them: a file, or a name."""

from __future__ import annotations

from pathlib import Path

from hilum_search.architecture import NAMED, Architecture, parse_architecture
from hilum_search.errors import ArchitectureError


def read_architecture(name: str) -> Architecture:
    """The architecture in a JSON file or a run's folder, or the one of that name.

    Raises:
        ArchitectureError: no such file and no such name; a file that holds no architecture.
    """
    path = Path(name)
    if path.is_dir():
        path = path / "architecture.json"
    if path.is_file():
        return parse_architecture(path.read_bytes())
    if name in NAMED:
        return NAMED[name]
    raise ArchitectureError(f"There is no architecture {name!r}; give a JSON file or one of: {', '.join(NAMED)}.")
