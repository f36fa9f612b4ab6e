"""Fresh processes with one thread, and what the kernel says they used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hilum_benchmark.child import MARK
from hilum_benchmark.row import Contender, Context

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1",
    "nnUNet_def_n_proc": "1",
}
TAIL = 1500
MIB = 2**20


class MeasurementError(Exception):
    """A measured process failed; the message is the end of what it wrote."""


@dataclass(frozen=True)
class Used:
    """What a process and the children it waited for used: CPU (user + system), wall seconds, peak RSS in MiB."""

    cpu_s: float
    wall_s: float
    peak_mib: float


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> tuple[Used, str]:
    """Run a command to its end; what it used, and its standard output.

    Raises:
        MeasurementError: it did not end with 0.
    """
    variables = os.environ | ONE_THREAD | dict(environment or {})
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err, env=variables)  # noqa: S603 - our own command
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode:
            raise MeasurementError(f"ended with {process.returncode}: {err.read()[-TAIL:].strip()}")
        # Linux counts in KiB. The parent is small: a child's figure starts with its parent's.
        used = Used(usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss * 1024 / MIB)
        return used, out.read()


def measure(contender: Contender, context: Context) -> dict[str, float]:
    """One round of one contender: what its function returned, and ``process_cpu_s``, ``process_wall_s``, ``peak_mib``.

    Raises:
        MeasurementError: it failed.
    """
    used, out = run(child_command(contender, context))
    lines = [line for line in out.splitlines() if line.startswith(MARK)]
    if not lines:
        raise MeasurementError(f"{contender.target} printed no result")
    measured: dict[str, float] = json.loads(lines[-1].removeprefix(MARK))
    whole = {"process_cpu_s": used.cpu_s, "process_wall_s": used.wall_s, "process_peak_mib": used.peak_mib}
    return whole | measured


def child_command(contender: Contender, context: Context) -> list[str]:
    """The command that measures a contender once."""
    words = [sys.executable, "-m", "hilum_benchmark.child", contender.target, str(context.folder), contender.argument]
    return [*words, "--quick"] if context.quick else words


def resident_mib(field: str = "VmRSS", pid: int | str = "self") -> float:
    """``VmRSS`` (now) or ``VmHWM`` (peak) of a process, in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024 / MIB
    raise MeasurementError(f"/proc/{pid}/status has no {field}")


class Meter:
    """CPU seconds and memory of a block, in this process.

    >>> with Meter() as meter:
    ...     _ = bytearray(2**24)
    >>> meter.cpu_s >= 0, meter.added_mib >= 0
    (True, True)
    """

    def __init__(self) -> None:
        self.cpu_s = 0.0
        self.peak_mib = 0.0
        self.added_mib = 0.0
        self._resident = 0.0

    def __enter__(self) -> Meter:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at what is resident now
        self._resident = resident_mib()
        self._start = time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu_s = time.process_time() - self._start
        self.peak_mib = resident_mib("VmHWM")
        self.added_mib = self.peak_mib - self._resident


class Stopwatch:
    """CPU seconds of all threads of this process, over one or several blocks."""

    def __init__(self) -> None:
        self.cpu_s = 0.0

    def __enter__(self) -> Stopwatch:
        self._start = time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu_s += time.process_time() - self._start
