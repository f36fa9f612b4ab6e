"""Measured latency of searched networks: a table of pieces measured on the embedded engine, added up.

A piece is exported between two ends that give it tensors of its size and take its answer in; the same ends without it
are measured in turn, and the table holds the difference. Along a network the ends cancel, all but the window's own way
in and out, which every network pays once. What the sum cannot know: tensors that several cells read and that a cache
has lost meanwhile, and layers that the engine fuses across pieces.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from hilum_inference.engines.precision import cpu_name
from hilum_inference.engines.runtime import openvino
from hilum_inference.files import write_atomically
from hilum_search.architecture import Architecture
from hilum_search.cost import network_cost
from hilum_search.errors import SearchError
from hilum_search.network import Network, build
from hilum_search.on_engine import MIB, THREADS, Shapes, Used, made_up_window, milliseconds, open_network, use
from hilum_search.peak import peak_bytes
from hilum_search.pieces import IMAGE, Features, Piece, modules, pieces
from hilum_search.progress import Report, Stage
from hilum_search.spaces import Genotype, Space
from hilum_search.to_onnx import to_onnx

FORMAT: Final = "hilum.latency/1"
STAGE: Final = "latency"


@dataclass(frozen=True)
class Setting:
    """What a table holds for; figures of another setting say nothing about this one."""

    shapes: Shapes
    machine: str = field(default_factory=cpu_name)
    engine: str = field(default_factory=lambda: f"openvino {openvino().__version__}")
    precision: str = "f32"
    threads: int = THREADS


@dataclass(frozen=True)
class Prediction:
    """Of one network and window.

    Attributes:
        ms: CPU milliseconds on one thread, the sum of the pieces.
        peak_mib: weights and live tensors, an estimate from the wiring.
        params: trainable values.
        macs: multiply-accumulates of convolutions.
    """

    ms: float
    peak_mib: float
    params: int
    macs: int


@dataclass(frozen=True)
class Table:
    """Milliseconds of every piece measured so far.

    Attributes:
        setting: what they hold for.
        pieces_ms: CPU milliseconds by the key of a piece.
    """

    setting: Setting
    pieces_ms: Mapping[str, float] = field(default_factory=dict)

    def ms(self, architecture: Architecture) -> float:
        """CPU milliseconds of a window: only looked up, for searches that ask thousands of times.

        Raises:
            ArchitectureError: a network of neither searched family.
            SearchError: a piece that the table lacks.
        """
        keys = [piece.key for piece in pieces(architecture)]
        lacking = [key for key in keys if key not in self.pieces_ms]
        if lacking:
            raise SearchError(f"The latency table lacks {lacking[0]!r}; measure it with measured_table first.")
        return sum(self.pieces_ms[key] for key in keys)

    def predict(self, architecture: Architecture) -> Prediction:
        """Latency from the table; memory, parameters and multiply-accumulates counted without computing.

        Raises:
            ArchitectureError: a network of neither searched family.
            SearchError: a piece that the table lacks.
        """
        shapes = self.setting.shapes
        with torch.device("meta"):
            network = build(architecture, shapes.in_channels, shapes.classes).eval()
            image = torch.empty(1, shapes.in_channels, *shapes.window)
            counted, peak = network_cost(network, image), peak_bytes(network, image)
        return Prediction(self.ms(architecture), peak / MIB, counted.parameters, counted.macs)

    def with_piece(self, key: str, ms: float) -> Table:
        """The table with one more piece, or another figure for it."""
        return Table(self.setting, {**self.pieces_ms, key: ms})

    def missing(self, architectures: Iterable[Architecture]) -> dict[str, Architecture]:
        """Keys of pieces not measured yet, each with the first network that needs it."""
        lacking: dict[str, Architecture] = {}
        for architecture in architectures:
            for piece in pieces(architecture):
                if piece.key not in self.pieces_ms:
                    lacking.setdefault(piece.key, architecture)
        return lacking


@dataclass(frozen=True)
class Check:
    """A prediction beside the whole network on the engine."""

    architecture: Architecture
    predicted: Prediction
    measured: Used

    @property
    def error(self) -> float:
        """Of the predicted milliseconds, relative to the measured ones; negative where too fast was predicted."""
        return self.predicted.ms / self.measured.ms - 1


def covering(space: Space, topologies: Iterable[int] | None = None) -> list[Architecture]:
    """Networks that hold every piece of a space: each topology with one operator in all cells.

    Args:
        space: the space.
        topologies: those that are searched; None: all of them.
    """
    wanted = range(space.topologies) if topologies is None else topologies
    operators = range(len(space.operators))
    return [space.build(Genotype(n, (operator,) * space.cells)) for n in wanted for operator in operators]


def read_table(path: Path, setting: Setting) -> Table:
    """The table of a file; an empty one where there is none, or one of another setting."""
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return Table(setting)
    if not isinstance(found, dict) or found.get("format") != FORMAT or found.get("setting") != _plain(setting):
        return Table(setting)
    return Table(setting, {str(key): float(ms) for key, ms in found["pieces_ms"].items()})


def write_table(path: Path, table: Table) -> None:
    """Write a table as JSON, all of it or nothing."""
    content = {"format": FORMAT, "setting": _plain(table.setting), "pieces_ms": dict(table.pieces_ms)}
    write_atomically(path, json.dumps(content, indent=1).encode())


def measured_table(
    path: Path, setting: Setting, architectures: Sequence[Architecture], report: Report | None = None
) -> Table:
    """The table of ``path`` with every piece of the given networks: what it lacks is measured and written at once.

    A table of another machine, engine or window is replaced.

    Raises:
        ArchitectureError: a network of neither searched family.
    """
    table = read_table(path, setting)
    lacking = table.missing(architectures)
    with tempfile.TemporaryDirectory() as folder:
        bench = _Bench(setting.shapes, Path(folder))
        for done, (key, architecture) in enumerate(lacking.items()):
            if report is not None:
                report(Stage(STAGE, done, len(lacking)))
            bench.export(architecture, key)
            table = table.with_piece(key, bench.measure(key))
            write_table(path, table)
        for key in lacking:  # once more, later: a busy spell of the machine seldom meets a piece twice
            table = table.with_piece(key, bench.measure(key))
    if lacking:
        write_table(path, table)
    if report is not None:
        report(Stage(STAGE, len(lacking), len(lacking)))
    return table


def measure_whole(architecture: Architecture, shapes: Shapes, tries: int = 1) -> Used:
    """CPU milliseconds and memory of a whole network on the embedded engine, in a fresh process; random weights.

    Args:
        architecture: of the network.
        shapes: of its window.
        tries: processes that measure it, one after the other; the fastest counts.

    Raises:
        SearchError: the process failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        to_onnx(_built(architecture, shapes), shapes.in_channels, shapes.window, path)
        return min((use(path, shapes) for _ in range(tries)), key=lambda used: used.ms)


def check(table: Table, architectures: Iterable[Architecture]) -> list[Check]:
    """Predictions beside whole networks, measured now.

    Raises:
        ArchitectureError: a network of neither searched family.
        SearchError: a piece that the table lacks, or a network that could not be measured.
    """
    shapes = table.setting.shapes
    return [Check(a, table.predict(a), measure_whole(a, shapes)) for a in architectures]


def _plain(setting: Setting) -> Any:
    """A setting as JSON has it."""
    return json.loads(json.dumps(asdict(setting)))


def _built(architecture: Architecture, shapes: Shapes) -> Network:
    torch.manual_seed(0)
    return build(architecture, shapes.in_channels, shapes.classes).eval()


class _Bench:
    """Exports pieces into a folder and measures them; the ends of several pieces are exported once."""

    def __init__(self, shapes: Shapes, folder: Path) -> None:
        self._shapes = shapes
        self._folder = folder
        self._ends: dict[tuple[Features, ...], Path] = {}
        self._files: dict[str, list[tuple[Path, int]]] = {}
        self._least: dict[str, list[float]] = {}

    def export(self, architecture: Architecture, key: str) -> None:
        """The piece between its ends, and the ends alone."""
        chain = pieces(architecture)
        place = [piece.key for piece in chain].index(key)
        network = _built(architecture, self._shapes)
        last = place == len(chain) - 1
        inputs = _inputs(chain, chain[place])
        body = _Probe(self._shapes.in_channels, inputs, modules(network)[place], ends=not last)
        probe = Network(body, network.head if last else _scalar_head())
        self._files[key] = [(self._write(probe, f"piece{place}-{len(self._files)}"), self._classes(last))]
        if inputs:
            self._files[key].append((self._bare(inputs), self._classes(False)))

    def measure(self, key: str) -> float:
        """Milliseconds that an exported piece adds between its ends, by the least time of each so far."""
        channels, window = self._shapes.in_channels, self._shapes.window
        engines = [open_network(path, Shapes(channels, classes, window)) for path, classes in self._files[key]]
        try:
            times = milliseconds(engines, made_up_window(self._shapes))
        finally:
            for engine in engines:
                engine.close()
        self._least[key] = [min(pair) for pair in zip(times, self._least.get(key, times), strict=True)]
        with_piece, *without = self._least[key]
        return with_piece - sum(without)

    def _classes(self, last: bool) -> int:
        return self._shapes.classes if last else 1

    def _bare(self, inputs: tuple[Features, ...]) -> Path:
        if inputs not in self._ends:
            body = _Probe(self._shapes.in_channels, inputs, None, ends=True)
            self._ends[inputs] = self._write(Network(body, _scalar_head()), f"ends{len(self._ends)}")
        return self._ends[inputs]

    def _write(self, network: Network, name: str) -> Path:
        path = self._folder / f"{name}.onnx"
        to_onnx(network.eval(), self._shapes.in_channels, self._shapes.window, path)
        return path


def _scalar_head() -> nn.Conv3d:
    return nn.Conv3d(1, 1, 1)


def _inputs(chain: Sequence[Piece], piece: Piece) -> tuple[Features, ...]:
    """The tensors that a piece reads; none where it reads the window itself."""
    return tuple(chain[n - 1].output for n in piece.reads if n != IMAGE)


class _Probe(nn.Module):
    """A piece between two ends, or the ends alone.

    The leading end is a strided 1x1x1 convolution of the window for every tensor that the piece reads; all but the
    first are also averaged into the first, so that the ends alone compute them too. The trailing end averages the
    answer and scales the window by it.
    """

    def __init__(self, in_channels: int, inputs: Sequence[Features], piece: nn.Module | None, ends: bool) -> None:
        super().__init__()
        self.leads = nn.ModuleList(nn.Conv3d(in_channels, f.channels, 1, f.stride, bias=False) for f in inputs)
        self.piece = piece
        self.ends = ends

    def forward(self, image: Tensor) -> Tensor:
        """(N, C, D, H, W) to (N, 1, D, H, W), or to the piece's own answer where it has no trailing end."""
        first, *others = [lead(image) for lead in self.leads] or [image]
        for other in others:
            first = first + _average(other)
        out: Tensor = first if self.piece is None else self.piece(first, *others)
        return image[:, :1] * _average(out) if self.ends else out


def _average(features: Tensor) -> Tensor:
    """(N, 1, 1, 1, 1); what reads a tensor in these networks reads it through a ReLU."""
    return torch.relu(features).mean((1, 2, 3, 4), keepdim=True)
