from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

from hilum_client import cli
from hilum_client.cli import VERBS, Verb, main
from hilum_client.errors import InputError

LATE = ("numpy", "httpx", "typer", "rich", "torch", "fastapi", "openvino", "pydantic")


def fresh(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


def test_import_and_help_load_nothing_heavy() -> None:
    code = f"""
import sys, hilum_client, hilum_client.cli
assert hilum_client.cli.main(["--help"]) == 0
print(sorted(name for name in {LATE!r} if name in sys.modules))
"""
    assert fresh(code).splitlines()[-1] == "[]"


def test_the_whole_client_needs_neither_torch_nor_fastapi_nor_unix() -> None:
    code = """
import sys
for name in ("torch", "fastapi", "starlette", "openvino", "pydantic", "nibabel", "psutil", "PIL", "fcntl", "resource",
             "pwd", "grp"):
    sys.modules[name] = None  # an import of it fails
import pkgutil, importlib, hilum_client
found = [module.name for module in pkgutil.walk_packages(hilum_client.__path__, "hilum_client.")]
names = [name for name in found if not name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
hilum_client.Client(), hilum_client.AsyncClient, hilum_client.ClientError, hilum_client.Result
print(len(names), [room for room in ("hilum_inference", "hilum_server") if room in sys.modules])
"""
    blocked = code.replace(
        '"termios"', '"_posixsubprocess_not"'
    )  # rich and subprocess themselves use termios where it is
    count, rooms = fresh(blocked).split(maxsplit=1)
    assert int(count) >= 20 and rooms.strip() == "[]"


def test_help_names_every_verb_and_extra(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    for name, verb in VERBS.items():
        assert f"  {name} " in text and verb.help in text
        assert verb.extra is None or f"[{verb.extra}]" in text


@pytest.mark.parametrize("name", list(VERBS))
def test_only_verbs_that_exist_are_offered(name: str) -> None:
    module = VERBS[name].target.partition(":")[0]
    assert find_spec(module) is not None


def test_every_client_verb_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("segment", "batch", "models", "doctor", "demo"):
        assert main([name, "--help"]) == 0
        out = capsys.readouterr().out
        assert f"Usage: hilum {name}" in out and "Example: hilum" in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"hilum {version('hilum')}\n"


def test_an_unknown_verb_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["segmnt"]) == 2
    assert "Did you mean segment?" in capsys.readouterr().err
    assert main(["zzz"]) == 2
    assert "Did you mean" not in capsys.readouterr().err


def test_wrong_usage_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["segment", "--nonsense"]) == 2
    assert "No such option" in capsys.readouterr().err


def offer(monkeypatch: pytest.MonkeyPatch, error: BaseException | None) -> None:
    def app(_arguments: list[str], prog_name: str) -> None:
        assert prog_name == "hilum try"
        if error is not None:
            raise error

    monkeypatch.setattr(cli, "load", lambda *_: app)
    monkeypatch.setitem(VERBS, "try", Verb("x:y", "serve", "Try"))


class OtherRoomError(Exception):
    message = "The volume is too small."
    code = "too_small"


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (None, 0, ""),
        (SystemExit(3), 3, ""),
        (InputError("There is no file x."), 1, "hilum: There is no file x.\n"),
        (OtherRoomError(), 1, "hilum: The volume is too small.\n"),
        (PermissionError(13, "Permission denied", "out"), 1, "hilum: Permission denied: out.\n"),
        (KeyboardInterrupt(), 130, ""),
        (ModuleNotFoundError("No module named 'fastapi'", name="fastapi"), 2, "pip install 'hilum[serve]'"),
    ],
)
def test_every_end_is_a_code_and_at_most_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException | None,
    code: int,
    sentence: str,
) -> None:
    offer(monkeypatch, error)
    assert main(["try"]) == code
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert sentence in err
    assert sentence or not err


def test_a_defect_is_named_and_debug_shows_where(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    offer(monkeypatch, ZeroDivisionError("division by zero"))
    assert main(["try"]) == 1
    assert "Unexpected ZeroDivisionError" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        main(["--debug", "try"])
    monkeypatch.setenv("HILUM_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main(["try"])


def test_a_missing_extra_is_one_sentence() -> None:
    code = """
import sys
sys.modules["hilum_inference.local"] = None
from hilum_client.cli import main
sys.exit(main(["segment", sys.executable, "-o", "nowhere.nii.gz"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "hilum segment without --server needs the extra [inference]: pip install 'hilum[inference]'" in done.stderr
