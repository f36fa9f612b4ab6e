"""What an evaluation found: scores of every case and label, their spread, and the file that it goes on from."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal

from hilum_inference.files import write_atomically
from hilum_search.errors import DataError

FORMAT: Final = "hilum.evaluation/1"
Metric = Literal["dice", "assd_mm", "hd95_mm", "nsd"]
METRICS: Final[tuple[Metric, ...]] = ("dice", "assd_mm", "hd95_mm", "nsd")
FIGURES: Final = (*METRICS, "reference_ml", "answer_ml")
Verdict = Literal["both", "missed", "extra", "neither"]
Planes = tuple[int, int | None]


@dataclass(frozen=True)
class LabelScore:
    """One label of one case; figures that are not there are NaN.

    Attributes:
        label: its name.
        dice, assd_mm, hd95_mm, nsd: see ``metrics``.
        reference_ml, answer_ml: volumes.
    """

    label: str
    dice: float
    assd_mm: float
    hd95_mm: float
    nsd: float
    reference_ml: float
    answer_ml: float

    @property
    def verdict(self) -> Verdict:
        """Who holds the label: ``missed`` is in the reference alone, ``extra`` in the answer alone."""
        if self.reference_ml:
            return "both" if self.answer_ml else "missed"
        return "extra" if self.answer_ml else "neither"


@dataclass(frozen=True)
class CaseScore:
    """One case, or a slab of one.

    Attributes:
        name: of the case, with the planes of a slab.
        part: ``train``, ``validation`` or ``test`` of the run; ``new``: the run's record does not name it; empty:
            the model has no such record.
        planes: of a slab, [first, last) on the model's grid; last None: to the end; None: the whole case on its own
            grid.
        files: SHA-256 of each file by its path: channels in order, then the reference.
        seconds: of the segmentation.
        labels: in the model's order.
    """

    name: str
    part: str
    planes: Planes | None
    files: Mapping[str, str]
    seconds: float
    labels: tuple[LabelScore, ...]

    @property
    def mean_dice(self) -> float:
        """Over the labels that have one; NaN where none has."""
        return mean(score.dice for score in self.labels)


@dataclass(frozen=True)
class Spread:
    """A metric over cases: ``sd`` is the sample's (n - 1); NaN where there are too few."""

    n: int
    mean: float
    sd: float
    max: float
    min: float
    median: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of the values that are no NaN.

        >>> Spread.of([0.8, 0.9, math.nan])
        Spread(n=2, mean=0.85, sd=0.0707, max=0.9, min=0.8, median=0.85)
        """
        known = [value for value in values if not math.isnan(value)]
        if not known:
            return cls(0, *[math.nan] * 5)
        sd = statistics.stdev(known) if len(known) > 1 else math.nan
        figures = (statistics.fmean(known), sd, max(known), min(known), statistics.median(known))
        return cls(len(known), *(round(figure, 4) for figure in figures))


@dataclass(frozen=True)
class Summary:
    """One label over the cases of a part: the spread of each metric, and in how many cases it was missed or extra."""

    label: str
    dice: Spread
    assd_mm: Spread
    hd95_mm: Spread
    nsd: Spread
    missed: int
    extra: int
    neither: int


@dataclass(frozen=True)
class Subject:
    """What was scored: equal identities make equal figures.

    Attributes:
        name: of the model.
        digest: SHA-256 over weights, preprocessing and the ids that make up the labels.
        tolerance_mm: of the normalised surface Dice.
    """

    name: str
    digest: str
    tolerance_mm: float


@dataclass(frozen=True)
class Evaluation:
    """The scores of a model."""

    subject: Subject
    cases: tuple[CaseScore, ...] = field(default=())

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that there are, what was never seen first."""
        order = {"test": 0, "new": 1, "": 2, "validation": 3, "train": 4}
        return tuple(sorted({case.part for case in self.cases}, key=lambda part: (order.get(part, 5), part)))

    def of(self, part: str) -> tuple[CaseScore, ...]:
        """The cases of a part."""
        return tuple(case for case in self.cases if case.part == part)

    def summary(self, part: str) -> tuple[Summary, ...]:
        """The table of a part, a row for each label."""
        cases = self.of(part)
        names = dict.fromkeys(score.label for case in cases for score in case.labels)
        return tuple(_summary(name, [s for case in cases for s in case.labels if s.label == name]) for name in names)

    def mean_dice(self, part: str) -> float:
        """Mean over the labels of their mean Dice over the cases of a part."""
        return mean(row.dice.mean for row in self.summary(part))

    def with_case(self, case: CaseScore) -> Evaluation:
        """With one more case, or another score of one."""
        kept = [each for each in self.cases if each.name != case.name]
        return Evaluation(self.subject, tuple(sorted([*kept, case], key=lambda each: each.name)))

    def to_json(self) -> dict[str, Any]:
        """JSON-able data; NaN is null."""
        parts = {
            part or "all": {
                "cases": len(self.of(part)),
                "mean_dice": self.mean_dice(part),
                "labels": [asdict(row) for row in self.summary(part)],
            }
            for part in self.parts
        }
        found: dict[str, Any] = _nulled(
            {"format": FORMAT, **asdict(self.subject), "summary": parts, "cases": [asdict(each) for each in self.cases]}
        )
        return found

    def to_csv(self) -> str:
        """A row for each case and label."""
        plain = [each.name for each in fields(LabelScore)]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["case", "part", *plain, "verdict", "seconds"])
        for case in self.cases:
            for score in case.labels:
                row = [getattr(score, name) for name in plain]
                shown = ["" if isinstance(value, float) and math.isnan(value) else value for value in row]
                writer.writerow([case.name, case.part, *shown, score.verdict, case.seconds])
        return text.getvalue()


@dataclass
class Book:
    """An evaluation as ``<stem>.json`` and ``<stem>.csv`` in a folder, both whole at any time.

    Args:
        folder: None keeps nothing.
        evaluation: what is known already.
    """

    folder: Path | None
    stem: str
    evaluation: Evaluation

    @classmethod
    def open(cls, folder: Path | None, stem: str, subject: Subject) -> Book:
        """The book of a folder; what it says of another model, or with another tolerance, is forgotten.

        Raises:
            DataError: a file of that name that is no evaluation.
        """
        empty = cls(folder, stem, Evaluation(subject))
        path = empty.path
        if path is None or not path.is_file():
            return empty
        try:
            data = json.loads(path.read_bytes())
            if data["format"] != FORMAT:
                raise ValueError(data["format"])
            known = Subject(*(data[each.name] for each in fields(Subject)))
            cases = tuple(_case(each) for each in data["cases"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is no evaluation of Hilum; move it away.") from error
        same = (known.digest, known.tolerance_mm) == (subject.digest, subject.tolerance_mm)
        return cls(folder, stem, Evaluation(subject, cases)) if same else empty

    @property
    def path(self) -> Path | None:
        """The JSON file."""
        return None if self.folder is None else self.folder / f"{self.stem}.json"

    def known(self, name: str, files: Mapping[str, str]) -> CaseScore | None:
        """The score of a case or slab that was computed before from the same files in the same order of channels."""
        contents = list(files.values())
        same = (case for case in self.evaluation.cases if case.name == name)
        return next((case for case in same if list(case.files.values()) == contents), None)

    def add(self, case: CaseScore) -> None:
        """Take a score in and write both files."""
        self.evaluation = self.evaluation.with_case(case)
        path = self.path
        if path is not None:
            data = json.dumps(self.evaluation.to_json(), indent=1, allow_nan=False)
            write_atomically(path, data.encode())
            write_atomically(path.with_name(f"{self.stem}.csv"), self.evaluation.to_csv().encode())


def mean(values: Iterable[float]) -> float:
    """Of the values that are no NaN; NaN where there is none."""
    return Spread.of(values).mean


def _summary(name: str, scores: Sequence[LabelScore]) -> Summary:
    spreads = {metric: Spread.of(getattr(score, metric) for score in scores) for metric in METRICS}
    verdicts = [score.verdict for score in scores]
    missed, extra, neither = (verdicts.count(each) for each in ("missed", "extra", "neither"))
    return Summary(name, **spreads, missed=missed, extra=extra, neither=neither)


def _case(data: Mapping[str, Any]) -> CaseScore:
    labels = tuple(
        LabelScore(each["label"], *(math.nan if each[name] is None else float(each[name]) for name in FIGURES))
        for each in data["labels"]
    )
    planes = None if data["planes"] is None else (int(data["planes"][0]), data["planes"][1])
    return CaseScore(**(dict(data) | {"labels": labels, "planes": planes}))


def _nulled(value: Any) -> Any:
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, Mapping):
        return {key: _nulled(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_nulled(each) for each in value]
    return value
