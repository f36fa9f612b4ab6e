"""From a trained model's folder to a version in a Triton model repository; published only when every gate passed."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hilum_export.errors import ExportError
from hilum_export.gates import Gate, Windows, check, head_arrays
from hilum_export.repository import NETWORK, config
from hilum_inference.manifest import Digests, Head, Manifest, Tensors
from hilum_inference.repository import publish
from hilum_search.architecture import to_json
from hilum_search.card import NAME as CARD
from hilum_search.card import card
from hilum_search.network import Network
from hilum_search.to_onnx import FEATURES, IMAGE, LOGITS, to_onnx
from hilum_search.trained import ARCHITECTURE, TRAINING, Trained, read_trained

GATE_BATCH = 2
"""Windows in the gates' batch: one would not show a batch axis that was frozen."""


@dataclass(frozen=True)
class Exported:
    """A published version: its folder, its manifest, the gates it passed, the bytes of its network."""

    folder: Path
    manifest: Manifest
    gates: tuple[Gate, ...]
    bytes: int


def export(run: Path, repository: Path, network: Network | None = None) -> Exported:
    """Publish the trained model in ``run`` as the next version in ``repository``; an ensemble as one network.

    The record of the training, the architecture and the model card travel with it.

    Args:
        run: of a finished run, or of an ensemble.
        repository: made where missing.
        network: to load the weights into, where the architecture is the caller's own.

    Raises:
        DataError: ``run`` is no trained model.
        GateError: the exported file does not compute what the network computes.
        ExportError: the trained weights answer nothing but zeros, so that nothing can be compared.
    """
    trained = read_trained(run, network)
    windows = _noise(trained)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / NETWORK
        to_onnx(trained.network, len(trained.manifest.channels), trained.manifest.windows.size, path)
        gates = check(trained.network, path, windows)
        content = path.read_bytes()
    manifest = complete(trained, hashlib.sha256(content).hexdigest())
    text = config(manifest, trained.network.head.in_channels)
    record = json.dumps(trained.training, indent=1).encode()
    files = {NETWORK: content, TRAINING: record, ARCHITECTURE: to_json(trained.architecture).encode()}
    files[CARD] = card(manifest, trained.training).encode()
    version = publish(repository, manifest.name, text, files)
    return Exported(version, manifest, gates, len(content))


def complete(trained: Trained, weights_digest: str) -> Manifest:
    """The trained model's manifest with head, tensor names and digests."""
    head = Head.from_arrays(*head_arrays(trained.network))
    tensors = Tensors(image=IMAGE, logits=LOGITS, features=FEATURES)
    fields = trained.manifest.model_dump() | {"head": head.model_dump(), "tensors": tensors.model_dump()}
    manifest = Manifest.model_validate(fields)
    digests = Digests(weights=weights_digest, preprocessing=manifest.preprocessing_digest())
    return manifest.model_copy(update={"digests": digests})


def _noise(trained: Trained) -> Windows:
    """Windows that look like the network's input: smooth shapes and noise in the range of its intensity rule."""
    shape = (GATE_BATCH, len(trained.manifest.channels), *trained.manifest.windows.size)
    if not any(bool(p.detach().abs().max()) for p in trained.network.head.parameters()):
        raise ExportError("The network's last layer holds zeros only; train it before it is exported.")
    chance = np.random.default_rng(0)
    waves = np.sin(np.indices(shape).sum(0) / 7.0)
    return np.asarray(0.5 + 0.3 * waves + 0.1 * chance.standard_normal(shape), dtype=np.float32)
