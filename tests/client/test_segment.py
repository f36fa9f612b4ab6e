from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hilum_client.answers import ModelInfo, Result
from hilum_client.backend import Where
from hilum_client.cli import main
from hilum_client.errors import ConnectError, InputError, JobFailed
from hilum_client.segment import plan, stem, target

if TYPE_CHECKING:
    from collections.abc import Iterator


class Fake:
    """A back-end that writes what it was asked for into the mask."""

    def __init__(self) -> None:
        self.where: Where | None = None
        self.calls: list[tuple[Any, str | None]] = []

    def models(self) -> list[ModelInfo]:
        return [ModelInfo("demo", "1", digest="d")]

    def segment(self, image: Any, *, model: str | None, out: Path, progress: Any) -> Result:
        self.calls.append((image, model))
        progress(1, 1)
        out.write_text("mask")
        return Result("demo", "1", [{"name": "liver", "id": 1, "voxels": 1234567, "ml": 61.7}], {"total": 0.5})

    @contextmanager
    def open(self, where: Where, _user: str) -> Iterator[Fake]:
        self.where = where
        yield self


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    backend = Fake()
    monkeypatch.setattr("hilum_client.segment.open_backend", backend.open)
    return backend


def test_one_file(fake: Fake, volume_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mask.nii.gz"
    words = ["segment", str(volume_file), "-o", str(out), "--model", "demo", "--server", "http://x", "--key", "k"]
    assert main(words) == 0
    assert out.read_text() == "mask"
    assert fake.where == Where("http://x", "k")
    assert fake.calls == [(volume_file, "demo")]
    shown = capsys.readouterr().out
    assert "liver" in shown and "61.7" in shown and "1,234,567" in shown and "volume, ml" in shown


def test_several_files_go_into_a_folder(fake: Fake, volume_file: Path, tmp_path: Path) -> None:
    other = volume_file.with_name("other.nii")
    other.write_bytes(volume_file.read_bytes())
    assert main(["segment", str(volume_file), str(other), "-o", str(tmp_path / "new" / "masks")]) == 0
    names = sorted(path.name for path in (tmp_path / "new" / "masks").iterdir())
    assert names == ["case-mask.nii.gz", "other-mask.nii.gz"]
    assert fake.where == Where()


def test_links_of_patients_onto_files_of_one_name(fake: Fake, volume_file: Path, tmp_path: Path) -> None:
    links = [tmp_path / "anna.nii", tmp_path / "berta.nii"]
    for link in links:
        link.symlink_to(volume_file)
    out = tmp_path / "masks"
    assert main(["segment", *map(str, links), "-o", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["anna-mask.nii.gz", "berta-mask.nii.gz"]
    assert stem(tmp_path / "anna.nii") == "anna"


def test_of_several_inputs_the_broken_one_is_named(
    fake: Fake, volume_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any, **__: Any) -> Result:
        raise error

    other, out = volume_file.with_name("other.nii"), tmp_path / "masks"
    other.write_bytes(b"")
    out.mkdir()
    monkeypatch.setattr(fake, "segment", broken)
    error: Exception = JobFailed("The file is cut short.", code="cut_short")
    assert main(["segment", str(volume_file), str(other), "-o", str(out)]) == 1
    assert capsys.readouterr().err.endswith(f"hilum: {volume_file}: The file is cut short.\n")
    assert main(["segment", str(volume_file), "-o", str(out)]) == 1
    assert capsys.readouterr().err.endswith("hilum: The file is cut short.\n")
    error = ConnectError("No server.")
    assert main(["segment", str(volume_file), str(other), "-o", str(out)]) == 1
    assert capsys.readouterr().err.endswith("hilum: No server.\n"), "no fault of a file"


def test_channels_are_one_case(fake: Fake, volume_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "mask.nrrd"
    words = ["segment", "--channel", f"T1={volume_file}", "--channel", f"T2={volume_file}", "-o", str(out)]
    assert main(words) == 0
    assert fake.calls == [({"T1": volume_file, "T2": volume_file}, None)]


def test_a_mask_is_not_overwritten_without_force(
    fake: Fake, volume_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mask.nii.gz"
    out.write_text("old")
    assert main(["segment", str(volume_file), "-o", str(out)]) == 1
    assert "is there already; --force overwrites it" in capsys.readouterr().err
    assert out.read_text() == "old" and not fake.calls
    assert main(["segment", str(volume_file), "-o", str(out), "--force"]) == 0
    assert out.read_text() == "mask"


def test_what_is_refused_before_anything_starts(volume_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "mask.nii.gz"
    twin = tmp_path / "sub" / "case.nii"
    twin.parent.mkdir()
    twin.write_bytes(b"")
    refused: list[tuple[list[Path], list[str], Path, str]] = [
        ([], [], out, "Nothing to segment"),
        ([tmp_path / "none.nii"], [], out, "There is no file or folder"),
        ([volume_file], ["a=b"], out, "either as arguments"),
        ([], ["T1"], out, "takes name=path"),
        ([], [f"a={volume_file}", f"a={volume_file}"], out, "each name once"),
        ([volume_file], [], Path(), "Say where the mask goes"),
        ([volume_file], [], tmp_path / "mask.png", "must end in"),
        ([volume_file, twin], [], out, "need a folder"),
        ([volume_file, twin], [], tmp_path, "Two inputs would write"),
        ([volume_file], [], volume_file, "is the input itself"),
        ([volume_file, twin], [], volume_file.with_name("case.txt"), "is a file"),
    ]
    volume_file.with_name("case.txt").write_text("")
    for inputs, channels, where, sentence in refused:
        with pytest.raises(InputError, match=sentence):
            plan(inputs, channels, where, force=True)


def test_names_of_masks(tmp_path: Path) -> None:
    assert stem(Path("a/b.nii.gz")) == "b"
    assert stem(Path("a/b.c.NRRD")) == "b.c"
    assert stem(tmp_path) == tmp_path.name
    assert target(Path("x.zip"), tmp_path, several=False) == tmp_path / "x-mask.nii.gz"
    assert target(Path("x.zip"), tmp_path / "y.nrrd", several=False) == tmp_path / "y.nrrd"
