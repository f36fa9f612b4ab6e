"""``hilum build-engine``: a published network made into a TensorRT plan, on the machine that will serve it.

The plan lies beside the network, named after the GPU's compute capability, so that one repository serves several kinds
of GPU; Triton finds it through ``cc_model_filenames``.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final, cast

from hilum_export.engine_manifest import EngineManifest, Here, digest, now, write_manifest
from hilum_export.errors import EngineBuildError, ExportError, NoGpuError
from hilum_export.gpu import Cuda
from hilum_export.repository import NETWORKS, Profile, plan_name
from hilum_export.tensorrt_api import TensorRT, load
from hilum_export.tensorrt_build import Built, Options, build
from hilum_inference.errors import UnknownModelError
from hilum_inference.files import write_atomically
from hilum_inference.layout import CONFIG, CONFIGS, SUFFIX, config_file
from hilum_inference.repository import Model, Repository
from hilum_inference.signed import SIGNATURE
from hilum_inference.staging import locked

VARIANT: Final = "tensorrt-fp16"
OLDEST: Final = (10, 12)
"""TensorRT that builds strongly typed networks as 11 does."""
NO_TENSORRT: Final = (
    "TensorRT's Python package is not installed here. On the machine that will serve the model, install the version "
    "that its Triton contains (pip install tensorrt), then run the same command there."
)


@dataclass(frozen=True)
class Host:
    """What builds and runs plans: the TensorRT module and a GPU."""

    library: TensorRT
    cuda: Cuda

    @property
    def here(self) -> Here:
        """As records of plans have it."""
        return Here(self.library.__version__, self.cuda.gpu)


@dataclass(frozen=True)
class Engine:
    """A plan that was built: where it lies, and its record."""

    plan: Path
    manifest: EngineManifest


def host() -> Host:
    """This machine's.

    Raises:
        NoGpuError: it has no GPU, or no TensorRT.
        EngineBuildError: its TensorRT is too old.
    """
    cuda = Cuda()
    try:
        library = cast(TensorRT, import_module("tensorrt"))
    except (ImportError, OSError) as error:
        raise NoGpuError(NO_TENSORRT) from error
    version = tuple(int(part) for part in library.__version__.split(".")[:2] if part.isdecimal())
    if version < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise EngineBuildError(f"Here is TensorRT {library.__version__}; strongly typed plans need {oldest} or newer.")
    return Host(library, cuda)


def plan_file(folder: Path, version: int, capability: str) -> Path:
    """Where the plan of a version for a kind of GPU lies."""
    return folder / str(version) / plan_name(capability)


def find_model(folder: Path, version: int | None) -> Model:
    """The published FP16 network of a model, its digests checked.

    Raises:
        ExportError: no model there, or it has no FP16.
        ModelError: it was changed since its export.
    """
    if not (folder / CONFIG).is_file():
        raise ExportError(f"There is no model in {folder}: it has no {CONFIG}. Name a model's folder in a repository.")
    folder = folder.resolve()
    try:
        return Repository([folder.parent], VARIANT).model(folder.name, version)
    except UnknownModelError as error:
        if error.code != "unknown_variant":
            raise
        raise ExportError(
            f"{folder.name} was published without {NETWORKS['fp16']}, from which plans are built; export it in FP16."
        ) from error


def build_engine(
    machine: Host,
    model: Model,
    usual: int | None = None,
    most: int | None = None,
    options: Options | None = None,
    timing_cache: Path | None = None,
) -> Engine:
    """Build the plan of a model for this machine's GPU and write it, its record and the kept measurements.

    Args:
        machine: TensorRT and GPU.
        model: of ``find_model``.
        usual: windows that the plan is tuned for; None: as many as Triton may put together.
        most: windows that it takes at most; None: likewise.
        options: how to build it.
        timing_cache: file of measurements; None: beside the plan.

    Raises:
        EngineBuildError: TensorRT refused the network or the batches, or cannot load what it built.
    """
    network = network_of(model)
    folder = network.parent.parent
    profile = _profile(folder, model.version, usual, most)
    plan = plan_file(folder, model.version, machine.cuda.gpu.capability)
    cache = timing_cache or plan.with_suffix(".timing")
    options = _with_cache(options or Options(), cache)
    sample = (len(model.manifest.channels), *model.manifest.windows.size)
    machine.cuda.use()
    built = build(machine.library, network, sample, profile, options)
    load(machine.library, built.plan, options.version_compatible)
    manifest = _manifest(machine, network, built, sample, options)
    with locked(folder.parent):
        write_atomically(plan, built.plan)
        write_manifest(plan, manifest)
        if built.timing_cache:
            write_atomically(cache, built.timing_cache)
        name_plan(folder, model.version, machine.cuda.gpu.capability)
    return Engine(plan, manifest)


def name_plan(folder: Path, version: int, capability: str) -> None:
    """Tell Triton the plan's name, in the model's configuration and in the version's own.

    ``hilum export`` names those of all GPUs that it knows; a signed version stays as it was signed.
    """
    own = folder / str(version)
    homes = [folder] if (own / SIGNATURE).exists() else [folder, own]
    for home in homes:
        path = home / CONFIGS / f"{VARIANT}{SUFFIX}"
        if path.is_file():
            config = _read(path)
            if capability not in config.cc_model_filenames:
                config.cc_model_filenames[capability] = plan_name(capability)
                write_atomically(path, _text(config))


def network_of(model: Model) -> Path:
    """The ONNX file of a model whose files are at hand; its plans lie beside it.

    Raises:
        ExportError: only a Triton has them.
    """
    if model.network is None:
        raise ExportError(f"The files of {model.name} are not at hand.")
    return model.network


def _profile(folder: Path, version: int, usual: int | None, most: int | None) -> Profile:
    """The batches; Triton refuses a plan that takes fewer than it may put together."""
    largest = int(_read(config_file(folder, version, VARIANT)).max_batch_size)
    most = largest if most is None else most
    if most < largest:
        raise EngineBuildError(f"Triton may put {largest} windows together; a plan for {most} would not be loaded.")
    usual = largest if usual is None else usual
    if not 1 <= usual <= most:
        raise EngineBuildError(f"A plan for 1 to {most} windows cannot be tuned for {usual}.")
    return Profile(1, usual, most)


def _with_cache(options: Options, path: Path) -> Options:
    content = path.read_bytes() if path.is_file() else b""
    return Options(options.workspace, options.compatibility, options.version_compatible, content)


def _manifest(
    machine: Host, network: Path, built: Built, sample: tuple[int, int, int, int], options: Options
) -> EngineManifest:
    import hashlib

    return EngineManifest(
        onnx=network.name,
        onnx_sha256=digest(network),
        plan_sha256=hashlib.sha256(built.plan).hexdigest(),
        tensorrt=machine.library.__version__,
        gpu=machine.cuda.gpu,
        profile=built.profile,
        window=sample,
        flags=built.flags,
        compatibility=options.compatibility,
        version_compatible=options.version_compatible,
        created=now(),
        wire=built.wire,
    )


def _read(path: Path) -> Any:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as triton

    return text_format.Parse(path.read_text(encoding="utf-8"), triton.ModelConfig())


def _text(config: Any) -> bytes:
    from google.protobuf import text_format

    return str(text_format.MessageToString(config)).encode()
