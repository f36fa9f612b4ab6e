"""Shared by the tests of the gate: a folder, one cage for all, and the way through both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hilum_inference.gate import Cage, Decoded, Intake, Limits

Gate = Callable[..., Decoded]


@pytest.fixture(scope="session")
def cage() -> Iterator[Cage]:
    """One fork server for the whole run."""
    cage = Cage()
    yield cage
    cage.close()


@pytest.fixture
def gate(tmp_path: Path, cage: Cage) -> Gate:
    """gate(data, limits=Limits(), step=65536) -> Decoded: fed in steps, finished, decoded in the cage; InputError else.

    Whatever happens, no unfinished file may be left in the folder.
    """

    def through(data: bytes, limits: Limits | None = None, step: int = 1 << 16) -> Decoded:
        limits = limits or Limits()
        intake = Intake(tmp_path, limits)
        try:
            for at in range(0, len(data), step):
                intake.feed(data[at : at + step])
            stored = intake.finish()
            try:
                return cage.decode(stored, tmp_path, limits)
            except BaseException:
                stored.path.unlink()
                raise
        finally:
            assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]

    return through
