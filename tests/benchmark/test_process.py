from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hilum_benchmark.process import MeasurementError, measure, run
from hilum_benchmark.row import Contender, Context


def test_a_process_is_charged_for_its_cpu_and_its_memory() -> None:
    busy = "import time\nheld = bytearray(b'1' * 2**27)\nwhile time.process_time() < 0.3: pass"
    used, out = run([sys.executable, "-c", f"{busy}\nprint('done')"])
    assert out == "done\n"
    assert 0.3 <= used.cpu_s < 3
    assert used.peak_mib > 128


def test_measured_processes_have_one_thread() -> None:
    _, out = run([sys.executable, "-c", "import os; print(os.environ['OMP_NUM_THREADS'])"])
    assert out == "1\n"


def test_a_process_that_fails_is_an_error_with_its_last_words() -> None:
    with pytest.raises(MeasurementError, match="ended with 3: no luck"):
        run([sys.executable, "-c", "import sys; sys.stderr.write('no luck'); sys.exit(3)"])


METERED = """
from hilum_benchmark.process import Meter
before = b"1" * 2**26
with Meter() as meter:
    held = b"1" * 2**25
assert len(held) < len(before)
print(meter.added_mib, meter.peak_mib)
"""


def test_memory_that_was_there_before_is_not_added() -> None:
    # In a process of its own: what other tests have freed here would be taken again unseen.
    done = subprocess.run([sys.executable, "-c", METERED], capture_output=True, text=True, check=True)
    added, peak = map(float, done.stdout.split())
    assert 32 <= added < 60
    assert peak > 96


def test_a_contender_runs_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "measured_here.py").write_text(
        "import os\ndef f(context):\n    return {'pid': os.getpid(), 'quick': context.quick}\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    measured = measure(Contender("measured_here:f"), Context(tmp_path, "", quick=True))
    assert measured["quick"] is True
    assert measured["process_cpu_s"] > 0
    again = measure(Contender("measured_here:f"), Context(tmp_path, "", quick=False))
    assert again["pid"] != measured["pid"]
    assert again["quick"] is False
