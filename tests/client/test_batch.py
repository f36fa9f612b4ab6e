from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hilum_client.answers import ModelInfo, Result
from hilum_client.batch import content_hash, run_batch
from hilum_client.cli import main
from hilum_client.errors import ConnectError, InputError, JobFailed, MissingExtra
from hilum_client.layouts import Case, find_cases
from hilum_client.report import Entry, Report

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hilum_client.wire import MaskFormat

MODEL = ModelInfo("demo", "1", digest="d1")


class Quiet:
    """A watch that remembers."""

    def __init__(self) -> None:
        self.skipped: list[str] = []

    def begins(self, case: Case) -> None:
        pass

    def ended(self, entry: Entry, skipped: bool) -> None:
        if skipped:
            self.skipped.append(entry.case)


class Segmenter:
    """Writes a mask that depends on the input; fails for content ``bad``."""

    def __init__(self, version: str = "1") -> None:
        self.seen: list[str] = []
        self.version = version

    def __call__(self, image: Path, mask: Path) -> Result:
        self.seen.append(image.name)
        content = image.read_text() if image.is_file() else "series"
        if content == "bad":
            raise JobFailed("Not a volume.", code="unreadable_volume")
        mask.write_text(f"mask of {content}")
        liver = {"name": "liver", "id": 1, "voxels": 5, "ml": 2.5, "box": None}
        return Result("demo", self.version, [liver], {}, report={"digest": f"d{self.version}"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "in"
    (inside / "deep" / "series").mkdir(parents=True)
    (inside / "a.nii.gz").write_text("a")
    (inside / "b.nii").write_text("bad")
    (inside / "deep" / "c.nrrd").write_text("c")
    (inside / "deep" / "series" / "1").write_bytes(b"\0" * 128 + b"DICM1")
    (inside / "notes.txt").write_text("no volume")
    (inside / ".hidden.nii").write_text("hidden")
    return inside


def batch(
    folder: Path, out: Path, segment: Any, model: ModelInfo = MODEL, suffix: MaskFormat = "nii.gz", force: bool = False
) -> tuple[int, Quiet, Report]:
    cases = find_cases(folder, out, suffix)
    report = Report.open(out, model, [case.name for case in cases])
    watch = Quiet()
    return run_batch(cases, segment, report, watch, force=force), watch, report


def listed(out: Path) -> dict[str, dict[str, Any]]:
    """The cases of a report by name."""
    return {case["case"]: case for case in json.loads((out / "report.json").read_text())["cases"]}


def test_failed_cases_are_listed_and_the_rest_done(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    failed, _, _ = batch(folder, out, Segmenter())
    assert failed == 1
    data = json.loads((out / "report.json").read_text())
    assert (data["total"], data["done"], data["failed"]) == (4, 3, 1)
    by_name = {case["case"]: case for case in data["cases"]}
    assert by_name["b.nii"]["code"] == "unreadable_volume" and by_name["b.nii"]["message"] == "Not a volume."
    assert by_name["a.nii.gz"]["labels"] == [{"name": "liver", "id": 1, "voxels": 5, "ml": 2.5}]
    assert (out / by_name["deep/c.nrrd"]["mask"]).read_text() == "mask of c"
    with (out / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["status"], row["liver_ml"]) for row in rows] == [
        ("a.nii.gz", "done", "2.5"),
        ("b.nii", "failed", ""),
        ("deep/c.nrrd", "done", "2.5"),
        ("deep/series", "done", "2.5"),
    ]
    assert not list(out.glob(".*part"))


def test_a_second_run_does_only_what_is_not_done(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    batch(folder, out, Segmenter())
    again = Segmenter()
    _, watch, _ = batch(folder, out, again)
    assert again.seen == ["b.nii"], "a failed case is tried again"
    assert watch.skipped == ["a.nii.gz", "deep/c.nrrd", "deep/series"]
    (folder / "a.nii.gz").write_text("changed")
    (out / "deep" / "c-mask.nii.gz").unlink()  # so it looks, too, where a batch ends between the report and the mask
    again = Segmenter()
    batch(folder, out, again)
    assert again.seen == ["a.nii.gz", "b.nii", "c.nrrd"]
    newer = Segmenter("2")
    batch(folder, out, newer, ModelInfo("demo", "2", digest="d2"))
    assert len(newer.seen) == 4, "another model does all again"


def test_a_mask_of_earlier_content_does_not_outlive_a_failure(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    batch(folder, out, Segmenter())
    (folder / "a.nii.gz").write_text("bad")
    assert batch(folder, out, Segmenter())[0] == 2
    assert not (out / "a-mask.nii.gz").exists()


def test_links_of_patients_onto_files_of_one_name(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for patient in ("anna", "berta"):
        (tmp_path / patient).mkdir()
        (tmp_path / patient / "ct.nii").write_text(patient)
        (folder / f"{patient}.nii").symlink_to(tmp_path / patient / "ct.nii")
    assert batch(folder, out, Segmenter())[0] == 0
    assert [(out / f"{patient}-mask.nii.gz").read_text() for patient in ("anna", "berta")] == [
        "mask of anna",
        "mask of berta",
    ]


def test_the_report_names_what_made_the_mask(folder: Path, tmp_path: Path) -> None:
    """A version is published while the batch runs, and rolled back."""
    out, segmenter = tmp_path / "out", Segmenter()

    def published(image: Path, mask: Path) -> Result:
        segmenter.version = "1" if image.name == "a.nii.gz" else "2"
        return segmenter(image, mask)

    batch(folder, out, published)
    made = {name: (case["version"], case["digest"]) for name, case in listed(out).items() if case["status"] == "done"}
    assert made == {"a.nii.gz": ("1", "d1"), "deep/c.nrrd": ("2", "d2"), "deep/series": ("2", "d2")}
    back = Segmenter()
    _, watch, _ = batch(folder, out, back)
    assert watch.skipped == ["a.nii.gz"] and back.seen == ["b.nii", "c.nrrd", "series"]


def test_another_format_is_made_anew_and_the_first_one_again(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (folder / "b.nii").write_text("fine")
    for suffix in ("nii.gz", "nrrd", "nii.gz"):
        segmenter = Segmenter()
        assert batch(folder, out, segmenter, suffix=suffix)[0] == 0
        assert len(segmenter.seen) == 4 and (out / f"a-mask.{suffix}").is_file()
        assert listed(out)["a.nii.gz"]["mask"] == f"a-mask.{suffix}"
    assert len(batch(folder, out, Segmenter())[1].skipped) == 4


def test_a_mask_that_no_batch_wrote_is_left_alone(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    drawn = [out / "a-mask.nii.gz", out / "b-mask.nii.gz"]
    for mask in drawn:
        mask.write_text("by hand")
    assert batch(folder, out, Segmenter())[0] == 2
    case = listed(out)["a.nii.gz"]
    assert case["code"] == "exists" and "move it away, name another folder with -o, or" in case["message"]
    corrected = out / "deep" / "c-mask.nii.gz"
    corrected.write_text("corrected by hand")
    again = Segmenter()
    assert batch(folder, out, again)[0] == 3 and again.seen == []
    assert [mask.read_text() for mask in drawn] == ["by hand"] * 2 and corrected.read_text() == "corrected by hand"
    known = listed(out)["deep/c.nrrd"]  # what was made there is still told
    assert (known["status"], known["code"], known["mask"]) == ("failed", "exists", "deep/c-mask.nii.gz")
    assert known["labels"] and known["digest"] and known["mask_sha256"]
    assert batch(folder, out, Segmenter(), force=True)[0] == 1
    assert drawn[0].read_text() == "mask of a" and corrected.read_text() == "mask of c"
    assert drawn[1].read_text() == "by hand", "what failed replaces nothing"
    assert not list(out.rglob(".hilum-*"))


def test_a_mask_that_a_person_saves_while_its_case_runs_is_left_alone(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    batch(folder, out, Segmenter())

    def corrected(image: Path, mask: Path) -> Result:
        (out / "a-mask.nii.gz").write_text("corrected by hand")
        return Segmenter("2")(image, mask)

    assert batch(folder, out, corrected, ModelInfo("demo", "2", digest="d2"))[0] == 2
    assert listed(out)["a.nii.gz"]["code"] == "exists"
    assert (out / "a-mask.nii.gz").read_text() == "corrected by hand"


def test_a_link_that_leads_nowhere_fails_alone(folder: Path, tmp_path: Path) -> None:
    (folder / "d.nii").symlink_to(tmp_path / "nowhere.nii")
    (folder / "participants.tsv").symlink_to(tmp_path / "nowhere")
    assert batch(folder, tmp_path / "out", Segmenter())[0] == 2
    cases = listed(tmp_path / "out")
    assert cases["d.nii"]["code"] == "file_system" and cases["d.nii"]["message"].startswith("No such file")
    assert sorted(cases) == ["a.nii.gz", "b.nii", "d.nii", "deep/c.nrrd", "deep/series"]


def test_a_series_that_lacks_a_slice_fails_alone(folder: Path, tmp_path: Path) -> None:
    (folder / "deep" / "series" / "2").symlink_to(tmp_path / "nowhere")
    assert batch(folder, tmp_path / "out", Segmenter())[0] == 2
    assert listed(tmp_path / "out")["deep/series"]["code"] == "file_system"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_not_utf_8(folder: Path, tmp_path: Path) -> None:
    name, out = os.fsdecode(b"M\xfcller"), tmp_path / "out"
    (folder / f"{name}.nii").write_text("m")
    (folder / "deep" / "series" / name).write_bytes(b"\0" * 128 + b"DICM2")
    assert batch(folder, out, Segmenter())[0] == 1
    assert (out / f"{name}-mask.nii.gz").read_text() == "mask of m"
    assert "M\\udcfcller.nii,done" in (out / "report.csv").read_text(encoding="utf-8")
    assert len(batch(folder, out, Segmenter())[1].skipped) == 4


def test_cases_that_are_gone_leave_the_report(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    batch(folder, out, Segmenter())
    (folder / "deep" / "c.nrrd").unlink()
    batch(folder, out, Segmenter())
    data = json.loads((out / "report.json").read_text())
    assert [case["case"] for case in data["cases"]] == ["a.nii.gz", "b.nii", "deep/series"]


def test_a_lost_server_and_a_missing_part_stop_the_batch(folder: Path, tmp_path: Path) -> None:
    for error in (ConnectError("gone"), MissingExtra("install it"), ModuleNotFoundError("none", name="none")):
        for first in ("a.nii.gz", "b.nii"):

            def lost(image: Path, mask: Path, error: Exception = error, first: str = first) -> Result:
                if image.name >= first:
                    raise error
                return Segmenter()(image, mask)

            out = tmp_path / f"{type(error).__name__}-{first}"
            with pytest.raises(type(error)):
                batch(folder, out, lost)
            assert json.loads((out / "report.json").read_text())["done"] == (first != "a.nii.gz")
            assert (out / "report.csv").exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("of a library"), "internal"),
        (ZeroDivisionError(), "internal"),
        (KeyError("x"), "internal"),
        (MemoryError(), "out_of_memory"),
    ],
)
def test_what_was_not_foreseen_fails_one_case(
    error: Exception, code: str, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(image: Path, mask: Path) -> Result:
        if image.name == "b.nii":
            mask.write_text("half")
            raise error
        return Segmenter()(image, mask)

    out = tmp_path / "out"
    assert batch(folder, out, broken)[0] == 1
    data = json.loads((out / "report.json").read_text())
    assert (data["done"], data["failed"]) == (3, 1)
    assert [(case["case"], case["code"]) for case in data["cases"] if case["status"] == "failed"] == [("b.nii", code)]
    assert not (out / "b-mask.nii.gz").exists()
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == [error]


def test_a_foreign_report_is_not_overwritten(folder: Path, tmp_path: Path) -> None:
    for text in ("{}", "[1]", "no json", '{"format": "x", "cases": []}'):
        (tmp_path / "report.json").write_text(text)
        with pytest.raises(InputError, match="no report of hilum batch"):
            Report.open(tmp_path, MODEL, [])
        assert (tmp_path / "report.json").read_text() == text


def test_the_hash_of_a_series_sees_names_and_bytes(folder: Path) -> None:
    series = folder / "deep" / "series"
    first = content_hash(series)
    (series / "note.txt").write_text("not DICOM")
    assert content_hash(series) == first
    (series / "1").rename(series / "2")
    renamed = content_hash(series)
    (series / "2").write_bytes(b"\0" * 128 + b"DICM2")
    assert len({first, renamed, content_hash(series)}) == 3


KILLED = """
import sys, time
from pathlib import Path
from hilum_client.answers import ModelInfo, Result
from hilum_client.batch import run_batch
from hilum_client.layouts import find_cases
from hilum_client.report import Report

folder, out = Path(sys.argv[1]), Path(sys.argv[2])

class Quiet:
    def begins(self, case): pass
    def ended(self, entry, skipped): pass

def segment(image, mask):
    with (out.parent / "log").open("a") as log:
        log.write(image.name + "\\n")
    mask.write_text("half")
    time.sleep(0.05)
    mask.write_text("mask of " + image.read_text())
    return Result("demo", "1", [], {}, report={"digest": "d"})

cases = find_cases(folder, out)
report = Report.open(out, ModelInfo("demo", "1", digest="d"), [case.name for case in cases])
sys.exit(run_batch(cases, segment, report, Quiet()))
"""


def test_killed_in_the_middle_it_goes_on(tmp_path: Path) -> None:
    folder, out, log = tmp_path / "in", tmp_path / "out", tmp_path / "log"
    folder.mkdir()
    for n in range(8):
        (folder / f"{n}.nii").write_text(str(n))
    command = [sys.executable, "-c", KILLED, str(folder), str(out)]
    process = subprocess.Popen(command)
    end = time.monotonic() + 30
    while time.monotonic() < end and (not log.exists() or len(log.read_text().split()) < 4):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL if os.name != "nt" else signal.SIGTERM)
    process.wait()
    begun = log.read_text().split()
    assert 4 <= len(begun) < 8, "killed in the middle"
    assert subprocess.run(command, check=False, timeout=30).returncode == 0
    seen = log.read_text().split()
    assert len(seen) <= 9 and set(seen) == {f"{n}.nii" for n in range(8)}
    assert all(seen.count(name) == 1 for name in begun[:-1]), "finished cases are not done twice"
    assert [(out / f"{n}-mask.nii.gz").read_text() for n in range(8)] == [f"mask of {n}" for n in range(8)]
    assert json.loads((out / "report.json").read_text())["done"] == 8


def test_a_case_of_several_files_is_known_by_all_of_them(folder: Path) -> None:
    one, two = folder / "a.nii.gz", folder / "b.nii"
    assert len({content_hash(one), content_hash(one, two), content_hash(two, one)}) == 3


def test_the_command(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    segmenter = Segmenter()

    class Backend:
        def models(self) -> list[ModelInfo]:
            return [MODEL]

        def segment(self, image: Path, *, model: ModelInfo, out: Path, progress: Any) -> Result:
            progress(1, 2)
            assert model == MODEL, "its version, for the whole batch"
            return segmenter(image, out)

    @contextmanager
    def opened(*_: object) -> Iterator[Backend]:
        yield Backend()

    monkeypatch.setattr("hilum_client.batch.open_backend", opened)
    out = tmp_path / "out"
    assert main(["batch", str(folder), "-o", str(out)]) == 1
    shown = capsys.readouterr()
    assert "3 segmented, 1 failed." in shown.out
    assert "b.nii: Not a volume. [unreadable_volume]" in shown.err
    (folder / "b.nii").write_text("fine")
    assert main(["batch", str(folder), "-o", str(out)]) == 0
    assert "1 segmented, 3 finished before, 0 failed." in capsys.readouterr().out
    (out / "b-mask.nii.gz").write_text("corrected by hand")
    assert main(["batch", str(folder), "-o", str(out)]) == 1
    assert "b-mask.nii.gz is there, and is not what a batch wrote;" in capsys.readouterr().err
    assert main(["batch", str(folder), "-o", str(out), "--force"]) == 0
    assert main(["batch", str(folder), "-o", str(folder)]) == 1
    assert main(["batch", str(folder), "-o", str(out), "--format", "png"]) == 1
    assert "--format is one of nii.gz, nii, nrrd" in capsys.readouterr().err
