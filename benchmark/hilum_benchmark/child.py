"""One measurement in a process of its own: ``python -m hilum_benchmark.child TARGET FOLDER ARGUMENT [--quick]``.

Prints one line of JSON at the end: what the function returned.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from hilum_benchmark.row import Context

MARK = "hilum-benchmark-result "


def main(words: list[str]) -> None:
    """Run one measuring function."""
    target, folder, argument = words[:3]
    module, _, name = target.partition(":")
    measure = getattr(importlib.import_module(module), name)
    measured = measure(Context(Path(folder), argument, "--quick" in words[3:]))
    sys.stdout.write(MARK + json.dumps(dict(measured or {})) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
