"""A Triton model repository, read without Triton; ``layout`` says where its files lie.

The highest numeric version is served, as Triton's default policy does. Each version keeps its own configurations, so
that manifest and network always belong together, also in the middle of a publication or a roll-back.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from hilum_inference.errors import EngineError, ModelError, UnknownModelError
from hilum_inference.layout import (
    CONFIG,
    checked_variant,
    config_file,
    home_of_configs,
    manifest_of,
    network_name,
    read_config,
    variants,
    versions,
)
from hilum_inference.manifest import Manifest
from hilum_inference.publication import publish, rollback
from hilum_inference.signed import Signatures

__all__ = ["CONFIG", "Model", "Repository", "manifest_parameter", "publish", "rollback", "shipped_repository"]


@dataclass(frozen=True)
class Model:
    """One version of a model, checked.

    Attributes:
        manifest: what it is.
        version: the number of its folder.
        folder: the model's folder; None where only a Triton has the files.
        network: the ONNX file of the variant; None likewise.
        digest: SHA-256 over network and preprocessing: equal digests give equal masks on one machine.
        variant: ``<back-end>-<precision>``, as its configuration names it; empty where that names none.
        variants: all that the version has by name, where the files are at hand.
    """

    manifest: Manifest
    version: int
    folder: Path | None
    network: Path | None
    digest: str
    variant: str = ""
    variants: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The model's name."""
        return self.manifest.name

    @property
    def backend(self) -> str:
        """What the variant is for: ``onnxruntime``, ``onnxruntime-trt``, ``tensorrt``, ``python``; or nothing."""
        return self.variant.rpartition("-")[0]

    def onnx(self) -> Path:
        """The file that an engine of this process can run.

        Raises:
            EngineError: there is none: a Triton must run it.
        """
        if self.backend == "tensorrt":
            raise EngineError(
                f"The variant {self.variant} of {self.name} runs in a Triton alone: put a gateway in front of one "
                "(hilum serve --triton), or take a variant of another back-end.",
                code="needs_triton",
            )
        if self.network is None:
            raise EngineError(
                f"The files of {self.name} are not at hand: only the Triton that has them can run it.",
                code="needs_triton",
            )
        return self.network


class Repository:
    """The models of several folders; an earlier folder wins where two have a model of one name, broken or not.

    ``models`` and ``model`` look at the disk each time, so that a publication is seen at once; a network is hashed
    again only when its file changed.

    Args:
        folders: of models.
        variant: read this variant of every model, and refuse models without it; None: the default configuration.
        signed_by: public key; refuse versions that were not signed with its other half. None: do not look.
    """

    def __init__(self, folders: Sequence[Path], variant: str | None = None, signed_by: Path | None = None) -> None:
        self._folders = tuple(folders)
        self._variant = variant
        self._signatures = None if signed_by is None else Signatures(signed_by)
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
                found[folder.name] = self._load(folder, versions(folder)[-1])
            except ModelError as error:
                self.broken[folder.name] = error.message
            except OSError as error:
                self.broken[folder.name] = f"It cannot be read: {error.strerror}."
        return tuple(found[name] for name in sorted(found))

    def model(self, name: str | None = None, version: int | None = None, variant: str | None = None) -> Model:
        """One model; without a name the only one for segmentation, without a version the served one.

        ``variant`` is read in place of the repository's own.

        Raises:
            UnknownModelError: none, or no such version, or several and no name.
            ModelError: it is there but refused.
        """
        if name is None:
            name = self._default_name()
        folder = next((f for f in self._model_folders() if f.name == name), None)
        if folder is None:
            names = ", ".join(sorted({f.name for f in self._model_folders()})) or "none"
            raise UnknownModelError(f"There is no model {name!r}; known: {names}.")
        known = versions(folder)
        if version is not None and version not in known:
            raise UnknownModelError(f"Model {name} has no version {version}; it has {', '.join(map(str, known))}.")
        return self._load(folder, known[-1] if version is None else version, variant)

    def broken_variants(self, model: Model) -> dict[str, str]:
        """Variants of a model whose files are missing or were changed, and why."""
        found = {}
        for variant in model.variants:
            try:
                self.model(model.name, model.version, variant)
            except ModelError as error:
                found[variant] = error.message
        return found

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

    def _load(self, folder: Path, version: int, variant: str | None = None) -> Model:
        wanted = variant or self._variant
        if self._signatures is not None:
            self._signatures.check(folder / str(version))
            if home_of_configs(folder, version) == folder:
                raise ModelError(
                    f"Version {version} of {folder.name} has no {CONFIG} of its own: its manifest is not signed.",
                    code="unsigned_model",
                )
        config = read_config(config_file(folder, version, wanted))
        manifest = manifest_of(config, folder.name)
        variant = checked_variant(config, folder.name, wanted)
        network = folder / str(version) / network_name(config, folder.name)
        if not network.is_file():
            raise ModelError(f"Version {version} has no file {network.name}.", code="missing_network")
        weights = self._hash(network)
        if manifest.digests.weights and manifest.digests.weights != weights:
            raise ModelError(f"{network.name} of version {version} was changed since export.", code="changed_network")
        preprocessing = manifest.preprocessing_digest()
        if manifest.digests.preprocessing and manifest.digests.preprocessing != preprocessing:
            raise ModelError(f"The manifest of version {version} was changed since export.", code="changed_manifest")
        return Model(
            manifest, version, folder, network, digest_of(weights, manifest), variant, variants(folder, version)
        )

    def _hash(self, path: Path) -> str:
        seen = path.stat()
        key = (path, seen.st_mtime_ns, seen.st_size)
        if key not in self._hashes:
            with path.open("rb") as file:
                self._hashes[key] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._hashes[key]


def digest_of(weights: str, manifest: Manifest) -> str:
    """The digest of a model: over the SHA-256 of its network and over what its manifest decides."""
    return hashlib.sha256(f"{weights} {manifest.preprocessing_digest()}".encode()).hexdigest()


def shipped_repository() -> Path:
    """The models that come with Hilum: in the wheel, or in the checkout it was installed from."""
    packaged = Path(str(files("hilum_inference"))) / "model_repository"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[2] / "model_repository"


def manifest_parameter(manifest: Manifest) -> str:
    """The manifest as the string that stands in ``config.pbtxt``."""
    return json.dumps(json.loads(manifest.to_json()), separators=(",", ":"), ensure_ascii=True)
