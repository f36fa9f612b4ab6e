"""The chart as Helm reads it, in a process of its own: its library brings the runtime of Go, which never leaves."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from typing import Any

from hilum_deploy import CHART

Values = dict[str, Any]


class ValuesError(ValueError):
    """Values that the chart's schema refuses."""


def lint(values: Values) -> dict[str, Any]:
    """What ``helm lint`` says."""
    return dict(_answer("lint", values, "", ""))


def render(values: Values, name: str = "hospital", namespace: str = "imaging") -> dict[str, str]:
    """Rendered text of each file.

    Raises:
        ValuesError: the schema refuses the values.
    """
    return dict(_answer("render", values, name, namespace))


def defaults() -> tuple[Values, dict[str, Any]]:
    """The chart's own values, which keep to its schema, and its metadata."""
    values, metadata = _answer("defaults", {}, "", "")
    return values, metadata


def _answer(*words: Any) -> Any:
    return json.loads(_run(json.dumps(words)))


@functools.cache
def _run(words: str) -> str:
    command = [sys.executable, __file__]
    done = subprocess.run(command, input=words, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode == 3:
        raise ValuesError(done.stderr)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _work() -> None:
    import helm_python

    verb, values, name, namespace = json.loads(sys.stdin.read())
    if verb == "lint":
        print(json.dumps(helm_python.lint(CHART, values)))
        return
    with helm_python.Chart.load(CHART) as chart:
        try:
            chart.validate_schema(chart.values if verb == "defaults" else values)
        except helm_python.HelmValuesError as error:
            print(error, file=sys.stderr)
            sys.exit(3)
        defaults = chart.values, {"appVersion": chart.metadata["appVersion"]}
        print(json.dumps(defaults if verb == "defaults" else chart.render(values, name=name, namespace=namespace)))


if __name__ == "__main__":
    _work()
