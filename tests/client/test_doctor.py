from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hilum_client import doctor
from hilum_client.backend import Where
from hilum_client.cli import main
from hilum_client.doctor import Check, attempt, cpu, cpu_flags, disk, extras, models, reachable
from hilum_client.errors import ClientError


def test_all_lines_and_the_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [Check("a", "ok", "fine"), Check("b", "warn", "so so", "do this")]
    monkeypatch.setattr(doctor, "examine", lambda where: iter(lines))
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out == "ok   a: fine\nwarn b: so so\n      do this\n"
    lines.append(Check("c", "fail", "bad"))
    assert main(["doctor", "--json"]) == 1
    assert [line["status"] for line in json.loads(capsys.readouterr().out)] == ["ok", "warn", "fail"]


def test_what_a_machine_without_models_and_server_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DATA_FOLDER", tmp_path)
    checks = {check.name: check for check in doctor.examine(Where("http://127.0.0.1:9", repositories=(tmp_path,)))}
    assert "hilum" in checks["version"].found and "client" in checks["installed"].found
    assert "GiB" in checks["memory"].found and "GiB free" in checks["data folder"].found
    assert checks["models"].status == "fail" and "--repository" in checks["models"].advice
    assert checks["server"].status == "fail" and "hilum serve" in checks["server"].found


def test_missing_extras_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name in ("openvino", "torch", "openjpeg") else object()
    )
    installed, *rest = extras()
    assert installed.found == "client, serve, export, signing, benchmark, cluster"
    assert [(check.name, check.advice) for check in rest] == [
        ("extra [inference]", "pip install 'hilum[inference]'"),
        ("extra [dicom]", "pip install 'hilum[dicom]'"),
    ]
    assert "no openjpeg" in rest[1].found


def test_cpu(tmp_path: Path) -> None:
    assert cpu({"avx2", "fma"}).status == "ok"
    assert cpu({"sse2"}).status == "warn"
    assert cpu(set()).status == "ok", "what is not known is no warning"
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nflags\t\t: fpu avx2\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    assert cpu_flags(info) == {"fpu", "avx2"}
    assert cpu_flags(tmp_path / "none") == set()


def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / "not" / "made"
    free = doctor.LEAST_DISK
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    assert disk(deep).status == "ok" and str(deep) in disk(deep).found
    free -= 1
    assert disk(deep).status == "warn"
    monkeypatch.setattr("os.access", lambda *_: False)
    assert disk(deep).status == "fail" and not deep.parent.exists()


class Repository:
    """As the heart's."""

    def __init__(self, folders: list[Path]) -> None:
        self.broken = {"old": "The manifest is not valid."}

    def models(self) -> tuple[Any, ...]:
        return (SimpleNamespace(name="demo", version=1),)


def test_models_the_refused_ones_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hilum_inference.repository.Repository", Repository)
    monkeypatch.setattr(doctor, "speed", lambda model: Check("engine", "ok", model.name))
    found = [(check.name, check.status) for check in models(Where(repositories=(tmp_path,)))]
    assert found == [("model old", "fail"), ("models", "ok"), ("engine", "ok")]
    (check,) = models(Where(repositories=(tmp_path / "none",)))
    assert check.status == "fail" and "There is no folder" in check.found


def test_speed_of_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[tuple[tuple[int, ...], str]] = []
    engine = SimpleNamespace(
        precision="f32", run=lambda batch, output: runs.append((batch.shape, output)), close=lambda: None
    )
    monkeypatch.setattr("hilum_inference.engines.open_engine", lambda model: engine)
    windows = SimpleNamespace(size=(4, 5, 6))
    manifest = SimpleNamespace(channels=(1, 2), windows=windows, blends_features=True)
    model = SimpleNamespace(name="demo", manifest=manifest)
    check = doctor.speed(model)
    assert runs == [((1, 2, 4, 5, 6), "features")] * 4
    assert check.status == "ok" and "4 x 5 x 6" in check.found
    monkeypatch.setattr(doctor, "SLOW_WINDOW", -1.0)
    assert doctor.speed(model).status == "warn"


def test_failures_of_a_check_are_its_finding_but_defects_are_not() -> None:
    def refused() -> Check:
        raise ClientError("No.")

    assert attempt("x", refused) == Check("x", "fail", "No.")
    with pytest.raises(ZeroDivisionError):
        attempt("x", lambda: Check("x", "ok", str(1 // 0)))
    assert reachable(Where("http://127.0.0.1:9")).status == "fail"
