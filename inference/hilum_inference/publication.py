"""Publishing a version of a model, all or nothing, and withdrawing it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from hilum_inference.errors import ModelError, UnknownModelError
from hilum_inference.files import sync_folder
from hilum_inference.layout import (
    CONFIG,
    CONFIGS,
    SUFFIX,
    WITHDRAWN,
    checked_variant,
    config_file,
    is_plain,
    is_variant,
    manifest_of,
    network_name,
    numbers,
    read_config,
    variants,
    versions,
)
from hilum_inference.pbtxt import parse_pbtxt
from hilum_inference.staging import copy_configs, locked, part_of, rename_new, switch, sync

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Files = Mapping[str, bytes | Path]
Finish = Callable[[Path], None]


def publish(
    repository: Path,
    name: str,
    config: str,
    network_files: Files,
    variants: Mapping[str, str] | None = None,
    finish: Finish | None = None,
) -> Path:
    """Add the next version of a model, all or nothing; the version's folder.

    Args:
        repository: the folder of models; made where missing.
        name: of the model.
        config: the text of its ``config.pbtxt``, with the manifest.
        network_files: name in the version's folder -> bytes, or a file to copy.
        variants: name of a variant -> text of its configuration.
        finish: is called with the version's folder, complete but not visible yet; what it raises stops the publication.

    Raises:
        ModelError: a configuration cannot be read, names another model, or a file that is not published with it or has
            another digest; or the disk is full, or the model's place is taken. The repository is as it was.
    """
    digests = _checked(name, [(None, config), *(variants or {}).items()], network_files)
    with _one_sentence(repository), locked(repository):
        folder = repository / name
        known = numbers(folder)
        if not known:
            _check_free(folder)
        version = str(max(known, default=0) + 1)
        with part_of(repository, name) as part:
            whole = part / name
            _fill(whole / version, config, network_files, variants or {})
            _compare(whole / version, digests)
            if finish is not None:
                finish(whole / version)
            copy_configs(whole / version, whole)
            sync(whole)
            if known:
                _adopt(folder, int(version))
                switch(whole / version, folder / version, whole)
            else:
                rename_new(whole, folder)
                sync_folder(repository)
    return folder / version


def rollback(repository: Path, name: str) -> int:
    """Withdraw the served version of a model; the version that is served now.

    The withdrawn folder stays as ``withdrawn-<version>``; its number is never given again.

    Raises:
        UnknownModelError: no such model.
        ModelError: there is no earlier version, or it cannot be served, or the disk is full.
    """
    if not is_plain(name):
        raise UnknownModelError(f"A model cannot be called {name!r}.")
    folder = repository / name
    if not (folder / CONFIG).is_file():
        raise UnknownModelError(f"There is no model {name!r} in {repository}.")
    with _one_sentence(repository), locked(repository):
        known = versions(folder)
        if len(known) < 2:
            raise ModelError(f"Model {name} has no version before {known[-1]}.", code="no_earlier_version")
        _check_servable(folder, known[-2])
        earlier, served = folder / str(known[-2]), folder / str(known[-1])
        with part_of(repository, name) as part:
            if (earlier / CONFIG).is_file():
                copy_configs(earlier, part)
            switch(served, folder / f"{WITHDRAWN}{served.name}", part)
    return known[-2]


def repair(repository: Path) -> None:
    """Put right what a killed process left, as every publication and roll-back does first."""
    with _one_sentence(repository), locked(repository):
        pass


def _checked(name: str, configs: Sequence[tuple[str | None, str]], files: Files) -> set[tuple[str, str]]:
    """Refuse what a reader would refuse; the networks and the SHA-256 that each must have."""
    digests = set()
    for file in files:
        if not is_plain(file) or file in (CONFIG, CONFIGS):
            raise ModelError(f"A file of a version cannot be called {file!r}.", code="bad_config")
    for variant, text in configs:
        if variant is not None and not is_variant(variant):
            raise ModelError(f"A variant cannot be called {variant!r}.", code="bad_config")
        config = parse_pbtxt(text)
        weights = manifest_of(config, name).digests.weights
        checked_variant(config, name, variant)
        network = network_name(config, name)
        digests.add((network, weights))
        loaded = config.get("default_model_filename", [])[:1] if config.get("backend") != ["tensorrt"] else []
        for file in (network, *map(str, loaded)):  # a plan is built later, on the GPU that runs it
            if file not in files:
                raise ModelError(
                    f"{variant or CONFIG} needs {file}, which is not published with it.", code="missing_network"
                )
    return digests


def _compare(folder: Path, digests: set[tuple[str, str]]) -> None:
    """Refuse a network that is not the one that a manifest was written for."""
    for name, expected in sorted(digests):
        if expected:
            with (folder / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != expected:
                raise ModelError(
                    f"{name} is not the network that its manifest was written for.", code="changed_network"
                )


@contextlib.contextmanager
def _one_sentence(repository: Path) -> Iterator[None]:
    """Say of a full disk that it is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise ModelError(
            f"There is no room left for {repository}: nothing was changed in it. Free space, then try again.",
            code="disk_full",
        ) from error


def _check_free(folder: Path) -> None:
    """Refuse to put a new model where something else lies."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if os.path.lexists(folder):
        raise ModelError(
            f"{folder} is there already and holds no version of a model: move it away, then publish again.",
            code="place_taken",
        )


def _check_servable(folder: Path, version: int) -> None:
    """Refuse a version that could not be served in place of the one after it."""
    try:
        digests = set()
        for variant in (None, *variants(folder, version)):
            config = read_config(config_file(folder, version, variant))
            checked_variant(config, folder.name, variant)
            digests.add((network_name(config, folder.name), manifest_of(config, folder.name).digests.weights))
        for network, _ in sorted(digests):
            if not (folder / str(version) / network).is_file():
                raise ModelError(f"it has no file {network}.")
        _compare(folder / str(version), digests)
    except ModelError as error:
        raise ModelError(
            f"Nothing was withdrawn, since version {version} of {folder.name} cannot be served: {error.message}",
            code="no_earlier_version",
        ) from error


def _adopt(folder: Path, coming: int) -> None:
    """Give a version that was made by hand, and served so far, the model's configurations: it can be gone back to."""
    with contextlib.suppress(ModelError):  # all were withdrawn
        before = [number for number in versions(folder) if number < coming]
        if before and (folder / CONFIG).is_file() and not (folder / str(before[-1]) / CONFIG).is_file():
            copy_configs(folder, folder / str(before[-1]))


def _fill(folder: Path, config: str, files: Files, variants: Mapping[str, str]) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        if isinstance(content, Path):
            shutil.copyfile(content, folder / name)
        else:
            (folder / name).write_bytes(content)
    (folder / CONFIG).write_bytes(config.encode())
    if variants:
        (folder / CONFIGS).mkdir()
    for name, text in variants.items():
        (folder / CONFIGS / f"{name}{SUFFIX}").write_bytes(text.encode())
