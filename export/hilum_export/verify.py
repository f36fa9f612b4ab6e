"""``hilum verify``: the checks of a published model once more, on this machine and with these versions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hilum_export.diverge import Side, first_difference
from hilum_export.errors import ExportError
from hilum_export.gates import BOUNDS, Gate, head_gate, parity
from hilum_export.noise import noise
from hilum_export.report import report
from hilum_export.repository import LARGEST_BATCH
from hilum_export.runtimes import RUNTIMES, Outputs, Windows, onnxruntime
from hilum_export.structure import structure
from hilum_inference.repository import CONFIG, Model, Repository


@dataclass(frozen=True)
class Verified:
    """What was found.

    Attributes:
        model: the model.
        gates: every check.
        why: where the runtimes first differ, if they do.
        report: all of it as JSON.
    """

    model: Model
    gates: tuple[Gate, ...]
    why: str
    report: bytes

    @property
    def passed(self) -> bool:
        """Whether all did."""
        return all(gate.passed for gate in self.gates)


def verify(folder: Path, version: int | None = None) -> Verified:
    """Check a model of a repository: its digests, its structure, and the runtimes against each other.

    The network that it was exported from is not there any more, so ONNX Runtime's answer is taken for the truth.

    Args:
        folder: of the model.
        version: None: the one that is served.

    Raises:
        ExportError: no model there, or no sound ONNX file.
        ModelError: it was changed since its export.
    """
    if not (folder / CONFIG).is_file():
        raise ExportError(f"There is no model in {folder}: it has no {CONFIG}. Name a model's folder in a repository.")
    model = Repository([folder.resolve().parent]).model(folder.resolve().name, version)
    found = structure(model.onnx(), LARGEST_BATCH)
    gates = list(found.gates)
    why = ""
    if all(gate.passed for gate in gates):  # else a runtime might follow a path that leads elsewhere
        manifest, tensors = model.manifest, model.manifest.tensors
        windows = noise(len(manifest.channels), manifest.windows.size, found.batch)
        truth = _answered(model, windows)
        gates += parity(model.onnx(), windows, truth, tensors)
        if manifest.head is not None and tensors.features is not None:
            gates.append(head_gate(truth[tensors.features], truth[tensors.logits], *manifest.head.arrays()))
        why = explained(model.onnx(), windows, gates)
    told = report(gates, found.audit, model.manifest.digests.weights, why)
    return Verified(model, tuple(gates), why, told)


def _answered(model: Model, windows: Windows) -> Outputs:
    """ONNX Runtime's answer, with every tensor that the manifest names.

    Raises:
        ExportError: the network does not take the manifest's window, or lacks one of its outputs.
    """
    try:
        found = onnxruntime(model.onnx(), windows)
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise ExportError(f"ONNX Runtime cannot run {model.name} on windows of its manifest: {reason}") from error
    for name in (model.manifest.tensors.logits, model.manifest.tensors.features):
        if name is not None and name not in found:
            raise ExportError(f"The network of {model.name} has no output {name!r}, which its manifest names.")
    return found


def explained(path: Path, windows: Windows, gates: Sequence[Gate]) -> str:
    """Where the runtimes part, in a sentence; nothing where all agree."""
    if all(gate.passed for gate in gates):
        return ""
    one, other = (Side(path, run) for run in RUNTIMES.values())
    where = first_difference(one, other, windows, max(BOUNDS.values()))
    return "" if where is None else str(where)
