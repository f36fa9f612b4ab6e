"""The intake: verdicts do not depend on how the bytes are cut, nothing is left behind, memory stays flat."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hilum_inference.errors import InputError
from hilum_inference.gate import Intake, Limits, Stored
from hilum_inference.io import read_volume, write_volume
from hilum_inference.volume import Volume

ARRAY = np.random.default_rng(0).integers(-1000, 1000, (6, 7, 8)).astype(np.int16)


def _file(folder: Path, name: str = "in.nii") -> bytes:
    path = folder / name
    write_volume(path, Volume.from_array(ARRAY))
    data = path.read_bytes()
    path.unlink()
    return data


def _take(folder: Path, data: bytes, cuts: list[int] | None = None, limits: Limits | None = None) -> Stored:
    intake = Intake(folder, limits or Limits())
    ends = [0, *sorted({cut % (len(data) + 1) for cut in cuts or []}), len(data)]
    for start, end in itertools.pairwise(ends):
        intake.feed(data[start:end])
    return intake.finish()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 2000), max_size=30), name=st.sampled_from(["in.nii", "in.nii.gz"]))
def test_cuts_do_not_matter(cuts: list[int], name: str, tmp_path: Path) -> None:
    data = _file(tmp_path, name)
    stored = _take(tmp_path, data, cuts)
    assert (stored.kind, stored.bytes, stored.sha256) == ("nifti", len(data), hashlib.sha256(data).hexdigest())
    assert stored.path.read_bytes() == _file(tmp_path)  # inflated, without anything else
    assert np.array_equal(read_volume(stored.path).array[0], ARRAY)


def test_inflates_tells_who_needs_a_thread(tmp_path: Path) -> None:
    for name, expected in (("in.nii", False), ("in.nii.gz", True)):
        intake = Intake(tmp_path, Limits())
        intake.feed(_file(tmp_path, name)[:100])
        assert intake.inflates is expected
        intake.abort()
    assert list(tmp_path.iterdir()) == []


def test_abort_leaves_nothing_and_may_be_repeated(tmp_path: Path) -> None:
    intake = Intake(tmp_path, Limits())
    intake.abort()
    intake.feed(_file(tmp_path))
    assert len(list(tmp_path.iterdir())) == 1
    intake.abort()
    intake.abort()
    assert list(tmp_path.iterdir()) == []


def test_aborting_a_finished_upload_keeps_it(tmp_path: Path) -> None:
    intake = Intake(tmp_path, Limits())
    intake.feed(_file(tmp_path))
    stored = intake.finish()
    intake.abort()
    assert list(tmp_path.iterdir()) == [stored.path]


def test_the_verdict_comes_with_the_header(tmp_path: Path) -> None:
    data = bytearray(_file(tmp_path))
    data[42:44] = (30000).to_bytes(2, "little")  # dim[1]
    intake = Intake(tmp_path, Limits())
    intake.feed(bytes(data[:347]))
    with pytest.raises(InputError):
        intake.feed(bytes(data[347:348]))
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        _take(tmp_path, _file(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pack", [bytes, lambda data: gzip.compress(data, 1)])
def test_memory_stays_flat(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    write_volume(tmp_path / "in.nii", Volume.from_array(np.zeros((256, 256, 256), np.int16)))
    plain = (tmp_path / "in.nii").read_bytes()
    data = pack(plain)
    intake = Intake(tmp_path, Limits())
    process = psutil.Process(os.getpid())
    before = most = process.memory_info().rss
    for at in range(0, len(data), 1 << 16):
        intake.feed(data[at : at + (1 << 16)])
        most = max(most, process.memory_info().rss)
    assert intake.finish().path.stat().st_size == len(plain)
    assert most - before < 8 << 20


def test_limits_are_checked_by_the_header(tmp_path: Path) -> None:
    data = _file(tmp_path)
    for limits, code in (
        (Limits(max_voxels=335), "too_many_voxels"),
        (Limits(max_stored_bytes=671), "too_many_voxels"),
        (Limits(max_dimension=7), "too_many_voxels"),
        (Limits(trailing_bytes=0), None),
    ):
        try:
            _take(tmp_path, data, limits=limits)
            assert code is None
        except InputError as error:
            assert error.code == code
    with pytest.raises(InputError) as refusal:
        _take(tmp_path, data + b"x", limits=Limits(trailing_bytes=0))
    assert refusal.value.code == "size_mismatch"
