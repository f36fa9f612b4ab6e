"""A Triton model repository: read without Triton, published atomically, rolled back.

    <repository>/<model>/config.pbtxt        the manifest travels in parameters["hilum_manifest"]
    <repository>/<model>/<version>/model.onnx
    <repository>/<model>/<version>/config.pbtxt   the configuration of that version (Triton ignores it)

The highest numeric version is served, as Triton's default policy does. Each version keeps its own configuration, so
that manifest and network always belong together, also in the middle of a publication or a roll-back.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from hilum_inference.errors import ModelError, UnknownModelError
from hilum_inference.files import sync_folder, write_atomically
from hilum_inference.manifest import PARAMETER, Manifest, parse_manifest
from hilum_inference.pbtxt import Message, parse_pbtxt

CONFIG = "config.pbtxt"
DEFAULT_NETWORK = "model.onnx"
WITHDRAWN = ".withdrawn"
LARGEST_CONFIG = 64 * 2**20


@dataclass(frozen=True)
class Model:
    """One version of a model, checked.

    Attributes:
        manifest: what it is.
        version: the number of its folder.
        folder: the model's folder.
        network: the ONNX file.
        digest: SHA-256 over network and preprocessing: equal digests give equal masks on one machine.
    """

    manifest: Manifest
    version: int
    folder: Path
    network: Path
    digest: str

    @property
    def name(self) -> str:
        """The model's name."""
        return self.manifest.name


class Repository:
    """The models of several folders; an earlier folder wins where two have a model of one name, broken or not.

    ``models`` and ``model`` look at the disk each time, so that a publication is seen at once; a network is hashed
    again only when its file changed.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = tuple(folders)
        self._hashes: dict[tuple[Path, int, int], str] = {}
        self.broken: dict[str, str] = {}

    def models(self) -> tuple[Model, ...]:
        """The served version of each model, by name. Models that are refused are in ``broken`` with the reason."""
        found: dict[str, Model] = {}
        self.broken = {}
        for folder in self._model_folders():
            if folder.name in found or folder.name in self.broken:
                continue
            try:
                found[folder.name] = self._load(folder, _versions(folder)[-1])
            except ModelError as error:
                self.broken[folder.name] = error.message
            except OSError as error:
                self.broken[folder.name] = f"It cannot be read: {error.strerror}."
        return tuple(found[name] for name in sorted(found))

    def model(self, name: str | None = None, version: int | None = None) -> Model:
        """One model; without a name the only one for segmentation, without a version the served one.

        Raises:
            UnknownModelError: none, or no such version, or several and no name.
            ModelError: it is there but refused.
        """
        if name is None:
            name = self._default_name()
        folder = next((f for f in self._model_folders() if f.name == name), None)
        if folder is None:
            known = ", ".join(sorted({f.name for f in self._model_folders()})) or "none"
            raise UnknownModelError(f"There is no model {name!r}; known: {known}.")
        versions = _versions(folder)
        if version is not None and version not in versions:
            raise UnknownModelError(f"Model {name} has no version {version}; it has {', '.join(map(str, versions))}.")
        return self._load(folder, versions[-1] if version is None else version)

    def _default_name(self) -> str:
        names = [m.name for m in self.models() if m.manifest.task == "segmentation"]
        if len(names) == 1:
            return names[0]
        if not names:
            reasons = "; ".join(f"{name}: {why}" for name, why in self.broken.items())
            raise UnknownModelError(f"There is no model for segmentation. {reasons}".strip(), code="no_model")
        raise UnknownModelError(f"Name a model, there are several: {', '.join(names)}.", code="model_not_named")

    def _model_folders(self) -> list[Path]:
        roots = [root for root in self._folders if root.is_dir()]
        return [f for root in roots for f in sorted(root.iterdir()) if (f / CONFIG).is_file() and f.name[0] != "."]

    def _load(self, folder: Path, version: int) -> Model:
        own = folder / str(version) / CONFIG
        config = _read_config(own if own.is_file() else folder / CONFIG)
        manifest = _manifest_of(config, folder)
        if manifest.name != folder.name:
            raise ModelError(
                f"The manifest names {manifest.name!r}, the folder is {folder.name!r}.", code="bad_manifest"
            )
        network = folder / str(version) / str((config.get("default_model_filename") or [DEFAULT_NETWORK])[0])
        if network.parent != folder / str(version) or not network.is_file():
            raise ModelError(f"Version {version} has no file {network.name}.", code="missing_network")
        weights = self._hash(network)
        if manifest.digests.weights and manifest.digests.weights != weights:
            raise ModelError(f"{network.name} of version {version} was changed since export.", code="changed_network")
        preprocessing = manifest.preprocessing_digest()
        if manifest.digests.preprocessing and manifest.digests.preprocessing != preprocessing:
            raise ModelError(f"The manifest of version {version} was changed since export.", code="changed_manifest")
        digest = hashlib.sha256(f"{weights} {preprocessing}".encode()).hexdigest()
        return Model(manifest, version, folder, network, digest)

    def _hash(self, path: Path) -> str:
        seen = path.stat()
        key = (path, seen.st_mtime_ns, seen.st_size)
        if key not in self._hashes:
            with path.open("rb") as file:
                self._hashes[key] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._hashes[key]


def publish(repository: Path, name: str, config: str, network_files: Mapping[str, bytes | Path]) -> Path:
    """Add the next version of a model, all or nothing; the version's folder.

    Args:
        repository: the folder of models; made where missing.
        name: of the model.
        config: the text of its ``config.pbtxt``, with the manifest.
        network_files: name in the version's folder -> bytes, or a file to copy.

    Raises:
        ModelError: the configuration cannot be read or names another model.
    """
    folder = repository / name
    if _manifest_of(parse_pbtxt(config), folder).name != name:
        raise ModelError(f"The manifest does not name {name!r}.", code="bad_manifest")
    known = _numbers(folder)
    version = max(known, default=0) + 1
    repository.mkdir(parents=True, exist_ok=True)
    part = repository / f".{name}.{secrets.token_hex(4)}.part"
    try:
        _fill(part / str(version), config, network_files)
        if known:
            (part / str(version)).replace(folder / str(version))
        else:
            write_atomically(part / CONFIG, config.encode())
            part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    write_atomically(folder / CONFIG, config.encode())
    sync_folder(repository)
    return folder / str(version)


def rollback(repository: Path, name: str) -> int:
    """Withdraw the served version of a model; the version that is served now.

    The withdrawn folder stays as ``<version>.withdrawn``; its number is never given again.

    Raises:
        UnknownModelError: no such model.
        ModelError: there is no earlier version.
    """
    folder = repository / name
    if not (folder / CONFIG).is_file():
        raise UnknownModelError(f"There is no model {name!r} in {repository}.")
    versions = _versions(folder)
    if len(versions) < 2:
        raise ModelError(f"Model {name} has no version before {versions[-1]}.", code="no_earlier_version")
    earlier = folder / str(versions[-2]) / CONFIG
    (folder / str(versions[-1])).rename(folder / f"{versions[-1]}{WITHDRAWN}")
    if earlier.is_file():
        write_atomically(folder / CONFIG, earlier.read_bytes())
    sync_folder(folder)
    return versions[-2]


def shipped_repository() -> Path:
    """The models that come with Hilum: in the wheel, or in the checkout it was installed from."""
    packaged = Path(str(files("hilum_inference"))) / "model_repository"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[2] / "model_repository"


def manifest_parameter(manifest: Manifest) -> str:
    """The manifest as the string that stands in ``config.pbtxt``."""
    return json.dumps(json.loads(manifest.to_json()), separators=(",", ":"), ensure_ascii=True)


def _fill(folder: Path, config: str, network_files: Mapping[str, bytes | Path]) -> None:
    folder.mkdir(parents=True)
    for name, content in network_files.items():
        data = content.read_bytes() if isinstance(content, Path) else content
        write_atomically(folder / name, data)
    write_atomically(folder / CONFIG, config.encode())


def _numbers(folder: Path) -> list[int]:
    """All version numbers ever given, withdrawn ones too."""
    if not folder.is_dir():
        return []
    names = [f.name.removesuffix(WITHDRAWN) for f in folder.iterdir() if f.is_dir()]
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def _versions(folder: Path) -> list[int]:
    names = [f.name for f in os.scandir(folder) if f.is_dir()]
    versions = sorted(int(name) for name in names if name.isascii() and name.isdigit() and name[0] != "0")
    if not versions:
        raise ModelError(f"Model {folder.name} has no version folder.", code="no_version")
    return versions


def _read_config(path: Path) -> Message:
    if path.stat().st_size > LARGEST_CONFIG:
        raise ModelError(f"{path.name} is larger than {LARGEST_CONFIG >> 20} MiB.", code="bad_config")
    try:
        return parse_pbtxt(path.read_text())
    except UnicodeDecodeError as error:
        raise ModelError(f"{path.name} is not text.", code="bad_config") from error


def _manifest_of(config: Message, folder: Path) -> Manifest:
    for parameter in config.get("parameters", []):
        if not isinstance(parameter, dict) or parameter.get("key") != [PARAMETER]:
            continue
        try:
            text = parameter["value"][0]["string_value"][0]
        except (KeyError, TypeError, IndexError) as error:
            raise ModelError(f"The parameter {PARAMETER} of {folder.name} has no text.", code="bad_config") from error
        return parse_manifest(str(text))
    raise ModelError(f"The config.pbtxt of {folder.name} has no parameter {PARAMETER}.", code="no_manifest")
