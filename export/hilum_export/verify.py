"""``hilum verify``: the checks of a published model once more, on this machine and with these versions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hilum_export.checks import RTX_MISSING, Checked, explained
from hilum_export.configurations import configuration_gates
from hilum_export.errors import ExportError
from hilum_export.gates import head_gate, parity
from hilum_export.held_out import Kept, dice_gates, kept_cases, real_windows
from hilum_export.noise import BATCH, noise
from hilum_export.precision import Precision, Wire
from hilum_export.report import report
from hilum_export.repository import LARGEST_BATCH, NETWORKS, TYPES
from hilum_export.rtx import rtx_gate
from hilum_export.runtimes import RUNTIMES, Outputs, Windows, onnxruntime
from hilum_export.structure import Structure, structure
from hilum_export.tensorrt import find_model
from hilum_export.tensorrt_engine import TensorRTEngine, engine_gates, open_plan
from hilum_inference.engines import EngineSettings, open_engine
from hilum_inference.layout import config_file
from hilum_inference.pbtxt import parse_pbtxt
from hilum_inference.repository import CONFIG, Model, Repository
from hilum_search.evaluate import Opened
from hilum_search.recipe import recipe_of
from hilum_search.trained import TRAINING, read_training
from hilum_search.trial import data_of


@dataclass(frozen=True)
class Verified:
    """What was found.

    Attributes:
        model: the model in FP32.
        files: each precision's file with its checks.
        report: all of it as JSON.
    """

    model: Model
    files: tuple[Checked, ...]
    report: bytes

    @property
    def passed(self) -> bool:
        """Whether all did."""
        return all(file.passed for file in self.files)


def verify(
    folder: Path,
    version: int | None = None,
    data: Path | None = None,
    *,
    engine: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Verified:
    """Check a model of a repository: its digests, its structure, and the runtimes against each other.

    The network that it was exported from is not there any more: ONNX Runtime's answer in FP32 is taken for the truth.

    Args:
        folder: of the model.
        version: None: the one that is served.
        data: folder of the cases that the run was made from: FP16, INT8 and the plan are judged on them again.
        engine: check this machine's TensorRT plan, too.
        say: hears of each case.

    Raises:
        ExportError: no model there, or no sound ONNX file.
        ModelError: it was changed since its export.
        DataError: the data is not the run's.
        NoGpuError: a plan is to be checked, and there is no GPU or no TensorRT here.
    """
    if not (folder / CONFIG).is_file():
        raise ExportError(f"There is no model in {folder}: it has no {CONFIG}. Name a model's folder in a repository.")
    folder = folder.resolve()
    model = Repository([folder.parent]).model(folder.name, version)
    plan = open_plan(find_model(folder, version)) if engine else None  # first: where there is no GPU, at once
    try:
        models = _models(folder, model)
        found = [_checked(each, precision, model) for precision, each in models.items()]
        found[0] = found[0].with_gates(configuration_gates(folder, model))
        if plan is not None:
            found.append(_planned(folder, model, plan))
        kept = None
        if data is not None and all(file.passed for file in found):
            kept, found = _judged(models, found, data, plan, say)
    finally:
        if plan is not None:
            plan.close()
    return Verified(model, tuple(found), report(found, all(file.passed for file in found), kept))


def _models(folder: Path, model: Model) -> dict[Precision, Model]:
    """The model in every precision that was published, FP32 first."""
    models: dict[Precision, Model] = {"fp32": model}
    for precision in NETWORKS:
        variant = next((each for each in model.variants if each.endswith(f"-{precision}")), None)
        if precision != "fp32" and variant is not None:
            models[precision] = Repository([folder.parent], variant).model(model.name, model.version)
    return models


def _checked(model: Model, precision: Precision, full: Model) -> Checked:
    """One file; where its structure is unsound nothing runs it: a runtime might follow a path that leads elsewhere."""
    path = model.onnx()
    found = structure(path, LARGEST_BATCH, precision, _wire(model))
    checked = Checked(precision, path, model.manifest.digests.weights, found.gates, found.audit)
    if not checked.passed:
        return checked
    manifest, tensors = model.manifest, model.manifest.tensors
    windows = noise(len(manifest.channels), manifest.windows.size, found.batch)
    answer = _answered(model, windows)
    truth = answer if model is full else _answered(full, windows)
    gates = list(
        parity({"onnxruntime": answer, "openvino": RUNTIMES["openvino"](path, windows)}, truth, tensors, precision)
    )
    if manifest.head is not None and tensors.features is not None:
        outputs = answer[tensors.features], answer[tensors.logits]
        gates.append(head_gate(outputs, manifest.head.arrays(), precision))
    checked = checked.with_gates(gates)
    if not checked.passed:
        return replace(checked, why=explained(full.onnx(), path, windows, precision))
    return checked if precision == "int8" else _compiled(checked, model, found)


def _wire(model: Model) -> Wire:
    """What its configuration promises of its door; a client sends that."""
    variant = model.variant if model.variant in model.variants else None
    path = config_file(model.onnx().parent.parent, model.version, variant)
    inputs = parse_pbtxt(path.read_text(encoding="utf-8")).get("input", [{}])
    return "fp16" if inputs[0].get("data_type") == [TYPES["fp16"]] else "fp32"


def _compiled(checked: Checked, model: Model, found: Structure) -> Checked:
    largest = found.fixed_batch or LARGEST_BATCH
    gate = rtx_gate(checked.path, len(model.manifest.channels), model.manifest.windows.size, largest)
    return replace(checked, skipped=(RTX_MISSING,)) if gate is None else checked.with_gates([gate])


def _planned(folder: Path, model: Model, plan: TensorRTEngine) -> Checked:
    """This machine's plan beside the networks that it was built from."""
    windows = noise(len(model.manifest.channels), model.manifest.windows.size)
    digest = hashlib.sha256(plan.path.read_bytes()).hexdigest()
    return Checked("fp16", plan.path, digest, engine_gates(folder, model.version, windows), {}, backend="tensorrt")


def _judged(
    models: Mapping[Precision, Model],
    files: Sequence[Checked],
    data: Path,
    plan: TensorRTEngine | None,
    say: Callable[[str], None],
) -> tuple[Kept, list[Checked]]:
    """The other precisions, and the plan, on the run's cases, against FP32."""
    full = models["fp32"]
    record = full.onnx().with_name(TRAINING)
    if not record.is_file():
        raise ExportError(f"{full.name} has no {TRAINING}: nobody knows which cases it was held back from.")
    training = read_training(record)
    if "imported" in training:
        raise ExportError(f"{full.name} was imported: its record holds no cases to judge it on; leave out --data.")
    recipe = recipe_of(training)
    opened = {
        str(precision): Opened(model.name, model, open_engine(model, EngineSettings()), recipe.labels)
        for precision, model in models.items()
    }
    if plan is not None:
        opened["tensorrt-fp16"] = Opened(full.name, full, plan, recipe.labels)
    kept = kept_cases(training, data_of(data, recipe, record.parent))
    own = opened.pop("fp32")
    gates = dice_gates(own, opened, kept, recipe.file.export.dice_drop, say)
    if plan is not None:
        windows = real_windows(own, kept.cases, BATCH)
        folder = record.parents[1]
        gates["tensorrt-fp16"] += engine_gates(folder, full.version, windows, real=True)
    for each in (own, *opened.values()):
        each.engine.close()
    return kept, [file.with_gates(gates.get(file.name, ())) for file in files]


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
