"""Parts of the wheel that may not be installed, resolved by name when they are used."""

from __future__ import annotations

import importlib
from typing import Any

from hilum_client.errors import MissingExtra


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
