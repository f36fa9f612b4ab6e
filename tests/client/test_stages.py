from __future__ import annotations

import os
import subprocess
import sys
import time

from hilum_client.stages import Stages, resident


def test_seconds_and_peak_of_a_family() -> None:
    code = "import time, sys; print(flush=True); sys.stdin.readline(); b = b'x' * (64 << 20); time.sleep(9)"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None and child.stdout is not None
    try:
        child.stdout.readline()
        stages = Stages(os.getpid())
        with stages("quiet"):
            time.sleep(0.05)
        with stages("loud"):
            child.stdin.write(b"\n")
            child.stdin.flush()
            time.sleep(0.5)
    finally:
        child.kill()
        child.communicate()
    quiet, loud = stages.done
    assert (quiet.name, loud.name) == ("quiet", "loud")
    assert 0.04 < quiet.seconds < 0.4 < loud.seconds
    assert loud.peak - quiet.peak > 50 << 20


def test_a_process_that_is_gone_holds_nothing() -> None:
    assert resident(2**22 - 7) == 0
