"""From an ONNX file to a TensorRT plan: strongly typed, with an explicit range of batches and one fixed window."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hilum_export.errors import EngineBuildError
from hilum_export.precision import Wire
from hilum_export.repository import Profile
from hilum_export.tensorrt_api import (
    Builder,
    Config,
    NetworkDefinition,
    Parser,
    ParserError,
    Shape,
    TensorRT,
    journal,
    member,
    plain,
)

COMPATIBILITY: Final[dict[str, str]] = {
    "none": "NONE",
    "ampere+": "AMPERE_PLUS",
    "same-cc": "SAME_COMPUTE_CAPABILITY",
}
"""Which other GPUs may run the plan -> TensorRT's name for it."""


@dataclass(frozen=True)
class Options:
    """How a plan is built.

    Attributes:
        workspace: bytes of scratch memory at most; None: all that the GPU has.
        compatibility: a key of COMPATIBILITY.
        version_compatible: whether later TensorRT versions may run it.
        timing_cache: what an earlier build kept; empty: nothing; None: keep nothing.
    """

    workspace: int | None = None
    compatibility: str = "none"
    version_compatible: bool = False
    timing_cache: bytes | None = None


@dataclass(frozen=True)
class Built:
    """A plan.

    Attributes:
        plan: its bytes.
        profile: the batches that it takes; a network with a fixed batch takes only that one.
        flags: TensorRT's names of what was switched on.
        wire: what it takes and gives: the types of the network's door.
        timing_cache: to keep; empty where it was not asked for.
    """

    plan: bytes
    profile: Profile
    flags: tuple[str, ...]
    wire: Wire = "fp32"
    timing_cache: bytes = b""


def build(
    library: TensorRT, path: Path, sample: tuple[int, int, int, int], profile: Profile, options: Options | None = None
) -> Built:
    """Build a plan.

    Args:
        library: ``tensorrt`` or ``tensorrt_rtx``.
        path: the ONNX file; its types are the plan's types.
        sample: channels, depth, height and width of one window.
        profile: the batches; ignored where the network fixes its batch.
        options: None: plain ones.

    Raises:
        EngineBuildError: TensorRT refused it; ``reasons`` has all that it said.
    """
    options = options or Options()
    with journal(library).listening() as errors:
        builder = library.Builder(journal(library).logger)
        typed = member(library, "NetworkDefinitionCreationFlag", "STRONGLY_TYPED")
        network = builder.create_network(0 if typed is None else 1 << int(typed))
        parser = library.OnnxParser(network, journal(library).logger)  # owns weights of the network
        _parse(parser, path)
        config = builder.create_builder_config()
        profile = _add_profile(builder, config, network, sample, profile)
        flags = ("STRONGLY_TYPED", *_configure(library, config, options))
        errors.clear()  # of measurements that were not of this GPU
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            said = errors[0] if errors else "it did not say why"
            raise EngineBuildError(f"TensorRT cannot build {path.name}: {said}.", errors)
        wire: Wire = "fp16" if network.get_input(0).dtype == member(library, "DataType", "HALF") else "fp32"
        return Built(bytes(memoryview(plan)), profile, flags, wire, _kept(config, options))


def _parse(parser: Parser, path: Path) -> None:
    if not path.is_file():
        raise EngineBuildError(f"There is no file {path}.")
    if parser.parse_from_file(str(path)) and not parser.num_errors:
        return
    reasons = [_reason(parser, parser.get_error(n)) for n in range(parser.num_errors)]
    reasons = reasons or ["it is no ONNX file that TensorRT can read"]
    raise EngineBuildError(f"TensorRT cannot read {path.name}: {reasons[0]}.", reasons)


def _reason(parser: Parser, error: ParserError) -> str:
    """What is wrong with which node."""
    operator = error.node_operator()
    if not operator:
        return plain(error.desc())
    where = f"{operator} {error.node_name()}".strip()
    return f"{where}: {plain(error.desc()) if parser.supports_operator(operator) else 'it knows no such operator'}"


def _add_profile(
    builder: Builder, config: Config, network: NetworkDefinition, sample: Shape, profile: Profile
) -> Profile:
    """Give the only input its shapes; the batches that the plan will take.

    TensorRT's Python functions accept contradictions in silence, so that everything is checked here.
    """
    if network.num_inputs != 1:
        raise EngineBuildError(f"The network has {network.num_inputs} inputs; it should take windows, nothing else.")
    image = network.get_input(0)
    batch, *window = image.shape
    if any(size not in (-1, wanted) for size, wanted in zip(window, sample, strict=True)):
        raise EngineBuildError(f"The network takes windows {tuple(window)}, the plan is to take {tuple(sample)}.")
    if batch != -1:
        profile = Profile(batch, batch, batch)
    batches = (profile.least, profile.usual, profile.most)
    if not 1 <= profile.least <= profile.usual <= profile.most:
        raise EngineBuildError(f"The batches {', '.join(map(str, batches))} are no range from least to most windows.")
    wanted = [(count, *sample) for count in batches]
    shapes = builder.create_optimization_profile()
    shapes.set_shape(image.name, *wanted)
    if [tuple(shape) for shape in shapes.get_shape(image.name)] != wanted or config.add_optimization_profile(
        shapes
    ) < 0:
        raise EngineBuildError(f"TensorRT refused a profile of {profile.least} to {profile.most} windows {sample}.")
    return profile


def _configure(library: TensorRT, config: Config, options: Options) -> tuple[str, ...]:
    """Set what was asked for; its names."""
    flags = []
    if options.workspace is not None:
        config.set_memory_pool_limit(_needed(library, "MemoryPoolType", "WORKSPACE"), options.workspace)
    if options.compatibility != "none":
        name = COMPATIBILITY[options.compatibility]
        config.hardware_compatibility_level = _needed(library, "HardwareCompatibilityLevel", name)
        flags.append(name)
    if options.version_compatible:
        config.set_flag(_needed(library, "BuilderFlag", "VERSION_COMPATIBLE"))
        flags.append("VERSION_COMPATIBLE")
    if options.timing_cache is not None:
        _set_timing_cache(config, options.timing_cache)
    return tuple(flags)


def _set_timing_cache(config: Config, content: bytes) -> None:
    """Go on from an earlier build's, or from nothing where that was of another GPU or TensorRT."""
    cache = config.create_timing_cache(content) or config.create_timing_cache(b"")
    if not config.set_timing_cache(cache, False) and not config.set_timing_cache(
        config.create_timing_cache(b""), False
    ):
        raise EngineBuildError("TensorRT does not take a timing cache here.")


def _needed(library: TensorRT, enumeration: str, name: str) -> Any:
    found = member(library, enumeration, name)
    if found is None:
        raise EngineBuildError(f"TensorRT {library.__version__} has no {enumeration}.{name}; it is too old or too new.")
    return found


def _kept(config: Config, options: Options) -> bytes:
    cache = None if options.timing_cache is None else config.get_timing_cache()
    return b"" if cache is None else bytes(memoryview(cache.serialize()))
