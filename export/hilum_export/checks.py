"""All that one file must prove beside the network that it was made from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hilum_export.diverge import Side, first_difference
from hilum_export.errors import GateError
from hilum_export.gates import BOUNDS, Gate, answers, head_arrays, head_gate, parity, torch_outputs
from hilum_export.noise import noise
from hilum_export.overflow import overflow_gates
from hilum_export.precision import Precision, Wire
from hilum_export.repository import LARGEST_BATCH
from hilum_export.rtx import rtx_gate
from hilum_export.runtimes import RUNTIMES, Outputs, Windows, onnxruntime
from hilum_export.structure import structure
from hilum_inference.manifest import Tensors
from hilum_search.network import Network
from hilum_search.to_onnx import FEATURES, IMAGE, LOGITS

TENSORS = Tensors(image=IMAGE, logits=LOGITS, features=FEATURES)


@dataclass(frozen=True)
class Checked:
    """One file and what was found.

    Attributes:
        precision: of its weights.
        path: of the file.
        sha256: of its content.
        gates: every check that was made; the ones behind a failed one may be missing.
        audit: what it is made of.
        why: where its answer first differs, if it does.
        backend: what runs it, where it is not an ONNX file.
        skipped: checks that could not be made here, a sentence each.
    """

    precision: Precision
    path: Path
    sha256: str
    gates: tuple[Gate, ...]
    audit: dict[str, Any]
    why: str = ""
    backend: str = ""
    skipped: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """``fp16``, or ``tensorrt-fp16``."""
        return f"{self.backend}-{self.precision}" if self.backend else self.precision

    @property
    def passed(self) -> bool:
        """Whether all did."""
        return all(gate.passed for gate in self.gates)

    @property
    def failure(self) -> str:
        """The first check that did not pass, and where the file first differs; nothing where all did."""
        failed = next((gate for gate in self.gates if not gate.passed), None)
        return "" if failed is None else f"{failed}.{self.why and ' ' + self.why}"

    def require(self) -> None:
        """Refuse where a check failed.

        Raises:
            GateError: naming it.
        """
        if not self.passed:
            raise GateError(f"The exported file failed a check: {self.failure} Nothing was published.")

    def with_gates(self, gates: Sequence[Gate]) -> Checked:
        """The same with more checks."""
        return replace(self, gates=(*self.gates, *gates))


@dataclass(frozen=True)
class Subject:
    """What files are compared with.

    Attributes:
        network: in FP32.
        channels: C.
        window: (D, H, W).
        stride: of the network.
        real: windows (N, C, D, H, W) of cases, as the network sees them; None where no cases are at hand.
        wire: type at the door of its FP16 file; the others take and give FP32.
    """

    network: Network
    channels: int
    window: tuple[int, int, int]
    stride: int = 1
    real: Windows | None = None
    wire: Wire = "fp32"

    @cached_property
    def made_up(self) -> tuple[Windows, Outputs]:
        """Made-up windows, and what the network answers to them."""
        windows = noise(self.channels, self.window)
        return windows, torch_outputs(self.network, windows)


def check(subject: Subject, precision: Precision, path: Path, full: Path) -> Checked:
    """Every check of one file, whatever it finds.

    Args:
        subject: the network.
        precision: of the file.
        path: of the file.
        full: of the FP32 file, where a difference is looked for.

    Raises:
        ExportError: the file is no sound ONNX.
    """
    found = structure(path, LARGEST_BATCH, precision, subject.wire if precision == "fp16" else "fp32")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    checked = Checked(precision, path, sha256, (_whole_window(subject), *found.gates), found.audit)
    if not checked.passed:
        return checked
    checked = checked.with_gates(_answers(subject, precision, path))
    if not checked.passed:
        return replace(checked, why=explained(full, path, noise(subject.channels, subject.window), precision))
    if precision == "fp16":
        real = subject.real is not None
        tried = noise(subject.channels, subject.window, 1) if subject.real is None else subject.real
        checked = checked.with_gates(overflow_gates(subject.network, tried, subject.stride, real=real))
    return checked if precision == "int8" else _compiled(checked, subject)


def explained(full: Path, path: Path, windows: Windows, precision: Precision) -> str:
    """The first layer on which a file differs from the FP32 one, or two runtimes on one file; a sentence or nothing."""
    bound = max(BOUNDS[precision].values())
    one = Side(full, onnxruntime)
    others = [Side(path, run) for run in RUNTIMES.values() if (path, run) != (full, onnxruntime)]
    found = (first_difference(one, other, windows, bound) for other in others)
    return next((str(each) for each in found if each is not None), "")


def _whole_window(subject: Subject) -> Gate:
    odd = sum(side % subject.stride != 0 for side in subject.window)
    return Gate("sides of the window that the stride does not divide", odd, 0, f"of 3, stride {subject.stride}")


def _answers(subject: Subject, precision: Precision, path: Path) -> list[Gate]:
    windows, truth = subject.made_up
    found = answers(path, windows)
    gates = list(parity(found, truth, TENSORS, precision))
    answer = truth if precision == "fp32" else found["onnxruntime"]
    gates.append(head_gate((answer[FEATURES], answer[LOGITS]), head_arrays(subject.network), precision))
    return gates


def _compiled(checked: Checked, subject: Subject) -> Checked:
    """With a strongly typed TensorRT build, where its compiler is installed."""
    gate = rtx_gate(checked.path, subject.channels, subject.window, LARGEST_BATCH)
    if gate is None:
        return replace(checked, skipped=(*checked.skipped, RTX_MISSING))
    return checked.with_gates([gate])


RTX_MISSING = (
    "TensorRT was not asked whether it can compile the network: install hilum[tensorrt-rtx], which needs no GPU."
)
