"""How a repository is changed: one at a time, prepared where nobody looks, and made visible by one rename.

Whoever changes a repository holds a lock on its folder, which the system lets go when a process dies; whoever holds it
next puts right what the dead one left.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from hilum_inference.errors import ModelError
from hilum_inference.files import sync_folder, write_atomically
from hilum_inference.layout import (
    CONFIG,
    CONFIGS,
    FORMERLY_WITHDRAWN,
    SUFFIX,
    WITHDRAWN,
    numbers,
    parameter,
    read_config,
    versions,
)
from hilum_inference.manifest import PARAMETER

PART = ".part"


@contextlib.contextmanager
def locked(repository: Path) -> Iterator[bool]:
    """Hold a repository while it is changed; others wait. The system frees it when the process dies.

    What a dead one left is put right first. Yields whether it is held: some network file systems, and Windows, cannot.
    There a rename is the last word, which never overwrites a version.

    Raises:
        ModelError: the repository is a file.
    """
    try:
        repository.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ModelError(f"{repository} is no folder of models: a file is there.", code="no_repository") from error
    if os.name == "nt":
        yield False
        return
    handle = os.open(repository, os.O_RDONLY)
    try:
        alone = _holds(handle)
        if alone:
            _tend(repository)
        yield alone
    finally:
        os.close(handle)


def _holds(handle: int) -> bool:
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def part_of(repository: Path, name: str) -> Iterator[Path]:
    """A folder on the repository's disk where neither a reader nor a Triton looks; gone at the end.

    Triton takes every folder of a repository for a model, and in a model's those alone for versions that begin with a
    digit.
    """
    if numbers(repository / name):
        part = _unused(repository / name, name)
    else:
        part = _beside(repository) or _unused(repository, name)
    try:
        part.mkdir()
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _unused(folder: Path, name: str) -> Path:
    return folder / f".{name}.{secrets.token_hex(4)}{PART}"


def _beside(repository: Path) -> Path | None:
    """A folder to be made beside a repository; None where nothing can be written there, or moved in from there."""
    root = repository.resolve()
    trial = _unused(root.parent, root.name)
    try:
        trial.touch(exist_ok=False)
        trial.rename(root / trial.name)  # a mount may be in between; Triton does not look at files
    except OSError:
        return None
    finally:
        for path in (trial, root / trial.name):
            with contextlib.suppress(OSError):
                path.unlink()
    return trial


def _tend(repository: Path) -> None:
    """Put right what killed processes left: the lock is ours, so nothing is under way."""
    root = repository.resolve()
    _remove(root.parent.glob(f".{glob.escape(root.name)}.????????{PART}"))
    _remove(_left(root))
    for folder in root.iterdir():
        if folder.is_dir() and folder.name[0] != ".":
            with contextlib.suppress(OSError, ModelError):  # a model that is broken otherwise stops no other
                _mend(folder)
            _remove(_left(folder))


def _left(folder: Path) -> list[Path]:
    return list(folder.glob(f".*.????????{PART}"))


def _remove(paths: Iterable[Path]) -> None:
    with contextlib.suppress(OSError):
        for path in paths:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _mend(folder: Path) -> None:
    """Name withdrawn versions as Triton bears it, and make the model's configurations those of the served version."""
    for old in folder.glob(f"*{FORMERLY_WITHDRAWN}"):
        number = old.name.removesuffix(FORMERLY_WITHDRAWN)
        if number.isascii() and number.isdigit():
            rename_new(old, folder / f"{WITHDRAWN}{number}")
    own = folder / str(versions(folder)[-1])
    if not ((own / CONFIG).is_file() and (folder / CONFIG).is_file()):
        return
    # what was staged for a version that is not in it any more was not put in place to the end
    begun = any(left.is_dir() and not numbers(left / folder.name) for left in _left(folder))
    if begun or _mixed(own, folder):
        staged = _unused(folder, folder.name)
        copy_configs(own, staged)
        _replace_configs(staged, folder, _names(staged))
        _sync_entries(folder)


def _mixed(own: Path, folder: Path) -> bool:
    """Whether a model's configurations are those of another version; what else somebody set in them is left alone."""
    ours, shown = _texts(own), _texts(folder)
    if ours == shown:
        return False
    wanted = {name: _manifest_text(own / name) for name in ours}
    found = {name: _manifest_text(folder / name) for name in shown}
    return any(found.get(name) != text for name, text in wanted.items()) or not set(found.values()) <= set(
        wanted.values()
    )


def _texts(home: Path) -> dict[str, bytes]:
    files = [home / CONFIG, *(home / CONFIGS).glob(f"*{SUFFIX}")]
    return {file.relative_to(home).as_posix(): file.read_bytes() for file in files}


def _manifest_text(path: Path) -> str | None:
    return parameter(read_config(path), PARAMETER, path.name)


def copy_configs(version: Path, target: Path) -> None:
    """The configurations of a version, flushed to the disk; the one last that says that they are there."""
    for file in (version / CONFIGS).glob(f"*{SUFFIX}"):
        write_atomically(target / CONFIGS / file.name, file.read_bytes())
    write_atomically(target / CONFIG, (version / CONFIG).read_bytes())


def sync(folder: Path) -> None:
    """Flush a folder and all below it."""
    mode = "rb+" if os.name == "nt" else "rb"  # a signature may be read-only; Windows flushes what can be written alone
    for path, _, names in os.walk(folder, topdown=False):
        for name in names:
            with (Path(path) / name).open(mode) as file:
                os.fsync(file.fileno())
        sync_folder(Path(path))


def switch(source: Path, target: Path, staged: Path) -> None:
    """Rename a version of a model, and make the model's configurations the staged ones.

    Once the version is renamed there is no way back: an interruption is put off until the rest is done. Nothing but
    renames lies in between, so that a kill hardly ever comes there; ``_mend`` is for when it does.
    """
    kept = _names(staged)
    try:
        rename_new(source, target)
        _replace_configs(staged, target.parent, kept)
        _sync_entries(target.parent)
    except BaseException:
        if not source.exists():
            _replace_configs(staged, target.parent, kept)
            _sync_entries(target.parent)
        raise


def _names(staged: Path) -> set[str] | None:
    """What belongs into ``configs``; None: nothing was staged, for a version made by hand that has none of its own."""
    return {file.name for file in (staged / CONFIGS).glob("*")} if (staged / CONFIG).is_file() else None


def rename_new(source: Path, target: Path) -> None:
    """Rename to what must not be there yet.

    Raises:
        ModelError: somebody put it there.
    """
    try:
        source.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise ModelError(
            f"Somebody else published {target.name} in {target.parent} meanwhile; try again.", code="busy"
        ) from error


def _replace_configs(staged: Path, folder: Path, kept: set[str] | None) -> None:
    """Renames and removals only, which need no room; it can be done again from wherever it stopped."""
    if kept is None:
        return
    if (staged / CONFIG).is_file():
        (staged / CONFIG).replace(folder / CONFIG)
    for file in (staged / CONFIGS).glob("*"):
        (folder / CONFIGS).mkdir(exist_ok=True)
        file.replace(folder / CONFIGS / file.name)
    for file in (folder / CONFIGS).glob(f"*{SUFFIX}"):
        if file.name not in kept:
            file.unlink(missing_ok=True)
    if not kept and (folder / CONFIGS).is_dir():
        with contextlib.suppress(OSError):  # somebody's own files lie there
            (folder / CONFIGS).rmdir()


def _sync_entries(folder: Path) -> None:
    for each in (folder / CONFIGS, folder):
        if each.is_dir():
            sync_folder(each)
