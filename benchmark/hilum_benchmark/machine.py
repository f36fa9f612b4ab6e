"""Where figures were taken: processor, memory, load, versions, state of the source."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LIBRARIES = (
    "hilum",
    "dynamic-network-architectures",
    "fastapi",
    "isal",
    "monai",
    "nibabel",
    "nnunetv2",
    "numpy",
    "onnxruntime",
    "openvino",
    "simpleitk",
    "torch",
    "uvicorn",
)


def facts() -> dict[str, Any]:
    """The machine as JSON-able data."""
    from hilum_inference.engines.precision import cpu_name

    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "load_average": [round(n, 2) for n in os.getloadavg()],
    }


def versions() -> dict[str, str]:
    """Python and the libraries that are measured, those that are installed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def source_digest(packages: Iterable[str]) -> str:
    """SHA-256 over the Python files of our packages and single modules: a figure holds for one state of the source."""
    digest = hashlib.sha256()
    for package in packages:
        spec = importlib.util.find_spec(package)
        if spec is None:
            continue
        if not spec.submodule_search_locations and spec.origin is not None:
            digest.update(package.encode() + b"\0" + Path(spec.origin).read_bytes())
        for folder in spec.submodule_search_locations or ():
            for path in sorted(Path(folder).rglob("*.py")):
                digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
