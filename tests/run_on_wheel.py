"""Builds the wheel, installs it in place of the checkout, runs the tests against it, and puts the checkout back.

Usage: python tests/run_on_wheel.py [arguments of pytest]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


def main() -> int:
    """Run pytest on the installed wheel; its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*PIP, "wheel", "--no-deps", "--wheel-dir", folder, str(ROOT)], check=True)
        wheel = next(Path(folder).glob("hilum-*.whl"))
        subprocess.run([*PIP, "install", "--force-reinstall", "--no-deps", str(wheel)], check=True)
    try:
        return subprocess.run([sys.executable, "-m", "pytest", *sys.argv[1:]], cwd=ROOT, check=False).returncode
    finally:
        # Quietly: the last line of a run is pytest's.
        subprocess.run([*PIP, "install", "--no-deps", "--editable", str(ROOT)], check=True, capture_output=True)


if __name__ == "__main__":
    sys.exit(main())
