"""From a trained model's folder to a version in a Triton model repository; published only when every gate passed."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from hilum_export.errors import ExportError
from hilum_export.gates import Gate, head_arrays, head_gate, parity, require, torch_outputs
from hilum_export.noise import noise
from hilum_export.report import NAME as REPORT
from hilum_export.report import report
from hilum_export.repository import LARGEST_BATCH, NETWORK, config
from hilum_export.runtimes import Windows
from hilum_export.structure import Structure, structure
from hilum_export.verify import explained
from hilum_inference.manifest import Digests, Head, Manifest, Tensors
from hilum_inference.repository import publish
from hilum_search.architecture import to_json
from hilum_search.card import NAME as CARD
from hilum_search.card import card
from hilum_search.network import Network
from hilum_search.to_onnx import FEATURES, IMAGE, LOGITS, to_onnx
from hilum_search.trained import ARCHITECTURE, TRAINING, Trained, read_trained

TENSORS = Tensors(image=IMAGE, logits=LOGITS, features=FEATURES)


@dataclass(frozen=True)
class Exported:
    """A published version: its folder, its manifest, the gates it passed, the bytes of its network."""

    folder: Path
    manifest: Manifest
    gates: tuple[Gate, ...]
    bytes: int


def export(run: Path, repository: Path, network: Network | None = None) -> Exported:
    """Publish the trained model in ``run`` as the next version in ``repository``; an ensemble as one network.

    The record of the training, the architecture, the model card and the report of the checks travel with it.

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
    if not any(bool(p.detach().abs().max()) for p in trained.network.head.parameters()):
        raise ExportError("The network's last layer holds zeros only; train it before it is exported.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / NETWORK
        to_onnx(trained.network, len(trained.manifest.channels), trained.manifest.windows.size, path)
        checked = check(trained.network, path, noise(len(trained.manifest.channels), trained.manifest.windows.size))
        content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    manifest = complete(trained, digest)
    text = config(manifest, trained.network.head.in_channels)
    record = json.dumps(trained.training, indent=1).encode()
    files = {NETWORK: content, TRAINING: record, ARCHITECTURE: to_json(trained.architecture).encode()}
    files[CARD] = card(manifest, trained.training).encode()
    files[REPORT] = report(checked.gates, checked.audit, digest)
    version = publish(repository, manifest.name, text, files)
    return Exported(version, manifest, checked.gates, len(content))


def check(network: Network, path: Path, windows: Windows) -> Structure:
    """All that an exported file must prove beside the network that it was made from.

    Raises:
        GateError: a check failed; it names the first layer on which the runtimes differ, where they do.
        ExportError: the file is no sound ONNX.
    """
    found = structure(path, LARGEST_BATCH)
    require(found.gates)
    truth = torch_outputs(network, windows)
    head = head_gate(truth[FEATURES], truth[LOGITS], *head_arrays(network))
    gates = [*parity(path, windows, truth, TENSORS), head]
    require(gates, explained(path, windows, gates))
    return replace(found, gates=(*found.gates, *gates))


def complete(trained: Trained, weights_digest: str) -> Manifest:
    """The trained model's manifest with head, tensor names and digests."""
    head = Head.from_arrays(*head_arrays(trained.network))
    fields = trained.manifest.model_dump() | {"head": head.model_dump(), "tensors": TENSORS.model_dump()}
    manifest = Manifest.model_validate(fields)
    digests = Digests(weights=weights_digest, preprocessing=manifest.preprocessing_digest())
    return manifest.model_copy(update={"digests": digests})
