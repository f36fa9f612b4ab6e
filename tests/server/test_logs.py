"""The log's lines."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from hilum_inference.errors import EngineError
from hilum_server.logs import JsonLines
from hilum_server.problems import volume_lost
from hilum_server.worker import told

SECRET = "/data/volumes/0f5c2b6f5d1e4f0c9a7be3d2c1a09876/volume.nii"


def test_a_trace_names_places_in_the_code_and_types_but_no_text() -> None:
    try:
        try:
            open(SECRET)  # noqa: PTH123, SIM115 - fails
        except OSError as error:
            raise ValueError(SECRET) from error
    except ValueError:
        record = logging.LogRecord("hilum", logging.ERROR, "", 0, "it failed", None, sys.exc_info())
    line = JsonLines().format(record)
    assert SECRET not in line
    trace = json.loads(line)["trace"]
    assert "builtins.ValueError" in trace and "builtins.FileNotFoundError" in trace and "test_logs.py:" in trace


def test_a_failed_job_is_logged_without_the_path_of_its_volume(caplog: pytest.LogCaptureFixture) -> None:
    formatter = JsonLines()
    assert told(FileNotFoundError(2, "No such file", SECRET))["status"] == 507
    assert told(volume_lost()) | {"detail": ""} == {"status": 409, "code": "volume_lost", "detail": ""}
    assert told(ValueError(SECRET))["code"] == "internal"
    assert told(EngineError("the device is lost"))["code"] == "engine_failed"
    lines = [formatter.format(record) for record in caplog.records]
    assert not [line for line in lines if SECRET in line]
    assert "FileNotFoundError" in lines[0] and "the device is lost" in lines[3]
