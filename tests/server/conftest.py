"""Tiny real models, volumes, and gateways in processes of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hilum_serving import Server, make_array, publish_threshold, save


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One quick model, ``bright``."""
    folder = tmp_path_factory.mktemp("models")
    publish_threshold(folder)
    return folder


@pytest.fixture(scope="session")
def slow_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with some 10 ms of arithmetic a window."""
    folder = tmp_path_factory.mktemp("slow_models")
    publish_threshold(folder, width=32)
    return folder


@pytest.fixture(scope="session")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small .nii, 30 x 26 x 22, LPS, anisotropic."""
    return save(tmp_path_factory.mktemp("volume") / "small.nii", make_array())


@pytest.fixture(scope="session")
def long_volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .nii of 125 windows: seconds of work for the slow model."""
    return save(tmp_path_factory.mktemp("volume") / "long.nii", make_array(1, (48, 48, 48)))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[Server]:
    """A running gateway shared by the tests that do not harm it."""
    running = Server(tmp_path_factory.mktemp("gateway") / "data", repository).start()
    yield running
    running.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Makes gateways that end with the test."""
    running: list[Server] = []

    def make(repository: Path | None, arguments: tuple[str, ...] = (), **environment: str) -> Server:
        running.append(Server(tmp_path / "gateway" / "data", repository, environment, arguments))
        return running[-1]

    yield make
    for one in running:
        one.close()
