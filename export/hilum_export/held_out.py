"""The exported files on real cases, through the whole pipeline that serves them: do they answer what was validated?

The cases are those that the run kept for the end; else those it validated on; else those it learnt from, which still
tell whether a file answers as its network does. Each is recognised by the SHA-256 in ``training.json``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from hilum_export.gates import Gate
from hilum_export.runtimes import Windows
from hilum_inference.manifest import Manifest
from hilum_inference.preprocess import Source, model_grid
from hilum_inference.volume import Volume
from hilum_search.cases import Dataset
from hilum_search.errors import DataError
from hilum_search.evaluate import Opened, as_seen, look, segment
from hilum_search.metrics import dice
from hilum_search.recorded import NEW, Asked, Choice, ask, read_record

AGREEMENT_BOUND: Final = 1e-3
"""Share of a label's voxels that a file of FP32 or FP16 may answer otherwise than the network."""
Report = Callable[[str], None]


@dataclass(frozen=True)
class Kept:
    """Cases of one part of a run.

    Attributes:
        part: ``test``, ``validation``, ``train``, or ``new`` where the run has no record of its cases.
        cases: all of that part.
        learnt: those that the run learnt from, where the data holds them.
    """

    part: str
    cases: tuple[Asked, ...]
    learnt: tuple[Asked, ...] = ()

    @property
    def held_out(self) -> bool:
        """Whether the run did not learn from them."""
        return self.part != "train"


def kept_cases(training: Mapping[str, Any], dataset: Dataset) -> Kept:
    """The cases that files are judged on.

    Raises:
        DataError: the data lacks one of them, or holds other files under its name.
    """
    record = read_record(training)
    if record is None:
        return Kept(NEW, tuple(ask(dataset, None, None, each=False)))
    parts: tuple[Choice, ...] = ("test", "validation", "train")
    part = next((part for part in parts if any(line.part == part for line in record)), None)
    if part is None:
        raise DataError("The run's record names no case, so that none can decide; publish without (--no-dice-gate).")
    wanted = {(line.name, line.planes) for line in record if line.part == part}
    known = ask(dataset, record, "all", each=False)
    asked = [one for one in known if one.part == part]
    missing = wanted - {(one.what.files.name, one.what.planes) for one in asked}
    if missing:
        raise DataError(
            f"{dataset.folder.name} lacks the case {min(missing)[0]}, which the run's record keeps for {part}; "
            "give the data that the run was made from."
        )
    return Kept(part, tuple(asked), tuple(one for one in known if one.part == "train"))


def real_windows(opened: Opened, cases: Sequence[Asked], count: int) -> Windows:
    """Windows of the cases as the network sees them, evenly spread, (count or fewer, C, D, H, W)."""
    found = []
    share = max(1, math.ceil(count / len(cases)))
    for asked in cases[:count]:
        manifest, volume = as_seen(opened, look(opened, asked.what))
        found += list(windows_of(volume, manifest, share))
    return np.stack(found[:count])


def windows_of(volume: Volume, manifest: Manifest, count: int) -> Windows:
    """Windows of a volume as the network sees them, evenly spread, (count or fewer, C, D, H, W)."""
    source = Source(volume, model_grid(volume, manifest), manifest)
    places = list(source.layout)
    taken = min(count, len(places))  # from the middle of each stretch: the corner of a volume is air
    return np.stack([source.window(places[int((n + 0.5) * len(places) / taken)]) for n in range(taken)])


def dice_gates(
    own: Opened, files: Mapping[str, Opened], kept: Kept, bound: float, report: Report
) -> dict[str, tuple[Gate, ...]]:
    """For every label: the Dice that a file loses against the network, and the voxels that it answers otherwise.

    Args:
        own: the network in torch, or what stands for it.
        files: the exported files on their engines, by precision; INT8 may answer otherwise as long as its Dice stays.
        kept: the cases.
        bound: Dice that a label may lose, 0 to 1.
        report: hears of each case.
    """
    tallies = {name: _Tally(own) for name in files}
    for number, asked in enumerate(kept.cases, 1):
        report(f"case {number} of {len(kept.cases)}: {asked.what.name}")
        scene = look(own, asked.what)
        answer = segment(own, scene)
        for name, opened in files.items():
            tallies[name].add(scene.truth, answer, segment(opened, scene))
    where = f"over {len(kept.cases)} {kept.part} case{'s' * (len(kept.cases) > 1)}"
    return {
        name: tally.gates(bound, math.inf if name == "int8" else AGREEMENT_BOUND, where)
        for name, tally in tallies.items()
    }


class _Tally:
    """Sums over cases, by label."""

    def __init__(self, own: Opened) -> None:
        self._labels = own.labels
        self._lost: dict[str, list[float]] = {label.name: [] for label in own.labels}
        self._otherwise = {label.name: 0 for label in own.labels}
        self._voxels = {label.name: 0 for label in own.labels}

    def add(self, truth: Any, own: Any, other: Any) -> None:
        """One case: (I, J, K) ids of the reference, of the network, of the file."""
        ids = [label.id for label in self._labels]
        ours, theirs = dice(own, truth, ids), dice(other, truth, ids)
        for label in self._labels:
            if not math.isnan(ours[label.id]) or not math.isnan(theirs[label.id]):
                lost = _number(ours[label.id]) - _number(theirs[label.id])
                # Without the label in the reference Dice is 0 or 1: a speck that vanishes must not pay for other cases.
                self._lost[label.name].append(lost if (truth == label.id).any() else max(lost, 0.0))
            one, two = own == label.id, other == label.id
            self._otherwise[label.name] += int(np.count_nonzero(one != two))
            self._voxels[label.name] += int(np.count_nonzero(one)) + int(np.count_nonzero(two))

    def gates(self, bound: float, agreement: float, where: str) -> tuple[Gate, ...]:
        """The checks of every label."""
        found = []
        for label in self._labels:
            lost = self._lost[label.name]
            found.append(Gate(f"Dice lost: {label.name}", float(np.mean(lost)) if lost else 0.0, bound, where))
        for label in self._labels:
            share = self._otherwise[label.name] / max(self._voxels[label.name], 1)
            found.append(Gate(f"voxels answered otherwise: {label.name}", share, agreement, f"of the label's, {where}"))
        unseen = [label.name for label in self._labels if not self._lost[label.name]]
        told = f"of {len(self._labels)} labels{': ' * bool(unseen)}{', '.join(unseen)}, {where}"
        found.append(Gate("labels that neither reference nor answer holds", len(unseen), len(self._labels) - 1, told))
        return tuple(found)


def _number(score: float) -> float:
    """A label that neither holds was answered rightly; one that only the answer holds was not."""
    return 1.0 if math.isnan(score) else score
