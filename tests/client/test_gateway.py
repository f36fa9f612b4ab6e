from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hilum_client import gateway
from hilum_client.errors import ConnectError, InputError
from hilum_client.gateway import Gateway, end, free_port, last_words


def test_a_taken_port_is_refused() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(InputError, match="is taken; choose another with --port"):
            free_port(other.getsockname()[1])
    assert free_port(0) > 0


def test_the_last_words_of_a_gateway_that_ends(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("hello\nhilum: The data folder is in use.\n\n")
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    with pytest.raises(ConnectError, match=r"The gateway ended: The data folder is in use\.$"):
        Gateway(process, "http://127.0.0.1:9", log).wait_until_ready()
    log.write_text("")
    assert "it said nothing" in last_words(log)


def test_not_ready_in_time(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with pytest.raises(ConnectError, match="was not ready within 0 s"):
            Gateway(process, "http://127.0.0.1:9", tmp_path / "log").wait_until_ready(0.1)
    finally:
        end(process)
    assert process.returncode is not None


def test_what_does_not_end_is_made_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "END_SECONDS", 0.2)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    end(process)
    process.stdout.close()
    assert process.returncode != 0
