"""Parts of the wheel that may not be installed, resolved by name when they are used."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Final

from hilum_client.errors import MissingExtra

EXTRAS: Final[dict[str, tuple[str, ...]]] = {
    "inference": ("openvino", "pydantic", "PIL", "psutil"),
    "dicom": ("pydicom", "openjpeg", "libjpeg", "highdicom"),
    "serve": ("fastapi", "uvicorn", "sqlalchemy", "prometheus_client"),
    "search": ("torch", "monai", "nibabel"),
    "export": ("onnx", "onnxconverter_common", "onnxruntime", "onnxscript", "nncf"),
    "signing": ("model_signing", "OpenSSL"),
    "benchmark": ("SimpleITK", "matplotlib"),
    "cluster": ("ray",),
}
"""Modules by which an extra is known to be installed."""


def load(target: str, extra: str | None, user: str) -> Any:
    """The object behind ``package.module:name``.

    Args:
        target: where it lives.
        extra: the extra of the wheel that brings what it needs; None: plain ``pip install hilum``.
        user: what needs it, for the sentence (``hilum serve``).

    Raises:
        MissingExtra: a module it needs is not installed.
    """
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise missing(user, extra, error) from error


def missing(user: str, extra: str | None, error: ModuleNotFoundError) -> MissingExtra:
    """The error that names the extra and the module that was looked for."""
    install = f"pip install 'hilum[{extra}]'" if extra else "pip install --force-reinstall hilum"
    needs = f"the extra [{extra}]" if extra else "a module that is gone"
    return MissingExtra(f"{user} needs {needs}: {install} ({error.name} is not installed).")


def missing_modules(extra: str) -> list[str]:
    """What an extra lacks; modules are looked for, not imported."""
    from importlib.util import find_spec

    return [module for module in EXTRAS[extra] if find_spec(module) is None]


def require(extras: Sequence[str], user: str) -> None:
    """Check that extras are installed, before anything is begun that needs them.

    Raises:
        MissingExtra: one is not; the sentence names all that are missing.
    """
    lacking = {extra: missing_modules(extra) for extra in extras}
    names = ",".join(extra for extra, modules in lacking.items() if modules)
    if names:
        first = next(modules[0] for modules in lacking.values() if modules)
        install = f"pip install 'hilum[{names}]'"
        raise MissingExtra(f"{user} needs the extra [{names}]: {install} ({first} is not installed).")
