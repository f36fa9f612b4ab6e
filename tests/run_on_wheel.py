"""Builds the wheel, installs it in place of the checkout, runs the tests against it, and puts the checkout back.

Each room's tests have a process of their own, as the rooms have where people use them: nowhere else do torch, Ray,
TensorRT, OpenVINO and a gateway meet in one, and what one of them leaves behind is not the next one's affair.

Usage: python tests/run_on_wheel.py [arguments of pytest]; files and folders among them are run alone
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
NO_TESTS = 5
"""pytest's exit code where an option leaves none of a room's."""


def main() -> int:
    """Run pytest on the installed wheel; 0 where every room passed."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*PIP, "wheel", "--no-deps", "--wheel-dir", folder, str(ROOT)], check=True)
        wheel = next(Path(folder).glob("hilum-*.whl"))
        subprocess.run([*PIP, "install", "--force-reinstall", "--no-deps", str(wheel)], check=True)
    try:
        codes = {name: _run(paths) for name, paths in _rooms().items()}
    finally:
        subprocess.run([*PIP, "install", "--no-deps", "--editable", str(ROOT)], check=True, capture_output=True)
    failed = [f"{name} (exit code {code})" for name, code in codes.items() if code not in (0, NO_TESTS)]
    if set(codes.values()) == {NO_TESTS}:
        failed = ["no test was found"]
    print(f"Failed: {', '.join(failed)}" if failed else "Every room passed.")
    return 1 if failed else 0


def _rooms() -> dict[str, list[str]]:
    """Name -> paths of what is run together; where the caller names some, those."""
    if any(word and (ROOT / word.partition("::")[0]).exists() for word in sys.argv[1:]):
        return {"what was asked for": []}
    tests = ROOT / "tests"
    rooms = {folder.name: [str(folder)] for folder in sorted(tests.iterdir()) if any(folder.glob("test_*.py"))}
    return rooms | {"the whole": [str(path) for path in sorted(tests.glob("test_*.py"))]}


def _run(paths: list[str]) -> int:
    print("", *(Path(path).relative_to(ROOT) for path in paths), flush=True)
    return subprocess.run([sys.executable, "-m", "pytest", *sys.argv[1:], *paths], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
