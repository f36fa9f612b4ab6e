"""Publishing a version of a model, all or nothing, and withdrawing it.

What is published is written and flushed in a folder that nobody looks at; then one rename makes it visible. Whoever
changes a repository holds a lock on its folder, which the system lets go when a process dies.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from hilum_inference.errors import ModelError, UnknownModelError
from hilum_inference.files import sync_folder, write_atomically
from hilum_inference.layout import (
    CONFIG,
    CONFIGS,
    SUFFIX,
    WITHDRAWN,
    checked_variant,
    is_plain,
    is_variant,
    manifest_of,
    network_name,
    numbers,
    versions,
)
from hilum_inference.pbtxt import parse_pbtxt

PART = ".part"
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
            another digest; or the disk is full. The repository is as it was.
    """
    digests = _checked(name, [(None, config), *(variants or {}).items()], network_files)
    with _one_sentence(repository), locked(repository) as alone:
        if alone:
            _sweep(repository, name)
        folder = repository / name
        known = numbers(folder)
        version = str(max(known, default=0) + 1)
        with _part(repository, name) as part:
            whole = part / name
            _fill(whole / version, config, network_files, variants or {})
            _compare(whole / version, digests)
            if finish is not None:
                finish(whole / version)
            _copy_configs(whole / version, whole)
            _sync(whole)
            if known:
                _switch(whole / version, folder / version, whole)
            else:
                _rename(whole, folder)
    return folder / version


def rollback(repository: Path, name: str) -> int:
    """Withdraw the served version of a model; the version that is served now.

    The withdrawn folder stays as ``<version>.withdrawn``; its number is never given again.

    Raises:
        UnknownModelError: no such model.
        ModelError: there is no earlier version, or the disk is full.
    """
    folder = repository / name
    if not (folder / CONFIG).is_file():
        raise UnknownModelError(f"There is no model {name!r} in {repository}.")
    with _one_sentence(repository), locked(repository):
        known = versions(folder)
        if len(known) < 2:
            raise ModelError(f"Model {name} has no version before {known[-1]}.", code="no_earlier_version")
        earlier, served = folder / str(known[-2]), folder / str(known[-1])
        with _part(repository, name) as part:
            if (earlier / CONFIG).is_file():
                _copy_configs(earlier, part)
            _switch(served, folder / f"{served.name}{WITHDRAWN}", part)
    return known[-2]


@contextlib.contextmanager
def locked(repository: Path) -> Iterator[bool]:
    """Hold a repository while it is changed; others wait. The system frees it when the process dies.

    Yields whether it is held: some network file systems, and Windows, cannot. There a rename is the last word, which
    never overwrites a version.
    """
    repository.mkdir(parents=True, exist_ok=True)
    if os.name == "nt":
        yield False
        return
    handle = os.open(repository, os.O_RDONLY)
    try:
        yield _holds(handle)
    finally:
        os.close(handle)


def _holds(handle: int) -> bool:
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


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


@contextlib.contextmanager
def _part(repository: Path, name: str) -> Iterator[Path]:
    """A folder beside the model's that nobody reads; gone at the end."""
    part = repository / f".{name}.{secrets.token_hex(4)}{PART}"
    try:
        part.mkdir()
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _sweep(repository: Path, name: str) -> None:
    """Remove what a publication left that was killed: the lock is ours, so none is under way."""
    for left in repository.glob(f".{name}.????????{PART}"):
        shutil.rmtree(left, ignore_errors=True)


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


def _copy_configs(version: Path, target: Path) -> None:
    """The configurations of a version, flushed to the disk."""
    write_atomically(target / CONFIG, (version / CONFIG).read_bytes())
    for file in (version / CONFIGS).glob(f"*{SUFFIX}"):
        write_atomically(target / CONFIGS / file.name, file.read_bytes())


def _sync(folder: Path) -> None:
    """Flush a folder and all below it."""
    mode = "rb+" if os.name == "nt" else "rb"  # a signature may be read-only; Windows flushes what can be written alone
    for path, _, names in os.walk(folder, topdown=False):
        for name in names:
            with (Path(path) / name).open(mode) as file:
                os.fsync(file.fileno())
        sync_folder(Path(path))


def _switch(source: Path, target: Path, staged: Path) -> None:
    """Rename a version of a model, and make the model's configurations the staged ones.

    Once the version is renamed there is no way back: an interruption is put off until the rest is done.
    """
    kept = {file.name for file in (staged / CONFIGS).glob("*")} if (staged / CONFIG).is_file() else None
    try:
        _rename(source, target)
        _replace_configs(staged, target.parent, kept)
    except BaseException:
        if not source.exists():
            _replace_configs(staged, target.parent, kept)
        raise


def _rename(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise ModelError(
            f"Somebody else published {target.name} in {target.parent} meanwhile; try again.", code="busy"
        ) from error
    sync_folder(target.parent)


def _replace_configs(staged: Path, folder: Path, kept: set[str] | None) -> None:
    """Renames and removals only, which need no room; it can be done again from wherever it stopped."""
    if kept is None:  # a version made by hand, without configurations of its own
        return
    for file in (staged / CONFIGS).glob("*"):
        (folder / CONFIGS).mkdir(exist_ok=True)
        file.replace(folder / CONFIGS / file.name)
    if (staged / CONFIG).is_file():
        (staged / CONFIG).replace(folder / CONFIG)
    for file in (folder / CONFIGS).glob(f"*{SUFFIX}"):
        if file.name not in kept:
            file.unlink(missing_ok=True)
    if not kept and (folder / CONFIGS).is_dir():
        with contextlib.suppress(OSError):  # somebody's own files lie there
            (folder / CONFIGS).rmdir()
    for each in (folder / CONFIGS, folder):
        if each.is_dir():
            sync_folder(each)
