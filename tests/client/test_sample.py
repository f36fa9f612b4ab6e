from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from hilum_client import sample
from hilum_client.errors import SampleError
from hilum_client.nifti import read
from hilum_client.sample import ARCHIVE, LICENSE, MEMBERS, Sample, default_folder, fetch_sample
from hilum_client.scores import REFERENCE_IDS

FILES = {"example_ct.nii.gz": b"ct", "example_ct_dicom/CT.1": b"slice", LICENSE: b"licence"}


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small archive of the right shape, with members that are not wanted."""
    path = tmp_path / "made.tar.gz"
    root = ARCHIVE.removesuffix(".tar.gz")
    with tarfile.open(path, "w:gz") as tar:
        for name, data in [*FILES.items(), ("../../evil", b"evil"), ("other.nii.gz", b"other")]:
            place = name if name == LICENSE else f"tests/reference_files/{name}"
            member = tarfile.TarInfo(f"{root}/{place}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    monkeypatch.setattr(sample, "MEMBERS", {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()})
    monkeypatch.setattr(sample, "ARCHIVE_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def pip(archive: Path | None, calls: list[list[str]]) -> Any:
    def run(command: list[str], cwd: Path, **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        if archive is None:
            text = "WARNING: x\nERROR: Could not find a version\nERROR: No matching distribution found.\n\n[notice] y"
            return subprocess.CompletedProcess(command, 1, "", text)
        assert list(Path(cwd).iterdir()) == [], "the folder must be empty"
        (Path(cwd) / ARCHIVE).write_bytes(archive.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    return run


def test_fetched_once_then_offline(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr("subprocess.run", pip(archive, calls))
    folder = tmp_path / "samples"
    assert fetch_sample(folder) == Sample(folder)
    assert {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == FILES
    assert calls[0][1:4] == ["-m", "pip", "download"] and calls[0][-1] == "totalsegmentator==2.18.0"
    fetch_sample(folder)
    assert len(calls) == 1
    (folder / "example_ct.nii.gz").write_bytes(b"changed")
    fetch_sample(folder)
    assert len(calls) == 2 and (folder / "example_ct.nii.gz").read_bytes() == b"ct"


def test_an_archive_put_there_by_hand_is_used(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.run", pip(None, []))
    folder = tmp_path / "samples"
    folder.mkdir()
    (folder / ARCHIVE).write_bytes(archive.read_bytes())
    assert fetch_sample(folder).licence.read_bytes() == b"licence"


def test_failures_are_one_sentence_and_leave_nothing(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "samples"
    monkeypatch.setattr("subprocess.run", pip(None, []))
    with pytest.raises(
        SampleError, match=r"could not be fetched \(No matching distribution found\)\. It is needed once"
    ):
        fetch_sample(folder)
    other = tmp_path / "other.tar.gz"
    other.write_bytes(archive.read_bytes() + b"x")
    monkeypatch.setattr("subprocess.run", pip(other, []))
    with pytest.raises(SampleError, match="not the archive that is expected"):
        fetch_sample(folder)
    monkeypatch.setattr("subprocess.run", pip(archive, []))
    monkeypatch.setitem(sample.MEMBERS, "example_ct.nii.gz", "0" * 64)
    with pytest.raises(SampleError, match=r"example_ct\.nii\.gz in .* is not what is expected"):
        fetch_sample(folder)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(SampleError, match="needs pip and setuptools and wheel"):
        fetch_sample(folder)
    assert not list(folder.rglob("*"))


def test_where_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_folder().name == "samples"
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "hilum"\n')
    assert default_folder() == Path(".samples")


def test_the_table_of_members_is_whole() -> None:
    assert len(MEMBERS) == 24 and all(len(digest) == 64 for digest in MEMBERS.values())
    assert sum(name.startswith("example_ct_dicom/") for name in MEMBERS) == 20
    assert not any(name.startswith(("/", "..")) for name in MEMBERS)


@pytest.mark.sample
def test_the_real_sample_is_what_its_documentation_says() -> None:
    root = Path(__file__).parents[2] / ".samples"
    try:
        real = fetch_sample(root)
    except SampleError as error:
        pytest.skip(f"the real CT sample is not there: {error.message}")
    image, labels = read(real.ct), read(real.series_labels)
    assert image.array.shape == (122, 101, 112)
    assert labels.array.shape == (512, 512, 20)
    volumes = {
        name: sum(int((labels.array == one).sum()) for one in ids) * labels.voxel_ml
        for name, ids in REFERENCE_IDS.items()
    }
    assert volumes["liver"] == pytest.approx(699, abs=1) and volumes["spleen"] == pytest.approx(249, abs=1)
    assert len(list(real.series.iterdir())) == 20
