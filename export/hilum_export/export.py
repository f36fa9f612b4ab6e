"""From a trained model's folder to a version in a Triton model repository; published only when every gate passed."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hilum_export.bundle import write_bundle
from hilum_export.checks import TENSORS, Checked, Subject, check
from hilum_export.errors import ExportError
from hilum_export.gates import head_arrays
from hilum_export.held_out import Kept, dice_gates, kept_cases, real_windows
from hilum_export.precision import Precision, Wire, calibration_windows, to_half, to_int8
from hilum_export.report import NAME as REPORT
from hilum_export.report import report
from hilum_export.repository import NETWORKS, PROGRAM, config, configs
from hilum_export.runtimes import Windows
from hilum_inference.engines import EngineSettings, open_engine
from hilum_inference.manifest import Digests, Head, Manifest
from hilum_inference.repository import Model, publish
from hilum_search.architecture import to_json
from hilum_search.card import NAME as CARD
from hilum_search.card import card
from hilum_search.evaluate import Opened
from hilum_search.network import Network
from hilum_search.recipe import recipe_of
from hilum_search.to_onnx import to_onnx
from hilum_search.torch_engine import TorchEngine
from hilum_search.trained import ARCHITECTURE, TRAINING, WEIGHTS, Trained, read_trained
from hilum_search.trial import data_of

REAL_WINDOWS, REAL_VOXELS = 2, 2**20
"""Windows of real cases that the check for overflow looks at, and their voxels: torch takes seconds for a large one."""


@dataclass(frozen=True)
class Wishes:
    """What is to be published, and how it is judged.

    Attributes:
        precisions: of the files; FP32 is always among them.
        data: folder of the cases that the run was made from; None: none at hand.
        dice_gate: whether cases decide; False is written into the manifest.
        bundle: folder of a MONAI Bundle to be written, too; None: none.
        wire: what the FP16 file takes and gives.
        finish: sees the complete version before anybody else does, such as to sign it.
        report: hears what is being done.
        real: windows (N, C, D, H, W) as the network sees them, for the check for overflow where ``data`` is None.
        compared: whether another library's mask with the same network has decided already; written into the manifest.
    """

    precisions: tuple[Precision, ...] = ("fp32", "fp16")
    data: Path | None = None
    dice_gate: bool = True
    bundle: Path | None = None
    wire: Wire = "fp32"
    finish: Callable[[Path], None] | None = None
    report: Callable[[str], None] = lambda _: None
    real: Windows | None = None
    compared: bool = False


@dataclass(frozen=True)
class Exported:
    """A published version.

    Attributes:
        folder: of the version.
        manifest: of the FP32 network.
        files: those that were published, FP32 first.
        withheld: those that failed a check.
        kept: the cases that decided; None where none did.
    """

    folder: Path
    manifest: Manifest
    files: tuple[Checked, ...]
    withheld: tuple[Checked, ...] = ()
    kept: Kept | None = None

    @property
    def bytes(self) -> int:
        """Of the FP32 network."""
        return (self.folder / NETWORKS["fp32"]).stat().st_size


def export(run: Path, repository: Path, network: Network | None = None, wishes: Wishes | None = None) -> Exported:
    """Publish the trained model in ``run`` as the next version in ``repository``; an ensemble as one network.

    The record of the training, the architecture, the model card and the report of the checks travel with it. FP16 and
    INT8 are left out where one of their checks fails, and the report says why.

    Args:
        run: of a finished run, or of an ensemble.
        repository: made where missing.
        network: to load the weights into, where the architecture is the caller's own.
        wishes: what is to be published.

    Raises:
        DataError: ``run`` is no trained model, or the data is not the run's.
        GateError: the FP32 file does not compute what the network computes.
        ExportError: no data where data must decide; weights that answer nothing but zeros; a bundle that is there
            already, or that cannot say what the manifest does.
    """
    wishes = wishes or Wishes()
    trained = read_trained(run, network)
    _refuse(trained, repository, wishes)
    own, kept = _own(trained, run, wishes), None
    if wishes.data is not None:
        wishes.report("looking at the cases")
        kept = kept_cases(trained.training, data_of(wishes.data, None, run))
    with tempfile.TemporaryDirectory() as folder:
        files = _written(own, trained, wishes, kept, Path(folder))
        if wishes.dice_gate and kept is not None:
            files = _judged(own, trained, files, kept, wishes)
        if wishes.bundle is None:
            return _published(repository, trained, files, kept, wishes)
        write_bundle(trained, complete(trained, files[0].sha256), wishes.bundle)
        try:
            return _published(repository, trained, files, kept, wishes)
        except BaseException:  # both or none
            shutil.rmtree(wishes.bundle, ignore_errors=True)
            raise


def _refuse(trained: Trained, repository: Path, wishes: Wishes) -> None:
    """What is known before anything takes time."""
    if wishes.bundle is not None:
        if wishes.bundle.exists():
            raise ExportError(f"{wishes.bundle} is there already; name a folder that is not.")
        if wishes.bundle.resolve().is_relative_to(repository.resolve()):
            raise ExportError(f"{wishes.bundle} lies in the model repository; name a folder outside of it.")
        if not wishes.bundle.resolve().parent.is_dir():
            raise ExportError(f"There is no folder {wishes.bundle.resolve().parent} to write the bundle into.")
    if wishes.data is None and wishes.dice_gate:
        raise ExportError(
            "Nothing says yet that the exported network segments as the trained one does: name the folder of the cases "
            "(--data DIR), or publish without that check (--no-dice-gate), which hilum models will show.",
            code="no_dice_gate",
        )
    if "int8" in wishes.precisions and (wishes.data is None or not wishes.dice_gate):
        raise ExportError(
            "INT8 reads its ranges from real cases and is judged by its Dice on them alone: name their folder (--data "
            "DIR), and leave out --no-dice-gate.",
            code="no_cases",
        )
    if repository.exists() and not repository.is_dir():
        raise ExportError(f"{repository} is no folder; a model repository is one.")
    if not isinstance(trained.training.get("recipe"), dict):
        raise ExportError(f"The run's {TRAINING} holds no recipe; train again, or mend the file.")
    if wishes.wire == "fp16" and "fp16" not in wishes.precisions:
        raise ExportError("Only an FP16 file has FP16 at its door: publish FP16, too (--fp16).", code="no_half")
    if not any(bool(p.detach().abs().max()) for p in trained.network.head.parameters()):
        raise ExportError("The network's last layer holds zeros only; train it before it is exported.")


def _own(trained: Trained, run: Path, wishes: Wishes) -> Opened:
    """The network in torch, as it is scored; it needs its labels in the reference's ids where cases are at hand."""
    model = Model(trained.manifest, 0, run, run / WEIGHTS, "")
    labels = () if wishes.data is None else recipe_of(trained.training).labels
    return Opened(trained.manifest.name, model, TorchEngine(trained.manifest, trained.network), labels)


def _written(own: Opened, trained: Trained, wishes: Wishes, kept: Kept | None, folder: Path) -> list[Checked]:
    """The files, each with its checks; FP32 must pass them."""
    voxels = math.prod(trained.manifest.windows.size)
    real = (
        wishes.real if kept is None else real_windows(own, kept.cases, max(1, min(REAL_WINDOWS, REAL_VOXELS // voxels)))
    )
    channels, window = len(trained.manifest.channels), trained.manifest.windows.size
    subject = Subject(trained.network, channels, window, trained.architecture.stride, real, wishes.wire)
    full = folder / NETWORKS["fp32"]
    wishes.report("writing ONNX")
    to_onnx(trained.network, channels, window, full)
    files = []
    for precision, name in NETWORKS.items():
        if precision not in ("fp32", *wishes.precisions):
            continue
        path = folder / name
        if precision == "fp16":
            to_half(full, path, wishes.wire)
        elif precision == "int8" and kept is not None:
            wishes.report("reading the ranges of INT8")
            windows = real_windows(own, kept.learnt or kept.cases, calibration_windows(window))
            to_int8(full, path, [window[None] for window in windows])
        wishes.report(f"checking {precision.upper()}")
        files.append(check(subject, precision, path, full))
        if precision == "fp32":
            files[0].require()
    return files


def _judged(own: Opened, trained: Trained, files: Sequence[Checked], kept: Kept, wishes: Wishes) -> list[Checked]:
    """The files that passed, with what the cases say of them."""
    opened: dict[str, Opened] = {}
    for file in files:
        if file.passed:
            model = Model(complete(trained, file.sha256), 0, file.path.parent, file.path, file.sha256)
            opened[file.name] = replace(own, model=model, engine=open_engine(model, EngineSettings()))
    bound = recipe_of(trained.training).file.export.dice_drop
    found = dice_gates(own, opened, kept, bound, wishes.report)
    for each in opened.values():
        each.engine.close()
    judged = [file.with_gates(found.get(file.name, ())) for file in files]
    judged[0].require()
    return judged


def _published(
    repository: Path, trained: Trained, files: Sequence[Checked], kept: Kept | None, wishes: Wishes
) -> Exported:
    state = "compared" if wishes.compared else "skipped"
    if kept is not None and wishes.dice_gate:
        state = "passed" if kept.held_out else "on-training-cases"
    provenance = trained.manifest.provenance.model_copy(update={"dice_gate": state})
    trained = replace(trained, manifest=trained.manifest.model_copy(update={"provenance": provenance}))
    passed = [file for file in files if file.passed]
    manifest = complete(trained, files[0].sha256)
    features = trained.network.head.in_channels
    content: dict[str, bytes | Path] = {file.path.name: file.path for file in passed}
    content[PROGRAM] = Path(__file__).with_name("triton_model.py")
    content[TRAINING] = json.dumps(trained.training, indent=1).encode()
    content[ARCHITECTURE] = to_json(trained.architecture).encode()
    content[CARD] = card(manifest, trained.training).encode()
    content[REPORT] = report(files, files[0].passed, kept if wishes.dice_gate else None)
    networks = {file.precision: file.sha256 for file in passed}
    variants = configs(manifest, features, networks, wire=wishes.wire)
    text = config(manifest, features)
    version = publish(repository, manifest.name, text, content, variants=variants, finish=wishes.finish)
    withheld = tuple(file for file in files if not file.passed)
    return Exported(version, manifest, tuple(passed), withheld, kept)


def complete(trained: Trained, weights_digest: str) -> Manifest:
    """The trained model's manifest with head, tensor names and digests."""
    head = Head.from_arrays(*head_arrays(trained.network))
    fields = trained.manifest.model_dump() | {"head": head.model_dump(), "tensors": TENSORS.model_dump()}
    manifest = Manifest.model_validate(fields)
    digests = Digests(weights=weights_digest, preprocessing=manifest.preprocessing_digest())
    return manifest.model_copy(update={"digests": digests})
