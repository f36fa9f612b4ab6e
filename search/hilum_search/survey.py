"""Every case read once before anything trains: what is wrong with it, and what a plan needs to know of it."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pydantic import TypeAdapter, ValidationError

from hilum_inference.errors import InputError
from hilum_inference.io import read_volume, stack_channels
from hilum_inference.manifest import Fingerprint
from hilum_inference.volume import Grid, Volume
from hilum_search.cases import Dataset, Files
from hilum_search.data import GRID_TOLERANCE_MM, content_digest, turned
from hilum_search.errors import BadCasesError, DataError
from hilum_search.measure import ChannelFacts, Spread, channel_facts, count_ids, filled_shape, mixed
from hilum_search.reference import read_reference

FORMAT: Final = "hilum.survey/2"

Report = Callable[[int, int], None]
"""Told how many cases are done, and of how many."""


@dataclass(frozen=True)
class CaseFacts:
    """What was found in one case.

    Attributes:
        name, patient: as in Files.
        shape: (i, j, k) voxels as stored.
        spacing: mm along i, j, k.
        orientation: three letters, such as LPS.
        dtype: in which the voxels are stored.
        filled: sizes of the box of voxels that are not 0.
        channels: figures of each channel.
        voxels: id of the reference to the number of voxels, background among them.
        files: path relative to the dataset's folder to the SHA-256 of what lies there.
    """

    name: str
    patient: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    orientation: str
    dtype: str
    filled: tuple[int, int, int]
    channels: tuple[ChannelFacts, ...]
    voxels: Mapping[int, int]
    files: Mapping[str, str]


@dataclass(frozen=True)
class Survey:
    """What was found in all cases, in the order in which they were given."""

    cases: tuple[CaseFacts, ...]
    format: Literal["hilum.survey/2"] = FORMAT

    @property
    def voxels(self) -> dict[int, int]:
        """Voxels of each id in all cases together, background among them."""
        counts: Counter[int] = Counter()
        for case in self.cases:
            counts.update(case.voxels)
        return dict(sorted(counts.items()))

    def labelled(self, channel: int) -> Spread:
        """Values of one channel in the labelled voxels of all cases, each case as heavy as the other."""
        found = (case.channels[channel].labelled for case in self.cases)
        return mixed([spread for spread in found if spread is not None])


_JSON: Final = TypeAdapter(Survey)


def to_json(found: Survey) -> str:
    """The survey as JSON."""
    return _JSON.dump_json(found, indent=1).decode()


def parse_survey(text: str | bytes) -> Survey:
    """A survey from its JSON.

    Raises:
        DataError: not JSON, or of another form.
    """
    try:
        return _JSON.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "survey"
        raise DataError(f"The survey is not valid at {where}: {first['msg']}.") from error


def fingerprint(found: Survey, spacing: tuple[float, float, float], size: tuple[int, int, int]) -> Fingerprint:
    """What a manifest tells of the training data.

    Args:
        found: of the training cases.
        spacing, size: median mm and voxels along the model's axes.
    """
    spreads = [found.labelled(channel) for channel in range(len(found.cases[0].channels))]
    intensity = tuple((spread.at(0.5), spread.at(50), spread.at(99.5)) for spread in spreads)
    return Fingerprint(intensity=intensity, spacing=spacing, size=size, cases=len(found.cases))


def survey(
    files: Sequence[Files],
    report: Report | None = None,
    known: Survey | None = None,
    *,
    folder: Path | None = None,
    labels: Mapping[int, str] | None = None,
    channels: int = 0,
) -> Survey:
    """Read every case once, one at a time, check it, and gather its figures.

    Args:
        files: the cases.
        report: told after each case.
        known: an earlier survey: a case whose files are the same is not read again.
        folder: of the dataset: sentences and records name files relative to it; else the one that holds all files.
        labels: id to name as the dataset names them; another id is refused. None or empty: any id will do.
        channels: that the dataset names; 0: as many as the cases have.

    Raises:
        BadCasesError: the first case that cannot be trained on, and how many more; ``problems`` holds all sentences.
    """
    cases, wrong = _examine(files, report, known, folder or _home(files), labels or {}, channels)
    if wrong:
        raise BadCasesError(wrong)
    return Survey(tuple(cases))


def named_channels(dataset: Dataset) -> int:
    """How many channels a dataset names; 0 where nobody names them, and files are counted only."""
    return 0 if dataset.layout == "pairs" else len(dataset.channels)


def problems(
    files: Sequence[Files], *, folder: Path | None = None, labels: Mapping[int, str] | None = None
) -> tuple[str, ...]:
    """A sentence for all that is wrong; empty where ``survey`` succeeds."""
    return tuple(_examine(files, None, None, folder or _home(files), labels or {})[1])


def relative(path: Path, folder: Path) -> str:
    """A path as records name it: from the dataset's folder, with forward slashes."""
    return Path(os.path.relpath(path, folder)).as_posix()


def _home(files: Sequence[Files]) -> Path:
    parents = [path.parent for each in files for path in (*each.images, each.labels)]
    return Path(os.path.commonpath(parents)) if parents else Path()


def _examine(
    files: Sequence[Files],
    report: Report | None,
    known: Survey | None,
    folder: Path,
    labels: Mapping[int, str],
    channels: int = 0,
) -> tuple[list[CaseFacts], list[str]]:
    """Cases that can be trained on, and sentences for those that cannot."""
    seen = {tuple(case.files.items()): case for case in (known.cases if known else ())}  # in the order of channels
    cases: list[CaseFacts] = []
    wrong = [f"Two cases are named {name}; names must differ." for name in _twice(files)]
    if not files:
        wrong.append("There are no cases.")
    for done, each in enumerate(files, start=1):
        try:
            cases.append(_facts(each, folder, seen))
        except DataError as error:
            wrong.append(error.message)
        if report is not None:
            report(done, len(files))
    return cases, wrong + list(_together(cases, files, folder, labels, channels))


def _twice(files: Sequence[Files]) -> list[str]:
    return [name for name, count in Counter(each.name for each in files).items() if count > 1]


def _together(
    cases: Sequence[CaseFacts], files: Sequence[Files], folder: Path, labels: Mapping[int, str], channels: int
) -> Iterator[str]:
    """What shows only beside the dataset's description or beside the other cases."""
    places = {each.name: relative(each.labels, folder) for each in files}
    usual = Counter(len(case.channels) for case in cases).most_common(1)
    if channels and usual and usual[0][0] != channels:
        yield f"The dataset names {channels} channels, and the image of {cases[0].name} has {len(cases[0].channels)}."
    for case in cases:
        unnamed = sorted(set(case.voxels) - set(labels) - {0}) if labels else []
        if unnamed:
            yield (
                f"{places[case.name]} holds the id {unnamed[0]}, which the dataset does not name; named are "
                f"{', '.join(map(str, sorted(labels)))}."
            )
        if len(case.channels) != usual[0][0]:
            yield (
                f"The image of {case.name} has {len(case.channels)} channels where the other cases have "
                f"{usual[0][0]}; give each case the same channels."
            )
    if cases and not any(set(case.voxels) - {0} for case in cases):
        yield (
            f"{places[cases[0].name]} holds nothing but background, and so do the references of all cases; are they "
            "the right files?"
        )


def _facts(each: Files, folder: Path, seen: Mapping[tuple[tuple[str, str], ...], CaseFacts]) -> CaseFacts:
    digests = _digests(each, folder)
    before = seen.get(tuple(digests.items()))
    if before is not None:
        return dataclasses.replace(before, name=each.name, patient=each.patient)
    image, labels = _pair(each, folder)
    with _naming(each.labels, folder):
        voxels = count_ids(labels)
    labelled = sum(voxels.values()) - voxels.get(0, 0)
    channels = []
    for number in range(image.channels):
        with _naming(each.images[min(number, len(each.images) - 1)], folder):
            channels.append(channel_facts(image, number, labels, labelled))
    return CaseFacts(
        name=each.name,
        patient=each.patient,
        shape=image.grid.shape,
        spacing=image.grid.spacing,
        orientation=image.grid.orientation,
        dtype=image.array.dtype.name,
        filled=filled_shape(image),
        channels=tuple(channels),
        voxels=voxels,
        files=digests,
    )


def _digests(each: Files, folder: Path) -> dict[str, str]:
    digests = {}
    for path in (*each.images, each.labels):
        if not path.exists():
            kind = "reference segmentation" if path == each.labels else "image"
            raise DataError(f"There is no {relative(path, folder)}, the {kind} of the case {each.name}.")
        with _naming(path, folder):
            digests[relative(path, folder)] = content_digest(path)
    return digests


def _pair(each: Files, folder: Path) -> tuple[Volume, Volume]:
    """Image and reference on one grid, the axes of both in the image's order."""
    volumes = []
    for path in each.images:
        with _naming(path, folder):
            volumes.append(read_volume(path))
    with _naming(each.images[-1], folder):
        image = stack_channels(volumes)
    with _naming(each.labels, folder):
        labels = turned(read_reference(each.labels, image.grid), image.grid.orientation)
    if image.grid.is_sheared:
        raise DataError(
            f"{relative(each.images[0], folder)} lies on a sheared grid (a tilted gantry), which no model takes; "
            "resample it to a straight one."
        )
    if not image.grid.close_to(labels.grid, GRID_TOLERANCE_MM):
        raise DataError(
            f"{relative(each.images[0], folder)} ({_grid(image.grid)}) and {relative(each.labels, folder)} "
            f"({_grid(labels.grid)}) lie on different grids; resample one to the other."
        )
    return image, labels


def _grid(grid: Grid) -> str:
    """A grid in words: sizes, spacing, and where its first voxel lies."""
    sizes, spacing = "x".join(map(str, grid.shape)), " x ".join(f"{mm:.4g}" for mm in grid.spacing)
    return f"{sizes} voxels of {spacing} mm from {', '.join(f'{mm:.4g}' for mm in grid.affine[:3, 3])}"


@contextmanager
def _naming(path: Path, folder: Path) -> Iterator[None]:
    """Put the file's name before what is wrong with it."""
    try:
        yield
    except (InputError, DataError) as error:
        raise DataError(f"{relative(path, folder)}: {error.message}") from error
    except OSError as error:
        raise DataError(f"{relative(path, folder)} cannot be read: {error.strerror}.") from error
