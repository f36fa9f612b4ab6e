"""The models of a running Triton, read from the Triton itself: a gateway in front of it needs nothing but its address.

The manifest of each model travels in its configuration. The networks stay on the server.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from hilum_inference.engines.triton.channel import CallError, Channel, parameter_of
from hilum_inference.errors import EngineError, ModelError, UnknownModelError
from hilum_inference.layout import DEFAULT_NETWORK, NETWORK_PARAMETER, VARIANT_PARAMETER, check_loaded
from hilum_inference.manifest import PARAMETER, parse_manifest
from hilum_inference.repository import Model, Repository, digest_of

READY = "READY"

log = logging.getLogger(__name__)


class RemoteRepository:
    """The models that a Triton has loaded; the verbs of ``Repository``.

    Each verb asks the server. Where it does not answer for a while, what it last said holds: whether a model can run is
    the engine's to say.

    Args:
        address: ``host:port`` of gRPC.
        variant: that the server must have been started with; models of which it serves another are refused. None: any.
        local: must hold each model with the same network in the variant that is served. None: the server is believed.
    """

    def __init__(self, address: str, variant: str | None = None, local: Repository | None = None) -> None:
        self._channel = Channel(address)
        self._variant = variant
        self._local = local
        self._loaded: dict[str, list[int]] = {}
        self._silent = False
        self._seen: dict[tuple[str, int], Model] = {}
        self.broken: dict[str, str] = {}

    def models(self) -> tuple[Model, ...]:
        """The newest loaded version of each model, by name. Models that are refused are in ``broken`` with the reason.

        Raises:
            EngineError: the server never answered.
        """
        found: list[Model] = []
        broken: dict[str, str] = {}
        for name, versions in sorted(self._index().items()):
            try:
                found.append(self._model(name, _newest(name, versions)))
            except ModelError as error:
                broken[name] = error.message
        self.broken = broken
        return tuple(found)

    def model(self, name: str | None = None, version: int | None = None) -> Model:
        """One model; without a name the only one for segmentation, without a version the newest that is loaded.

        Raises:
            UnknownModelError: none, or no such version, or several and no name.
            ModelError: it is there but refused.
            EngineError: the server never answered.
        """
        if name is None:
            name = self._default_name()
        loaded = self._index()
        if name not in loaded:
            raise UnknownModelError(f"Triton has no model {name!r}; it has {', '.join(sorted(loaded)) or 'none'}.")
        if version is not None and version not in loaded[name]:
            numbers = ", ".join(map(str, loaded[name])) or "none"
            raise UnknownModelError(f"Triton has not loaded version {version} of {name}; loaded: {numbers}.")
        return self._model(name, _newest(name, loaded[name]) if version is None else version)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def _default_name(self) -> str:
        names = [model.name for model in self.models() if model.manifest.task == "segmentation"]
        if len(names) == 1:
            return names[0]
        if not names:
            reasons = "; ".join(f"{name}: {why}" for name, why in self.broken.items())
            raise UnknownModelError(f"Triton has no model for segmentation. {reasons}".strip(), code="no_model")
        raise UnknownModelError(f"Name a model, there are several: {', '.join(names)}.", code="model_not_named")

    def _index(self) -> dict[str, list[int]]:
        """Loaded versions by name; none where a model is there but not loaded."""
        try:
            self._loaded = _versions(self._channel.index())
            self._silent = False
        except CallError as error:
            log.warning("Triton at %s does not list its models: %s", self._channel.address, error)
            if not self._loaded:
                raise _unknown(error) from error
            self._silent = True
        return self._loaded

    def _model(self, name: str, version: int) -> Model:
        if self._silent and (name, version) in self._seen:
            return self._seen[name, version]
        try:
            config = self._channel.config(name, version)
        except CallError as error:
            log.warning("Triton at %s does not describe %s %s: %s", self._channel.address, name, version, error)
            raise _unknown(error) from error
        model = _described(config, name, version, self._variant)
        if self._local is not None:
            model = _agreed(model, self._local)
        self._seen[name, version] = model
        return model


def _unknown(error: CallError) -> EngineError:
    if error.passes:
        return error.public()
    return EngineError("The inference server does not tell which models it has.", code="triton_unavailable")


def _versions(index: Sequence[Any]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for entry in index:
        numbers = found.setdefault(entry.name, [])
        if entry.state == READY:
            numbers.append(int(entry.version))
    return {name: sorted(numbers) for name, numbers in found.items()}


def _newest(name: str, versions: Sequence[int]) -> int:
    if not versions:
        raise ModelError(f"Triton has not loaded {name}; its log says why.", code="not_loaded")
    return versions[-1]


def _described(config: Any, name: str, version: int, wanted: str | None = None) -> Model:
    """A model from a ``ModelConfig``.

    Raises:
        ModelError: it is none of Hilum's, was changed since its export, or is another variant than is wanted: a Triton
            takes the default configuration without a word for a model that lacks the one it was started with.
    """
    text = parameter_of(config, PARAMETER)
    if not text:
        raise ModelError(f"The configuration of {name} has no parameter {PARAMETER}.", code="no_manifest")
    manifest = parse_manifest(text)
    if manifest.name != name:
        raise ModelError(f"The manifest names {manifest.name!r}, Triton calls it {name!r}.", code="bad_manifest")
    weights, preprocessing = manifest.digests.weights, manifest.preprocessing_digest()
    if not weights:
        raise ModelError(f"The manifest of {name} has no digest of its weights; export it again.", code="no_digest")
    if manifest.digests.preprocessing and manifest.digests.preprocessing != preprocessing:
        raise ModelError(f"The manifest of version {version} was changed since export.", code="changed_manifest")
    loaded = config.default_model_filename or DEFAULT_NETWORK
    files = {loaded, *config.cc_model_filenames.values()}
    check_loaded(name, parameter_of(config, NETWORK_PARAMETER) or loaded, files, config.backend)
    variant = parameter_of(config, VARIANT_PARAMETER)
    if wanted is not None and variant != wanted:
        served = f"the variant {variant}" if variant else "a configuration without a variant's name"
        raise UnknownModelError(f"Triton serves {served} of {name}, not {wanted}.", code="unknown_variant")
    return Model(manifest, version, None, None, digest_of(weights, manifest), variant)


def _agreed(served: Model, local: Repository) -> Model:
    """A served model as a folder holds it: its files are at hand, and those that the server says it runs.

    Raises:
        ModelError: the folder has no such model, version or variant, or one of another network.
    """
    try:
        held = local.model(served.name, served.version, served.variant or None)
    except OSError as error:
        raise ModelError(f"The files of {served.name} cannot be read: {error.strerror}.") from error
    if (held.digest, held.variant) != (served.digest, served.variant):
        raise ModelError(
            f"Triton serves another {served.name} {served.version} than the repository holds.", code="model_changed"
        )
    return held
