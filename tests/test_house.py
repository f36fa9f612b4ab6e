"""The walls of the house, shown in fresh interpreters: who loads what."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from importlib import import_module

import pytest

HEAVY = {"torch", "monai", "fastapi", "SimpleITK", "highdicom", "numba", "nibabel", "onnx", "onnxruntime"}


def _loaded(code: str) -> set[str]:
    """Names of the top packages that a fresh interpreter has loaded after ``code``."""
    program = f"import json, sys\n{code}\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def _modules(package: str) -> list[str]:
    found = import_module(package)
    return [
        package,
        *(m.name for m in pkgutil.walk_packages(found.__path__, f"{package}.") if "__main__" not in m.name),
    ]


@pytest.mark.parametrize(
    ("room", "allowed"),
    [("hilum_client", set()), ("hilum_inference", set()), ("hilum_server", {"fastapi"})],
)
def test_every_module_of_a_room_loads_without_what_it_must_not_know(room: str, allowed: set[str]) -> None:
    loaded = _loaded("\n".join(f"import {name}" for name in _modules(room)))
    assert room in loaded
    assert loaded & (HEAVY - allowed) == set()


def test_the_heart_needs_no_other_room() -> None:
    rooms = {"hilum_client", "hilum_server", "hilum_search", "hilum_export", "hilum_benchmark"}
    assert _loaded("\n".join(f"import {name}" for name in _modules("hilum_inference"))) & rooms == set()
    assert _loaded("import hilum_client, hilum_client.cli") & {*rooms, "hilum_inference"} == {"hilum_client"}


def test_segmenting_in_this_process_loads_no_torch_and_no_server() -> None:
    code = "from hilum_inference.local import LocalClient\nLocalClient().models()"
    assert _loaded(code) & (HEAVY | {"hilum_server", "hilum_client"}) == set()
