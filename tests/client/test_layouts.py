from __future__ import annotations

import doctest
import gzip
import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hilum_client import layouts
from hilum_client.answers import ModelInfo, Result
from hilum_client.cli import main
from hilum_client.errors import InputError, JobFailed
from hilum_client.layouts import check_labels, find_cases, find_task, named
from hilum_client.payload import dicom_files

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


def test_no_two_cases_share_a_mask(tmp_path: Path) -> None:
    for name in ("x.nii", "x.nii.nii", "x.nrrd", "y.nii.gz"):
        (tmp_path / name).write_text(name)
    names = [case.mask.name.removesuffix("-mask.nii.gz") for case in find_cases(tmp_path, tmp_path / "out")]
    assert names == ["x.nii", "x.nii.nii", "x.nrrd", "y"]


def test_links_go_by_their_own_names(task: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("pancreas_001", "pancreas_042")):
        image = task / "imagesTs" / f"{name}.nii.gz"
        (tmp_path / str(number)).mkdir()
        image.rename(tmp_path / str(number) / "img.nii.gz")
        image.symlink_to(tmp_path / str(number) / "img.nii.gz")
    expected = ["pancreas_001.nii.gz", "pancreas_042.nii.gz", "pancreas_099.nii.gz"]
    assert [mask.name for mask in find_task(task).expected] == expected
    flat = [case.mask.name for case in find_cases(task / "imagesTs", tmp_path / "out")]
    assert flat == ["extra-mask.nii.gz", "pancreas_001-mask.nii.gz", "pancreas_042-mask.nii.gz"]


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    studies, archive = tmp_path / "studies", tmp_path / "archive"
    for folder in (studies / "own", archive / "p1" / "series", archive / "p2"):
        folder.mkdir(parents=True)
    for path in (studies / "own" / "a.nii", archive / "p2" / "ct.nii"):
        path.write_text(path.name)
    (archive / "p1" / "series" / "1").write_bytes(b"\0" * 128 + b"DICM1")
    for link, target in (("p1", archive / "p1"), ("p2", archive / "p2"), ("again", archive / "p2"), ("p0", "own")):
        (studies / link).symlink_to(target)
    (studies / "own" / "loop").symlink_to(studies)
    (archive / "p2" / "loop").symlink_to(archive / "p2")
    (studies / "out").symlink_to(tmp_path / "masks")
    (studies / "site").symlink_to(tmp_path / "masks" / "site")
    (tmp_path / "masks" / "site").mkdir(parents=True)
    for masks in ("masks", "masks/site"):
        (tmp_path / masks / "old-mask.nii.gz").write_text("mask")
    names = [case.name for case in find_cases(studies, tmp_path / "masks")]
    assert names == ["again/ct.nii", "own/a.nii", "p1/series"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders")
@pytest.mark.timeout(20)
def test_pipes_are_no_volumes(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_text("a")
    for name in ("pipe", "pipe.nii"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "1").write_bytes(b"\0" * 128 + b"DICM1")
    os.mkfifo(tmp_path / "series" / "pipe")
    assert [case.name for case in find_cases(tmp_path, tmp_path / "out")] == ["a.nii", "series"]
    assert [path.name for path in dicom_files(tmp_path / "series")] == ["1"]


def test_a_series_itself_is_named_after_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series = tmp_path / "series"
    series.mkdir()
    (series / "1").write_bytes(b"\0" * 128 + b"DICM1")
    (case,) = find_cases(series, tmp_path / "out")
    assert (case.name, case.path, case.mask) == ("series", series, Path("series-mask.nii.gz"))
    monkeypatch.chdir(series)
    assert find_cases(Path(), tmp_path / "out")[0].name == "series"
    (series / "series").mkdir()
    (series / "series" / "1").write_bytes(b"\0" * 128 + b"DICM1")
    with pytest.raises(InputError, match=r"would write one mask, series-mask\.nii\.gz") as caught:
        find_cases(series, tmp_path / "out")
    assert f"{series} and {series / 'series'} " in caught.value.message


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


def test_test_images_that_would_share_a_prediction_are_refused(task: Path) -> None:
    (task / "imagesTs" / "pancreas_042.nrrd").write_text("another")
    twice = ["./imagesTs/pancreas_042.nii.gz", "./imagesTs/pancreas_042.nii.gz"]
    (task / "dataset.json").write_text(json.dumps({"test": twice}))
    assert len(find_task(task).expected) == 1
    (task / "dataset.json").write_text(json.dumps({"test": [*twice, "./imagesTs/pancreas_042.nrrd"]}))
    with pytest.raises(InputError, match=r"pancreas_042\.nii\.gz and .*pancreas_042\.nrrd would write one mask"):
        find_task(task)


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

        def segment(self, image: Any, *, model: ModelInfo, out: Path, progress: Any) -> Result:
            if image.read_text() == "bad":
                raise JobFailed("Not a volume.", code="unreadable_volume")
            out.write_bytes(gzip.compress(image.read_bytes()))
            return Result("net", "1", [], {}, report={"digest": "d"})

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
    assert "1 segmented, 2 finished before" in (told := capsys.readouterr().out)
    assert "is complete: 3 of 3 test cases" in told
    assert sorted(path.name for path in out.iterdir()) == ["Task07_Pancreas", "report.csv", "report.json"]
    masks = sorted(path.name for path in (out / "Task07_Pancreas").iterdir())
    assert masks == ["pancreas_001.nii.gz", "pancreas_042.nii.gz", "pancreas_099.nii.gz"]
    (task / "imagesTs" / "pancreas_099.nii.gz").write_text("bad")
    assert main(words) == 1
    (task / "imagesTs" / "pancreas_099.nii.gz").write_text("fine")
    for layout, count in (("flat", 4), ("msd", 3)):
        capsys.readouterr()
        assert main([*words[:-1], layout]) == 0
        assert f"{count} segmented, 0 failed." in capsys.readouterr().out, "another layout is made anew"
    assert main([*words[:-1], "tree"]) == 1
    assert "--layout is one of flat, msd; got 'tree'" in capsys.readouterr().err
    assert main([*words, "--format", "nrrd"]) == 1
    assert "--layout msd writes nii.gz alone" in capsys.readouterr().err


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(layouts).failed == 0
