"""What is used of TensorRT's Python API, and nothing more: ``tensorrt`` and ``tensorrt_rtx`` both offer it.

The module is handed in, so that the code that builds plans on a GPU host runs in the tests with TensorRT-RTX, which
parses and builds on a CPU.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from hilum_export.errors import EngineBuildError

Shape = tuple[int, ...]


class Tensor(Protocol):
    """An input of a network."""

    name: str
    shape: Sequence[int]
    dtype: Any


class NetworkDefinition(Protocol):
    """A network as TensorRT sees it."""

    num_inputs: int

    def get_input(self, index: int) -> Tensor:
        """One input."""
        ...


class ParserError(Protocol):
    """Why a node could not be read."""

    def desc(self) -> str:
        """In TensorRT's words."""
        ...

    def node_name(self) -> str:
        """Of the node at fault."""
        ...

    def node_operator(self) -> str:
        """Of the node at fault."""
        ...


class Parser(Protocol):
    """Reads ONNX into a network."""

    num_errors: int

    def parse_from_file(self, path: str) -> bool:
        """Whether all of it was read."""
        ...

    def get_error(self, index: int) -> ParserError:
        """One error."""
        ...

    def supports_operator(self, name: str) -> bool:
        """Whether it knows an ONNX operator."""
        ...


class Shapes(Protocol):
    """Ranges of the inputs' shapes."""

    def set_shape(self, name: str, least: Shape, best: Shape, most: Shape) -> None:
        """Of one input; nothing is said where they contradict each other."""
        ...

    def get_shape(self, name: str) -> Sequence[Sequence[int]]:
        """The three shapes."""
        ...


class TimingCache(Protocol):
    """What was measured of kernels."""

    def serialize(self) -> Any:
        """As a buffer."""
        ...


class Config(Protocol):
    """How to build."""

    hardware_compatibility_level: Any

    def add_optimization_profile(self, profile: Shapes) -> int:
        """Its number; negative where it is refused."""
        ...

    def set_flag(self, flag: Any) -> None:
        """Switch something on."""
        ...

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        """Bytes of a pool at most."""
        ...

    def create_timing_cache(self, content: bytes) -> TimingCache | None:
        """From what an earlier build kept; None where it is no cache."""
        ...

    def set_timing_cache(self, cache: TimingCache | None, ignore_mismatch: bool) -> bool:
        """Whether it fits this GPU and this TensorRT."""
        ...

    def get_timing_cache(self) -> TimingCache | None:
        """With what this build added."""
        ...


class Builder(Protocol):
    """Makes plans."""

    def create_network(self, flags: int) -> NetworkDefinition:
        """An empty one."""
        ...

    def create_optimization_profile(self) -> Shapes:
        """An empty one."""
        ...

    def create_builder_config(self) -> Config:
        """TensorRT's defaults."""
        ...

    def build_serialized_network(self, network: NetworkDefinition, config: Config) -> Any:
        """The plan as a buffer; None where it failed."""
        ...


class TensorRT(Protocol):
    """The module ``tensorrt``, or ``tensorrt_rtx``.

    Enumerations are asked for by name, as members come and go between versions.
    """

    __version__: str
    ILogger: Any
    Runtime: Any
    BuilderFlag: Any
    MemoryPoolType: Any
    HardwareCompatibilityLevel: Any

    def Builder(self, logger: Any, /) -> Builder:  # noqa: N802 - NVIDIA's names
        """A builder."""
        ...

    def OnnxParser(self, network: NetworkDefinition, logger: Any, /) -> Parser:  # noqa: N802
        """A parser into a network."""
        ...


def member(library: TensorRT, enumeration: str, name: str) -> Any:
    """A member of one of the module's enumerations; None where this version does not have it."""
    return getattr(getattr(library, enumeration, None), name, None)


class Journal:
    """What TensorRT says, kept instead of printed.

    TensorRT takes the first logger of a process for all that follows, so there is one journal for each module.
    """

    def __init__(self, library: TensorRT) -> None:
        self._lock = threading.Lock()
        self._errors: list[str] = []
        errors = self._errors

        def log(_: object, severity: Any, message: str) -> None:
            if severity.name in ("ERROR", "INTERNAL_ERROR"):
                errors.append(plain(message))

        kind = type("Kept", (library.ILogger,), {"__init__": library.ILogger.__init__, "log": log})
        self.logger: Any = kind()

    @contextmanager
    def listening(self) -> Iterator[list[str]]:
        """The errors of what happens inside, for one caller at a time."""
        with self._lock:
            self._errors.clear()
            yield self._errors


_JOURNALS: dict[str, Journal] = {}


def journal(library: TensorRT) -> Journal:
    """The one of a module."""
    name = str(getattr(library, "__name__", id(library)))
    if name not in _JOURNALS:
        _JOURNALS[name] = Journal(library)
    return _JOURNALS[name]


def load(library: TensorRT, plan: bytes, host_code: bool = False) -> Any:
    """A plan made ready to run.

    Args:
        library: of this machine.
        plan: its bytes.
        host_code: let it run programs of its own on this computer, as plans for later TensorRT versions must.

    Raises:
        EngineBuildError: this GPU or this TensorRT cannot run it, or there is no GPU; TensorRT itself returns None.
    """
    book = journal(library)
    with book.listening() as errors:
        runtime = library.Runtime(book.logger)
        if host_code:
            runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            said = errors[0] if errors else "it did not say why"
            raise EngineBuildError(f"TensorRT {library.__version__} cannot load the plan: {said}.", errors)
    return engine


def plain(message: str) -> str:
    """What a person can use of one of TensorRT's messages: no expressions and places of its source code."""
    text = " ".join(message.split())
    quoted = re.search(r'&& "(.+)"', text)
    if quoted:
        return quoted[1]
    text = re.sub(r"^.*?Error Code \d+: [\w ]+\(|^Assertion failed: .*?\): (?=[A-Z])", "", text)
    text = re.sub(r"\) \[\w+\.cpp.*", "", text)  # what failed thereafter
    return re.sub(r"\.? ?\b[Ii]n \w+ at \S+:\d+", "", text)[:300].strip("().: ")
