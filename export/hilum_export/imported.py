"""A model of another library, from what was read of it to a version in a repository.

It is published only after one case was segmented both by that library and by our pipeline, and the masks agree.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import math
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from hilum_export.errors import ExportError
from hilum_export.export import REAL_VOXELS, REAL_WINDOWS, Exported, Wishes, export
from hilum_export.held_out import windows_of
from hilum_inference.head import Labels
from hilum_inference.io import read_volume, stack_channels, write_volume
from hilum_inference.manifest import Manifest
from hilum_inference.pipeline import Segmenter
from hilum_inference.repository import Model
from hilum_inference.volume import Volume
from hilum_search.metrics import dice
from hilum_search.network import Network, parameters
from hilum_search.own_architecture import OwnNetwork
from hilum_search.torch_engine import TorchEngine
from hilum_search.trained import Trained, write_trained

SMALLEST_DICE: Final = 0.999
"""Of every label, between the other library's mask and ours."""
HEAD_DIFFERENCE: Final = 1e-5
"""Largest difference, as a share of the largest logit, that splitting off the last layer may make."""
_NAME = re.compile(r"[^a-z0-9._-]+")


class ImportRefusedError(ExportError):
    """A model of another library cannot be taken over; nothing was published."""

    code = "import_refused"


Answer = Callable[[Sequence[Path]], Labels]


@dataclass(frozen=True)
class Judge:
    """A library's own mask of a case (one file a channel, or one of all), as stored in that file.

    Attributes:
        name: how it was made, for the record.
        answer: makes it.
    """

    name: str
    answer: Answer


@dataclass(frozen=True)
class Foreign:
    """A model of another library, understood but not yet compared.

    Attributes:
        network: its network and weights.
        manifest: its rules in our vocabulary.
        origin: library, version and whatever else tells where it comes from; goes into the record.
        judges: the library as it is used, then, where its own rounding stands in the way, in full precision.
    """

    network: Network
    manifest: Manifest
    origin: Mapping[str, Any]
    judges: tuple[Judge, ...]


@dataclass(frozen=True)
class Agreement:
    """How far the other library's mask and ours agree on one case.

    Attributes:
        judge: how the library's mask was made.
        dice: of each label; None where neither mask holds it.
    """

    judge: str
    dice: Mapping[str, float | None]

    @property
    def worst(self) -> tuple[str, float] | None:
        """The label that agrees least; None where neither mask holds any."""
        known = {label: score for label, score in self.dice.items() if score is not None}
        return min(known.items(), key=lambda item: item[1]) if known else None

    @property
    def passed(self) -> bool:
        """Whether every label agrees well enough."""
        return self.worst is not None and self.worst[1] >= SMALLEST_DICE


def publish_import(foreign: Foreign, images: Sequence[Path], repository: Path) -> tuple[Exported, Agreement]:
    """Compare one case, then publish.

    Raises:
        ImportRefusedError: a label of the case does not agree, or the case holds none.
        InputError: the case cannot be read, or has other channels.
        ExportError: as ``export``.
    """
    with tempfile.TemporaryDirectory() as folder:
        images = _as_nifti(images, Path(folder))
        volume = stack_channels([read_volume(path) for path in images])
        tried = compare(foreign, images, volume)
    size = foreign.manifest.windows.size
    count = max(1, min(REAL_WINDOWS, REAL_VOXELS // math.prod(size)))
    architecture = OwnNetwork(name=f"{foreign.origin['from']} {foreign.origin['network']}")
    trained = Trained(architecture, foreign.network, foreign.manifest, _record(foreign, tried))
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        write_trained(run, trained)
        try:
            wishes = Wishes(dice_gate=False, compared=True, real=windows_of(volume, foreign.manifest, count))
            return export(run, repository, copy.deepcopy(foreign.network), wishes), tried[-1]
        except torch.onnx.errors.OnnxExporterError as error:
            raise ImportRefusedError(
                f"The network {foreign.origin['network']} cannot be written as ONNX for windows of {size}: "
                f"{first_line(error)}"
            ) from error


def _as_nifti(images: Sequence[Path], folder: Path) -> list[Path]:
    """The same images in files that every library reads, on one grid: each has its own order of a series' slices."""
    found = []
    for n, image in enumerate(images):
        found.append(image)
        if not image.name.endswith((".nii", ".nii.gz")):
            found[-1] = folder / f"case_{n:04}.nii.gz"
            write_volume(found[-1], read_volume(image))
    return found


def compare(foreign: Foreign, images: Sequence[Path], volume: Volume | None = None) -> tuple[Agreement, ...]:
    """How our pipeline's mask agrees with each judge's; the last one is the first that passes.

    Args:
        volume: what ``images`` hold, where they were read already.

    Raises:
        ImportRefusedError: none does, or no label is in either mask.
    """
    if volume is None:
        volume = stack_channels([read_volume(path) for path in images])
    manifest = foreign.manifest
    model = Model(manifest, 0, Path(), Path(), manifest.preprocessing_digest())
    ours = Segmenter(model, TorchEngine(manifest, foreign.network)).segment(volume).labels
    tried: list[Agreement] = []
    for judge in foreign.judges:
        tried.append(_agreement(judge, manifest, ours, judge.answer(images)))
        if tried[-1].worst is None:
            raise ImportRefusedError(
                f"Neither {foreign.origin['from']} nor Hilum finds a label in this case, so that nothing can be "
                "compared; give one that shows what the model segments."
            )
        if tried[-1].passed:
            return tuple(tried)
    label, score = tried[-1].worst or ("", math.nan)
    raise ImportRefusedError(
        f"The masks of {foreign.origin['from']} and of Hilum agree on {label!r} with Dice {score:.5f} only, "
        f"{SMALLEST_DICE} is needed; nothing was published."
    )


def _agreement(judge: Judge, manifest: Manifest, ours: Labels, theirs: Labels) -> Agreement:
    if theirs.shape != ours.shape:
        raise ImportRefusedError(f"The mask of {judge.name} has {theirs.shape} voxels, the case has {ours.shape}.")
    found = dice(ours, theirs, [label.id for label in manifest.labels])
    scores = {label.name: found[label.id] for label in manifest.labels}
    return Agreement(judge.name, {name: None if math.isnan(s) else round(s, 6) for name, s in scores.items()})


class Whole(nn.Module):
    """Another library's network as it is, each weight stored once though the library may name it several times."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        hooks: Any = self  # torch does not type them
        hooks.register_state_dict_post_hook(_drop_second_names)
        hooks.register_load_state_dict_pre_hook(_add_second_names)

    def forward(self, image: Tensor) -> Tensor:
        """Whatever the network answers."""
        answer: Tensor = self.network(image)
        return answer


def _second_names(module: nn.Module) -> dict[str, str]:
    """For each later name of a weight its first one."""
    first: dict[int, str] = {}
    second: dict[str, str] = {}
    for pairs in (module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)):
        for name, value in pairs:
            if id(value) in first:
                second[name] = first[id(value)]
            else:
                first[id(value)] = name
    return second


def _drop_second_names(module: nn.Module, state: dict[str, Any], prefix: str, _metadata: object) -> None:
    for name in _second_names(module):
        state.pop(prefix + name, None)


def _add_second_names(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    for name, first in _second_names(module).items():
        if prefix + first in state:
            state[prefix + name] = state[prefix + first]


def split(network: nn.Module, channels: int, size: tuple[int, int, int]) -> Network:
    """Body and head: where the network ends in a 1x1x1 convolution that is used once, that one is the head; else the
    whole network is the body, and the head hands its logits on.

    Args:
        network: answers one tensor of logits at full resolution; its weights are kept, its modules rearranged.
        channels: of its input.
        size: of a window.

    Raises:
        ImportRefusedError: it does not take such a window, or answers something else.
    """
    network = network.eval()
    try:
        window = torch.from_numpy(np.random.default_rng(0).normal(0, 1, (1, channels, *size)).astype(np.float32))
    except (MemoryError, ValueError) as error:
        raise ImportRefusedError(f"Windows of {(channels, *size)} (channels, sides) do not fit the memory.") from error
    logits, last = _probe(network, window)
    classes = int(logits.shape[1])
    found = Network(Whole(network), _identity(classes)).eval()
    if last is not None:
        parent, _, name = last.rpartition(".")
        head = network.get_submodule(last)
        if isinstance(head, nn.Conv3d):
            setattr(network.get_submodule(parent), name, nn.Identity())
            found = Network(Whole(network), head).eval()
    with torch.inference_mode():
        off = float((found(window) - logits).abs().max() / logits.abs().max().clamp_min(1e-12))
    if not off <= HEAD_DIFFERENCE:
        raise ImportRefusedError(
            f"The network answers differently (by {off:.2g} of its largest logit) when its last layer is split off."
        )
    return found


def _probe(network: nn.Module, window: Tensor) -> tuple[Tensor, str | None]:
    """The logits of a window, and the name of the last layer where that can serve as a head."""
    seen: list[tuple[str, Any]] = []
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.append((name, out)))
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv3d)
    ]
    try:
        with torch.inference_mode():
            logits = network(window)
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        raise ImportRefusedError(
            f"The network does not take windows of {tuple(window.shape[1:])} (channels, sides): {first_line(error)}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(logits, Tensor) or logits.shape[2:] != window.shape[2:]:
        raise ImportRefusedError("The network does not answer one tensor of logits at the window's resolution.")
    name = seen[-1][0] if seen and seen[-1][1] is logits else None
    if name is None or sum(called == name for called, _ in seen) > 1 or not _pointwise(network.get_submodule(name)):
        return logits, None
    return logits, name


def _pointwise(layer: nn.Module) -> bool:
    return (
        isinstance(layer, nn.Conv3d)
        and {*layer.kernel_size, *layer.stride, layer.groups} == {1}
        and tuple(layer.padding) == (0, 0, 0)
    )


def _identity(classes: int) -> nn.Conv3d:
    head = nn.Conv3d(classes, classes, 1)
    nn.init.dirac_(head.weight)
    if head.bias is not None:
        nn.init.zeros_(head.bias)
    return head


def plain_name(text: str) -> str:
    """A model's name made of a title: small letters, digits, dots, dashes.

    >>> plain_name("Dataset004 Hippocampus")
    'dataset004-hippocampus'
    """
    return _NAME.sub("-", text.lower()).strip("._-")[:64] or "imported"


def unique(names: Sequence[str]) -> tuple[str, ...]:
    """The names, a number behind those that came before.

    >>> unique(["MR", "MR", "CT"])
    ('MR', 'MR-2', 'CT')
    """
    found: list[str] = []
    for name in names:
        times = 1
        chosen = name
        while chosen in found:
            times += 1
            chosen = f"{name}-{times}"
        found.append(chosen)
    return tuple(found)


def inside(folder: Path, name: str) -> Path:
    """A file that must lie in ``folder``, whatever its name or the links on the way say.

    Raises:
        ImportRefusedError: it does not, or is missing.
    """
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ImportRefusedError(f"{name!r} points outside {folder.name}; only what lies in the folder is read.")
    if not path.is_file():
        raise ImportRefusedError(f"{folder.name} has no {name}.")
    return path


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file of ``folder``.

    Raises:
        ImportRefusedError: there is no such file in it, or it holds something else.
    """
    try:
        found = json.loads(inside(folder, name).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ImportRefusedError(f"{name} in {folder.name} is no JSON: {first_line(error)}.") from error
    if not isinstance(found, dict):
        raise ImportRefusedError(f"{name} in {folder.name} must hold a JSON object.")
    return found


def require_place(model: Path, repository: Path) -> None:
    """Refuse a repository that cannot be one for this model, before anything takes time.

    Raises:
        ImportRefusedError: it is a file or lies in one, or the model lies in it.
    """
    there = next(path for path in (repository.absolute(), *repository.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ImportRefusedError(f"{there} is a file; a model repository is a folder.")
    if model.resolve().is_relative_to(repository.resolve()):
        raise ImportRefusedError(
            f"{model} lies in the repository {repository}, which holds published models only; move it elsewhere first."
        )


@contextlib.contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Without the prints, warnings and hints of another library, which a user of ours cannot act on."""
    chosen = [logging.getLogger(name) for name in loggers]
    levels = [logger.level for logger in chosen]
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in chosen:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(chosen, levels, strict=True):
                logger.setLevel(level)


def first_line(error: BaseException) -> str:
    """The line of an error that says most, for a sentence."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc']) or 'manifest'}: {first['msg']}"
    lines = [line for line in str(error).strip().splitlines() if not line.startswith("Exception thrown in SimpleITK")]
    return lines[0].removeprefix("sitk::ERROR: ") if lines else type(error).__name__


def _record(foreign: Foreign, tried: Sequence[Agreement]) -> dict[str, Any]:
    """What is known of a training that somebody else did."""
    origin = foreign.origin
    return {
        "recipe": {
            "architecture": {"family": "own", "name": origin["network"]},
            "training": {"batch": 0},
            "limits": f"Imported from {origin['from']} {origin['version']}; it was trained elsewhere, and what is not "
            "told here is not known.",
        },
        "recipe_digest": "",
        "parameters": parameters(foreign.network),
        "cases": [],
        "dice": {},
        "dice_per_case": {},
        "step": 0,
        "seed": None,
        "start": "",
        "cpu_seconds": 0.0,
        "processor": "",
        "software": {name: version(name) for name in ("hilum", "torch", "numpy")},
        "imported": {
            **origin,
            "dice": dict(tried[-1].dice),
            "smallest_dice": SMALLEST_DICE,
            "compared_with": {agreement.judge: dict(agreement.dice) for agreement in tried},
        },
    }
