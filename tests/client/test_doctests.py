from __future__ import annotations

import doctest
from importlib import import_module

import pytest


@pytest.mark.parametrize("name", ["montage", "nifti", "scores"])
def test_examples_of_the_docstrings(name: str) -> None:
    module = import_module(f"hilum_client.{name}")
    found = doctest.testmod(module, extraglobs={"np": import_module("numpy")})
    assert found.attempted > 0 and found.failed == 0
