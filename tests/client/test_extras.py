from __future__ import annotations

import pytest

from hilum_client.errors import MissingExtra
from hilum_client.extras import load, missing_modules, require


def test_load_resolves_and_names_what_is_missing() -> None:
    assert load("hilum_client.wire:API", None, "test") == "/api"
    with pytest.raises(MissingExtra, match=r"test needs the extra \[x\]: pip install 'hilum\[x\]' \(no_such is not"):
        load("no_such:thing", "x", "test")


def test_require_names_all_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    require(("serve", "dicom"), "test")
    absent = {"fastapi", "uvicorn", "pydicom"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in absent else object())
    assert missing_modules("serve") == ["fastapi", "uvicorn"]
    with pytest.raises(MissingExtra, match=r"pip install 'hilum\[serve,dicom\]' \(fastapi is not installed\)"):
        require(("serve", "dicom", "inference"), "test")
