"""A model against reference segmentations, by the pipeline that serves it: on each image's own grid, case by case."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilum_inference.engines import Engine, EngineSettings, open_engine
from hilum_inference.errors import HilumError
from hilum_inference.manifest import Crop, Geometry, Manifest
from hilum_inference.pipeline import Progress, Segmenter
from hilum_inference.repository import CONFIG, Model, Repository
from hilum_inference.volume import Volume
from hilum_search import metrics
from hilum_search.cases import Files, Part
from hilum_search.data import load_case, normalise, read_pair, targets
from hilum_search.errors import DataError
from hilum_search.evaluation import Book, CaseScore, Evaluation, LabelScore, Subject
from hilum_search.metrics import TOLERANCE_MM, Agreement, agreements
from hilum_search.network import Network
from hilum_search.recipe import Target
from hilum_search.recorded import Asked
from hilum_search.torch_engine import TorchEngine
from hilum_search.trained import ENSEMBLE, WEIGHTS, Trained, read_trained
from hilum_search.validate import NORMALISED

Ids = NDArray[np.integer]
Report = Callable[[CaseScore], None]


@dataclass(frozen=True)
class Opened:
    """A model that can be scored.

    Attributes:
        title: how tables and pictures call it.
        model: what it is.
        engine: what runs it.
        labels: its labels and the ids of the reference that make them up.
        training: of a run, its training.json; None for a model of a repository.
    """

    title: str
    model: Model
    engine: Engine
    labels: tuple[Target, ...]
    training: Mapping[str, Any] | None = None

    @property
    def segmenter(self) -> Segmenter:
        """The model on its engine."""
        return Segmenter(self.model, self.engine)

    def subject(self, tolerance_mm: float) -> Subject:
        """What an evaluation of it is filed under."""
        told = [self.model.digest, [(label.id, label.from_ids) for label in self.labels]]
        return Subject(self.title, hashlib.sha256(json.dumps(told).encode()).hexdigest(), tolerance_mm)


@dataclass(frozen=True)
class Scene:
    """A case as it is scored.

    Attributes:
        image: on the grid on which the answer is compared.
        truth: (I, J, K) classes of the model on it.
        slab: whether that is the model's grid, cut.
        normalised: of a slab, the values that the network sees, by the figures of the whole case.
    """

    image: Volume
    truth: Ids
    slab: bool
    normalised: Volume | None = None


def evaluate(
    opened: Opened, cases: Iterable[Asked], book: Book | None = None, report: Report | None = None
) -> Evaluation:
    """Score cases and slabs, one after the other; what the book knows already is not computed again.

    Args:
        opened: the model.
        cases: what is scored.
        book: keeps every score as soon as it is there; None keeps none.
        report: hears of each score.

    Raises:
        DataError: a case that cannot be read, or does not fit the model; what is done is in the book.
    """
    book = book or Book(None, "", Evaluation(opened.subject(TOLERANCE_MM)))
    scores = []
    for asked in cases:
        known = book.known(asked.what.name, asked.contents)
        score = known or score_case(opened, asked, book.evaluation.subject.tolerance_mm)
        score = dataclasses.replace(score, part=asked.part)
        book.add(score)
        scores.append(score)
        if report is not None:
            report(score)
    return Evaluation(book.evaluation.subject, tuple(scores))


def score_case(opened: Opened, asked: Asked, tolerance_mm: float = TOLERANCE_MM) -> CaseScore:
    """Every metric of every label of one case.

    Raises:
        DataError: it cannot be read, or does not fit the model.
    """
    try:
        scene = look(opened, asked.what)
        begun = time.perf_counter()
        answer = segment(opened, scene)
    except HilumError as error:
        raise DataError(f"{asked.what.name}: {error.message}") from error
    seconds = time.perf_counter() - begun
    ids = [label.id for label in opened.labels]
    found = agreements(answer, scene.truth, ids, scene.image.grid.spacing, tolerance_mm)
    ml = scene.image.grid.voxel_ml
    labels = tuple(_score(label.name, found[label.id], ml) for label in opened.labels)
    what = asked.what
    return CaseScore(what.name, asked.part, what.planes, dict(asked.contents), round(seconds, 2), labels)


def look(opened: Opened, part: Part) -> Scene:
    """A case on its image's own grid; a slab of one on the model's.

    Raises:
        InputError: a file that cannot be read or does not fit the model.
        DataError: image and reference on different grids, planes that the case does not have.
    """
    if part.planes is None:
        image, reference = read_pair(part.files)
        return Scene(image, classes(reference, opened.labels), slab=False)
    manifest = opened.model.manifest
    case = load_case(part.files, manifest)
    first, last = part.planes
    slab = case.planes(first, case.ids.shape[2] if last is None else last)
    affine = slab_affine(manifest)
    seen = Volume.from_array(normalise(slab.image, slab.normalisers), affine)
    return Scene(Volume.from_array(slab.image, affine), targets(slab.ids, opened.labels), True, seen)


def segment(opened: Opened, scene: Scene, progress: Progress | None = None) -> Ids:
    """(I, J, K) ids that the model answers; as it is served, but for a slab, which lies on the model's grid already.

    Raises:
        InputError: the image does not fit the model.
    """
    manifest, volume = as_seen(opened, scene)
    model = dataclasses.replace(opened.model, manifest=manifest)
    return Segmenter(model, opened.engine).segment(volume, progress).labels


def as_seen(opened: Opened, scene: Scene) -> tuple[Manifest, Volume]:
    """What the pipeline is given: the image, or a slab that lies on the model's grid, normalised, already."""
    if scene.normalised is None:
        return opened.model.manifest, scene.image
    there = {"geometry": Geometry(orientation="native"), "crop": Crop(), "intensity": NORMALISED}
    return opened.model.manifest.model_copy(update=there), scene.normalised


def slab_affine(manifest: Manifest) -> NDArray[np.float64]:
    """RAS affine, in mm, of a case that was brought to the model's grid; its place in the patient is not kept.

    >>> slab_affine(Manifest.model_construct(geometry=Geometry(orientation="PLS", spacing=(1, 2, 3))))[:3, :3]
    array([[ 0., -2.,  0.],
           [-1.,  0.,  0.],
           [ 0.,  0.,  3.]])
    """
    geometry = manifest.geometry
    letters = "RAS" if geometry.orientation == "native" else geometry.orientation
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, old in enumerate(geometry.axes):
        world = next(n for n, pair in enumerate(("RL", "AP", "SI")) if letters[old] in pair)
        affine[world, axis] = (geometry.spacing or (1.0, 1.0, 1.0))[axis] * (1 if letters[old] in "RAS" else -1)
    return affine


def classes(reference: Volume, labels: Sequence[Target]) -> NDArray[np.uint16]:
    """(I, J, K) classes of the model from a reference segmentation, a plane at a time."""
    found = np.empty(reference.grid.shape, np.uint16)
    for k in range(reference.grid.shape[2]):
        values = reference.array[0, :, :, k] * np.float64(reference.slope) + reference.intercept
        found[:, :, k] = targets(np.rint(values).astype(np.int64), labels)
    return found


def score(segmenter: Segmenter, labels: Sequence[Target], files: Files) -> dict[str, float]:
    """Dice of every label on the image's own grid, by the pipeline that serves the model.

    Args:
        segmenter: the model on its engine.
        labels: the model's labels and the reference's ids that make them up.
        files: image and reference segmentation.

    Raises:
        InputError: a file that cannot be read or does not fit the model.
        DataError: image and reference on different grids.
    """
    image, reference = read_pair(files)
    found = metrics.dice(segmenter.segment(image).labels, classes(reference, labels), [label.id for label in labels])
    return {label.name: found[label.id] for label in labels}


def open_model(folder: Path, threads: int | None = None) -> Opened:
    """A run's folder, an ensemble's, or a model's folder in a repository, ready to be scored.

    The labels of a run know the ids of its recipe's reference; those of a model in a repository are their own ids.

    Raises:
        DataError, ModelError: the folder holds no model, or a damaged one.
    """
    if (folder / CONFIG).is_file():
        model = Repository([folder.resolve().parent]).model(folder.resolve().name)
        own = tuple(Target(name=label.name, id=label.id, from_ids=(label.id,)) for label in model.manifest.labels)
        title = f"{model.name} {model.version}"
        return Opened(title, model, open_engine(model, EngineSettings(threads=threads)), own)
    return _opened(folder, read_trained(folder))


def open_folds(folder: Path) -> tuple[Opened, ...]:
    """The runs of a cross-validation, each by itself; empty where the folder is not that of one."""
    if not (folder / ENSEMBLE).is_file():
        return ()
    names = json.loads((folder / ENSEMBLE).read_text())["folds"]
    return tuple(_opened(folder / Path(name).name, read_trained(folder / Path(name).name)) for name in names)


def open_trained(folder: Path) -> tuple[Segmenter, tuple[Target, ...]]:
    """Segmenter and labels of what ``open_model`` opens."""
    opened = open_model(folder)
    return opened.segmenter, opened.labels


def _opened(folder: Path, trained: Trained) -> Opened:
    manifest = trained.manifest
    digest = hashlib.sha256(f"{_weights_digest(trained.network)} {manifest.preprocessing_digest()}".encode())
    model = Model(manifest, 0, folder, folder / WEIGHTS, digest.hexdigest())
    labels = tuple(Target.model_validate(label) for label in trained.training["recipe"]["labels"])
    return Opened(folder.resolve().name, model, TorchEngine(manifest, trained.network), labels, trained.training)


def _weights_digest(network: Network) -> str:
    """SHA-256 over names and values; also of an ensemble, which has no file of its own."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _score(name: str, found: Agreement, ml: float) -> LabelScore:
    figures = (found.dice, found.assd_mm, found.hd95_mm, found.nsd)
    dice, assd, hd95, nsd = (value if math.isnan(value) else round(value, 5) for value in figures)
    return LabelScore(name, dice, assd, hd95, nsd, round(found.reference * ml, 6), round(found.answer * ml, 6))
