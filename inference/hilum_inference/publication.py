"""Publishing a version of a model, all or nothing, and withdrawing it.

What is published is written and flushed in a folder where neither a reader nor a Triton looks; then one rename makes it
visible. Whoever changes a repository holds a lock on its folder, which the system lets go when a process dies; whoever
holds it next puts right what the dead one left.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from hilum_inference.errors import ModelError, UnknownModelError
from hilum_inference.files import sync_folder, write_atomically
from hilum_inference.layout import (
    CONFIG,
    CONFIGS,
    FORMERLY_WITHDRAWN,
    SUFFIX,
    WITHDRAWN,
    checked_variant,
    config_file,
    is_plain,
    is_variant,
    manifest_of,
    network_name,
    numbers,
    parameter,
    read_config,
    variants,
    versions,
)
from hilum_inference.manifest import PARAMETER
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
            another digest; or the disk is full, or the model's place is taken. The repository is as it was.
    """
    digests = _checked(name, [(None, config), *(variants or {}).items()], network_files)
    with _one_sentence(repository), locked(repository):
        folder = repository / name
        known = numbers(folder)
        if not known:
            _check_free(folder)
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
                _adopt(folder, int(version))
                _switch(whole / version, folder / version, whole)
            else:
                _rename(whole, folder)
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
        with _part(repository, name) as part:
            if (earlier / CONFIG).is_file():
                _copy_configs(earlier, part)
            _switch(served, folder / f"{WITHDRAWN}{served.name}", part)
    return known[-2]


def repair(repository: Path) -> None:
    """Put right what a killed process left, as every publication and roll-back does first."""
    with _one_sentence(repository), locked(repository):
        pass


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


@contextlib.contextmanager
def _part(repository: Path, name: str) -> Iterator[Path]:
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
            _rename(old, folder / f"{WITHDRAWN}{number}")
    own = folder / str(versions(folder)[-1])
    if not ((own / CONFIG).is_file() and (folder / CONFIG).is_file()):
        return
    # what was staged for a version that is not in it any more was not put in place to the end
    begun = any(left.is_dir() and not numbers(left / folder.name) for left in _left(folder))
    if begun or _mixed(own, folder):
        staged = _unused(folder, folder.name)
        _copy_configs(own, staged)
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


def _adopt(folder: Path, coming: int) -> None:
    """Give a version that was made by hand, and served so far, the model's configurations: it can be gone back to."""
    with contextlib.suppress(ModelError):  # all were withdrawn
        before = [number for number in versions(folder) if number < coming]
        if before and (folder / CONFIG).is_file() and not (folder / str(before[-1]) / CONFIG).is_file():
            _copy_configs(folder, folder / str(before[-1]))


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
    """The configurations of a version, flushed to the disk; the one last that says that they are there."""
    for file in (version / CONFIGS).glob(f"*{SUFFIX}"):
        write_atomically(target / CONFIGS / file.name, file.read_bytes())
    write_atomically(target / CONFIG, (version / CONFIG).read_bytes())


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

    Once the version is renamed there is no way back: an interruption is put off until the rest is done. Nothing but
    renames lies in between, so that a kill hardly ever comes there; ``_mend`` is for when it does.
    """
    kept = _names(staged)
    try:
        _rename(source, target)
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


def _rename(source: Path, target: Path) -> None:
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
