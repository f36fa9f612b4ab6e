"""Sound deflate streams of every length near a piece's, by igzip where it is installed and by zlib."""

from __future__ import annotations

import gzip
import importlib.util
import sys
import zlib
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from hilum_inference.gate import inflate


def _by_zlib(patch: pytest.MonkeyPatch) -> ModuleType:
    patch.setitem(sys.modules, "isal", None)
    spec = importlib.util.spec_from_file_location("inflate_by_zlib", inflate.__file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["as installed", "zlib"])
def module(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return inflate if request.param == "as installed" else _by_zlib(monkeypatch)


def _samples() -> list[bytes]:
    """Random, poor and empty voxels, of lengths around one, two and three pieces."""
    rng = np.random.default_rng(7)
    found = []
    for number in range(45):
        size = inflate.PIECE * (1 + number % 3) + int(rng.integers(-300, 300))
        values = (256, 4, 1)[number // 3 % 3]
        found.append(rng.integers(0, values, size, np.uint8).tobytes())
    return found


def _fed(stream: Any, data: bytes, chunk: int) -> bytes:
    pieces = [piece for at in range(0, len(data), chunk) for piece in stream.feed(data[at : at + chunk])]
    assert stream.complete
    assert max(map(len, pieces)) <= inflate.PIECE
    return b"".join(pieces)


def test_raw_streams_come_out_whole(module: ModuleType) -> None:
    for number, data in enumerate(_samples()):
        packer = zlib.compressobj((1, 6)[number % 2], zlib.DEFLATED, -15)
        packed = packer.compress(data) + packer.flush()
        assert _fed(module.RawInflater(), packed, inflate.PIECE) == data


def test_gzip_streams_come_out_whole(module: ModuleType) -> None:
    for data in _samples()[:12]:
        packed = gzip.compress(data, 1, mtime=0)
        assert _fed(module.GzipStream(), packed * 2, inflate.PIECE) == data * 2


def test_a_stream_cut_short_is_not_complete(module: ModuleType) -> None:
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    packed = packer.compress(bytes(3_000_000)) + packer.flush()
    stream = module.RawInflater()
    assert sum(map(len, stream.feed(packed[:-1]))) <= 3_000_000
    assert not stream.complete
