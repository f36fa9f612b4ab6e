"""Who published a version of a model: a signature over all its files, in the format of OpenSSF model signing.

    <repository>/<model>/<version>/model.sig

Keys are elliptic-curve keys in files, so that nothing is asked of anybody over the network. What is built later on the
machine that serves, TensorRT's plans with their records and measurements, may lie beside the signed files; each
record ties its plan to a signed network. Whatever else was added, changed or removed is refused.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from hilum_inference.errors import ModelError
from hilum_inference.files import write_atomically

SIGNATURE: Final = "model.sig"
LATER: Final = re.compile(
    r"model(_\d+\.\d+)?\.(plan|plan\.json|timing)|\.model(_\d+\.\d+)?\.(plan|plan\.json|timing|sig)\.[0-9a-f]{8}\.part"
)
"""Names of files that may be added to a signed version; a part is one that is being written."""
LARGEST_SIGNATURE: Final = 16 * 2**20
CURVES: Final = ("secp256r1", "secp384r1", "secp521r1")

Stamp = tuple[tuple[str, int, int, int, int], ...]
"""Name, inode, size and times of every file: whether something changed, without reading it."""


def sign(folder: Path, private_key: Path) -> Path:
    """Sign the version in ``folder``, with all that lies there now; the signature's path.

    Args:
        folder: of one version of a model.
        private_key: an elliptic-curve key (P-256, P-384 or P-521) in a PEM file without a password.

    Raises:
        ModelError: no such key, or the folder holds what cannot be signed.
    """
    check_private_key(private_key)
    for name, kind in _entries(folder):
        if not stat.S_ISREG(kind.st_mode):
            raise ModelError(f"{name} is no plain file; it cannot be signed.", code="not_signed")
    path = folder / SIGNATURE
    config = _library("signing").Config().use_elliptic_key_signer(private_key=private_key)
    with tempfile.TemporaryDirectory() as elsewhere:  # in the folder it would be signed itself
        part = Path(elsewhere) / SIGNATURE
        config.set_hashing_config(_hashing({SIGNATURE})).sign(folder, part)
        write_atomically(path, part.read_bytes())
    return path


def check(folder: Path, public_key: Path) -> None:
    """Refuse a version that was not signed with the key's other half, or is not as it was signed.

    Args:
        folder: of one version of a model.
        public_key: in a PEM file.

    Raises:
        ModelError: ``unsigned_model``, ``changed_model``, or ``bad_key`` where the key is none.
    """
    _library("verifying")
    _public(public_key)
    path = folder / SIGNATURE
    if not path.is_file() or path.is_symlink():
        raise ModelError(
            f"Version {folder.name} of {folder.parent.name} is not signed; only signed models are served here.",
            code="unsigned_model",
        )
    if folder.is_symlink():
        raise _changed(folder, "its folder is a link")
    signed = _claimed(path)
    later = set()
    for name, kind in _entries(folder):
        if not stat.S_ISREG(kind.st_mode):
            raise _changed(folder, f"{name} is no plain file")
        if name not in signed and name != SIGNATURE:
            if LATER.fullmatch(name) is None:
                raise _changed(folder, f"{name} was added")
            later.add(name)
    try:
        _verify(folder, public_key, {SIGNATURE, *later})
    except OSError:
        raise
    except Exception as error:
        raise _changed(folder, _difference(folder, signed)) from error  # the library's own words are a dump


class Signatures:
    """Checks signatures with one key; a version is read again only when one of its files changed.

    Args:
        public_key: in a PEM file.
    """

    def __init__(self, public_key: Path) -> None:
        self._key = public_key
        self._known: dict[Path, tuple[Stamp, Stamp]] = {}

    def check(self, folder: Path) -> None:
        """As ``check`` does."""
        before = (_stamp(folder), _stamp(self._key))
        if self._known.get(folder) != before:
            self._known.pop(folder, None)
            check(folder, self._key)
            self._known[folder] = before


def check_key(public_key: Path) -> None:
    """Refuse a file that is no public key, before anything starts.

    Raises:
        ModelError: ``bad_key``, or ``missing_extra``.
    """
    _library("verifying")
    _public(public_key)


def check_private_key(private_key: Path) -> None:
    """Refuse a file that is no private key, before anything is made that it is to sign.

    Raises:
        ModelError: ``bad_key``, or ``missing_extra``.
    """
    _library("signing")
    _private(private_key)


def _verify(folder: Path, public_key: Path, ignored: set[str]) -> None:
    config = _library("verifying").Config().use_elliptic_key_verifier(public_key=public_key)
    config.set_hashing_config(_hashing(ignored)).verify(folder, folder / SIGNATURE)


def _difference(folder: Path, signed: Mapping[str, str]) -> str:
    """Why a version was refused, in a few words."""
    for name, digest in signed.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                return f"{name} was changed"
    return f"{SIGNATURE} is of another key, or was changed"


def _claimed(path: Path) -> dict[str, str]:
    """Names and digests in a signature that is not verified yet.

    They say what may be left out of the comparison, which is what nobody signed; all else is compared.
    """
    folder = path.parent
    if path.stat().st_size > LARGEST_SIGNATURE:
        raise _changed(folder, f"{SIGNATURE} is too large")
    try:
        bundle = json.loads(path.read_bytes())
        bundle["verificationMaterial"]["publicKey"]["hint"].encode()  # older signatures lack it
        statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
        return {str(each["name"]): str(each["digest"]) for each in statement["predicate"]["resources"]}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _changed(folder, f"{SIGNATURE} cannot be read") from error


def _hashing(ignored: set[str]) -> Any:
    config = _library("hashing").Config().use_file_serialization(hashing_algorithm="sha256", allow_symlinks=False)
    return config.set_ignored_paths(paths=sorted(ignored), ignore_git_paths=False)


def _library(module: str) -> Any:
    """A part of OpenSSF's library.

    Raises:
        ModelError: ``missing_extra``.
    """
    try:
        return import_module(f"model_signing.{module}")
    except ModuleNotFoundError as error:
        raise ModelError(
            f"Signatures need {error.name}, which is not installed: pip install 'hilum[signing]'.", code="missing_extra"
        ) from error


def _entries(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Everything in a folder but folders: relative name, and what it is; links are not followed."""
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place) / name
            try:
                found = path.lstat()
            except FileNotFoundError:  # a part that has just got its name
                continue
            if not stat.S_ISDIR(found.st_mode):
                yield path.relative_to(folder).as_posix(), found


def _stamp(path: Path) -> Stamp:
    """Of a folder's files, or of one file."""
    entries = _entries(path) if path.is_dir() else [(path.name, path.stat())]
    return tuple(sorted((name, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in entries))


def _changed(folder: Path, how: str) -> ModelError:
    return ModelError(
        f"Version {folder.name} of {folder.parent.name} is not as it was signed: {how}.", code="changed_model"
    )


def _private(path: Path) -> None:
    """Refuse what is no private key to sign with."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = _key(path, "private", lambda data: load_pem_private_key(data, None))
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in CURVES:
        raise _no_key(path, "private")


def _public(path: Path) -> None:
    """Refuse what is no public key to check with."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    key = _key(path, "public", load_pem_public_key)
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in CURVES:
        raise _no_key(path, "public")


def _key(path: Path, half: str, load: Callable[[bytes], object]) -> object:
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        return load(path.read_bytes())
    except TypeError as error:
        raise ModelError(
            f"The private key {path} has a password; sign with a key without one, kept where only you can read it.",
            code="bad_key",
        ) from error
    except OSError as error:
        raise ModelError(f"The {half} key {path} cannot be read: {error.strerror}.", code="bad_key") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _no_key(path, half) from error


def _no_key(path: Path, half: str) -> ModelError:
    return ModelError(
        f"{path} is no {half} key of an elliptic curve (P-256, P-384 or P-521) in PEM form; docs/signing.md makes one.",
        code="bad_key",
    )
