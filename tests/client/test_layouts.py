from __future__ import annotations

import doctest
import gzip
import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hilum_client import layouts
from hilum_client.answers import ModelInfo, Result
from hilum_client.cli import main
from hilum_client.errors import InputError, JobFailed
from hilum_client.layouts import check_labels, find_cases, find_task, named

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A task of the Decathlon with three test cases, one of which is not there."""
    root = tmp_path / "Task07_Pancreas"
    (root / "imagesTs").mkdir(parents=True)
    for name in ("pancreas_001", "pancreas_042", "extra"):
        (root / "imagesTs" / f"{name}.nii.gz").write_text(name)
    (root / "imagesTs" / "._pancreas_001.nii.gz").write_text("of a file system")
    tests = [f"./imagesTs/pancreas_{number}.nii.gz" for number in ("001", "042", "099")]
    (root / "dataset.json").write_text(json.dumps({"name": "Pancreas", "test": tests}))
    return root


def test_finds_volumes_and_series(tmp_path: Path) -> None:
    (tmp_path / "deep" / "series").mkdir(parents=True)
    for name in ("a.nii.gz", "b.nii", "deep/c.nrrd", "notes.txt", ".hidden.nii"):
        (tmp_path / name).write_text(name)
    (tmp_path / "deep" / "series" / "1").write_bytes(b"\0" * 128 + b"DICM1")
    cases = find_cases(tmp_path, tmp_path / "out")
    assert [case.name for case in cases] == ["a.nii.gz", "b.nii", "deep/c.nrrd", "deep/series"]
    assert [case.mask.as_posix() for case in cases] == [
        "a-mask.nii.gz",
        "b-mask.nii.gz",
        "deep/c-mask.nii.gz",
        "deep/series-mask.nii.gz",
    ]


def test_equal_stems_keep_their_suffix_and_masks_inside_are_no_inputs(tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    for name in ("a.nii.gz", "a.nrrd", "masks/a-mask.nii.gz"):
        (tmp_path / name).write_text(name)
    names = [case.mask.as_posix() for case in find_cases(tmp_path, masks, "nrrd")]
    assert names == ["a.nii.gz-mask.nrrd", "a.nrrd-mask.nrrd"]


def test_nothing_to_do_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no folder"):
        find_cases(tmp_path / "none", tmp_path)
    with pytest.raises(InputError, match="holds no volumes"):
        find_cases(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("inside", ["", "imagesTs"])
def test_a_task_of_the_decathlon(task: Path, tmp_path: Path, inside: str) -> None:
    found = find_task(task / inside)
    assert found.name == "Task07_Pancreas"
    assert [case.path.name for case in found.cases] == ["pancreas_001.nii.gz", "pancreas_042.nii.gz"]
    names = [f"Task07_Pancreas/pancreas_{number}.nii.gz" for number in ("001", "042", "099")]
    assert [mask.as_posix() for mask in found.expected] == names
    assert "0 of 3 test cases, the first missing is pancreas_001.nii.gz" in found.verdict(tmp_path / "out")
    for name in names:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text("mask")
    assert found.first_missing(tmp_path / "out") is None
    assert "is complete: 3 of 3 test cases; the folder can be zipped" in found.verdict(tmp_path / "out")


def test_a_task_named_by_dots_keeps_its_name(task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(task / "imagesTs")
    assert find_task(Path("..")).name == "Task07_Pancreas"


@pytest.mark.parametrize("listed", [True, False])
def test_channels_of_nnunet_are_one_case(tmp_path: Path, listed: bool) -> None:
    images = tmp_path / "Dataset001_Brain" / "imagesTs"
    images.mkdir(parents=True)
    for name in ("b_1_0001", "b_1_0000", "b_2_0000", "b_2_0001"):
        (images / f"{name}.nii.gz").write_text(name)
    tests = ["./imagesTs/b_1.nii.gz", "./imagesTs/b_2.nii.gz"]
    listing: dict[str, Any] = {"test": tests} if listed else {"channel_names": {"0": "t1", "1": "t2"}}
    (tmp_path / "Dataset001_Brain" / "dataset.json").write_text(json.dumps(listing))
    first, second = find_task(images).cases
    assert first.source == (images / "b_1_0000.nii.gz", images / "b_1_0001.nii.gz")
    assert second.mask == Path("Dataset001_Brain/b_2.nii.gz")
    assert named(first.source, ("t1", "t2")) == {"t1": images / "b_1_0000.nii.gz", "t2": images / "b_1_0001.nii.gz"}
    assert named(images, ("t1",)) == images
    with pytest.raises(InputError, match="2 files, one a channel; the model has 1: ct"):
        named(first.source, ("ct",))


def test_a_folder_that_is_no_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"There is no dataset\.json"):
        find_task(tmp_path)
    for text, sentence in (("{", "is not valid JSON"), ("[]", "must hold an object"), ("{}", "holds no test image")):
        (tmp_path / "dataset.json").write_text(text)
        with pytest.raises(InputError, match=sentence):
            find_task(tmp_path)


def test_labels_must_fit_in_a_byte() -> None:
    check_labels("net", {"liver": 255})
    with pytest.raises(InputError, match="net has a label with id 256; predictions of --layout msd are uint8"):
        check_labels("net", {"liver": 1, "tumour": 256})


def test_the_command(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Backend:
        def models(self) -> list[ModelInfo]:
            return [ModelInfo("net", "1", channels=("ct",), labels={"pancreas": 1}, digest="d")]

        def segment(self, image: Any, *, model: str, out: Path, progress: Any) -> Result:
            if image.read_text() == "bad":
                raise JobFailed("Not a volume.", code="unreadable_volume")
            out.write_bytes(gzip.compress(image.read_bytes()))
            return Result("net", "1", [], {})

    @contextmanager
    def opened(*_: object) -> Iterator[Backend]:
        yield Backend()

    monkeypatch.setattr("hilum_client.batch.open_backend", opened)
    out = tmp_path / "out"
    words = ["batch", str(task), "-o", str(out), "--layout", "msd"]
    assert main(words) == 1, "a test case is missing"
    told = capsys.readouterr().out
    assert "2 segmented, 0 failed." in told
    assert "is not complete: 2 of 3 test cases, the first missing is pancreas_099.nii.gz." in told
    (task / "imagesTs" / "pancreas_099.nii.gz").write_text("late")
    assert main(words) == 0
    assert "is complete: 3 of 3 test cases" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["Task07_Pancreas", "report.csv", "report.json"]
    masks = sorted(path.name for path in (out / "Task07_Pancreas").iterdir())
    assert masks == ["pancreas_001.nii.gz", "pancreas_042.nii.gz", "pancreas_099.nii.gz"]
    (task / "imagesTs" / "pancreas_099.nii.gz").write_text("bad")
    assert main(words) == 1
    assert main([*words[:-1], "tree"]) == 1
    assert "--layout is one of flat, msd; got 'tree'" in capsys.readouterr().err
    assert main([*words, "--format", "nrrd"]) == 1
    assert "--layout msd writes nii.gz alone" in capsys.readouterr().err


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(layouts).failed == 0
