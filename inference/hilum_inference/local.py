"""The verbs of the SDK without a server: models and segmentations in this very process."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hilum_inference.engines import Engine, EngineSettings, open_engine
from hilum_inference.errors import MismatchError
from hilum_inference.io import check_one_place, read_volume, stack_channels, write_labels
from hilum_inference.memory import free_memory
from hilum_inference.pipeline import Planned, Progress, Segmentation, Segmenter
from hilum_inference.repository import Model, Repository, shipped_repository
from hilum_inference.volume import Volume

Image = Path | str | Volume | Mapping[str, Path | str]


@dataclass(frozen=True)
class LocalResult:
    """A finished segmentation: the mask in memory and, where asked for, on disk.

    Attributes:
        segmentation: labels (I, J, K) and all that is known of them.
        model, version: what made it.
        statistics: ``{name, id, voxels, ml, ...}`` of each label.
        timings: seconds of each stage, reading and writing included.
        mask_path: where the mask was written, if it was.
    """

    segmentation: Segmentation
    model: str
    version: int
    statistics: list[dict[str, Any]]
    timings: dict[str, float]
    mask_path: Path | None = None
    report: dict[str, Any] = field(default_factory=dict)


class LocalClient:
    """Segments in this process; networks stay loaded between calls.

    Args:
        repositories: folders of models; default: the models that come with Hilum.
        threads: of the CPU; None: all.
        memory_budget: bytes one segmentation may plan to add; None: 80 % of what is free then.
        variant: of the models, such as ``python-int8``; None: their default configuration.
    """

    def __init__(
        self,
        repositories: Sequence[Path] | None = None,
        threads: int | None = None,
        memory_budget: int | None = None,
        variant: str | None = None,
    ) -> None:
        self._repository = Repository(list(repositories) if repositories else [shipped_repository()], variant)
        self._settings = EngineSettings(threads=threads)
        self._memory_budget = memory_budget
        self._engines: dict[str, Engine] = {}
        self._seconds_a_window: dict[str, float | None] = {}

    def models(self) -> list[dict[str, Any]]:
        """The models that can be used, each as JSON-able data."""
        return [describe(model) for model in self._repository.models()]

    def refused(self) -> dict[str, str]:
        """The models that ``models`` left out, and why: name -> sentence."""
        return dict(self._repository.broken)

    def refused_variants(self) -> dict[str, dict[str, str]]:
        """Of the models that can be used, the variants that cannot, and why: name -> variant -> sentence.

        Each network is read once, to see whether it is the one that was exported.
        """
        return {model.name: self._repository.broken_variants(model) for model in self._repository.models()}

    def segment(
        self,
        image: Image,
        *,
        model: str | None = None,
        version: int | None = None,
        out: Path | str | None = None,
        progress: Progress | None = None,
        planned: Planned | None = None,
    ) -> LocalResult:
        """Segment one image: a file, a DICOM folder, a Volume, or {channel: file}; by the served version, or another.

        ``planned(plan)`` hears what it will cost (windows, bytes, seconds where known) before the first window.

        Raises:
            InputError: the image cannot be read or does not fit the model.
            ModelError: no such model.
            EngineError: the network failed.
        """
        chosen = self._repository.model(model, version)
        start = time.perf_counter()
        volume = self._read(image, chosen)
        target = None if out is None else Path(out)
        if target is not None:
            check_one_place(target, volume)
        read = time.perf_counter() - start
        engine = self._engines.get(chosen.digest)
        if engine is None:
            engine = self._engines[chosen.digest] = open_engine(chosen, self._settings)
        known = self._seconds_a_window.get(chosen.digest)
        segmenter = Segmenter(chosen, engine, self._memory_budget or free_memory(), known)
        done = segmenter.segment(volume, progress, planned=planned)
        self._seconds_a_window[chosen.digest] = segmenter.seconds_a_window
        start = time.perf_counter()
        if target is not None:
            write_labels(target, done.labels, volume)
        timings = {"read": read, **done.timings, "write": time.perf_counter() - start}
        report = done.report() | {"timings": {stage: round(seconds, 4) for stage, seconds in timings.items()}}
        return LocalResult(done, chosen.name, chosen.version, report["labels"], timings, target, report)

    def close(self) -> None:
        """Free the networks."""
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()

    def _read(self, image: Image, model: Model) -> Volume:
        if isinstance(image, Volume):
            return image
        if not isinstance(image, Mapping):
            return read_volume(Path(image))
        names = [channel.name for channel in model.manifest.channels]
        if set(image) != set(names):
            raise MismatchError(
                f"The channels given are {', '.join(sorted(image))}; {model.name} needs {', '.join(names)}.",
                code="channel_names",
            )
        return stack_channels([read_volume(Path(image[name])) for name in names])


def describe(model: Model) -> dict[str, Any]:
    """A model as the API and the command line show it."""
    manifest = model.manifest
    return {
        "name": model.name,
        "version": model.version,
        "title": manifest.title,
        "description": manifest.description,
        "task": manifest.task,
        "channels": [channel.model_dump() for channel in manifest.channels],
        "labels": [{"name": label.name, "id": label.id, "color": label.color} for label in manifest.labels],
        "spacing": manifest.geometry.spacing,
        "window": manifest.windows.size,
        "digest": model.digest,
        "variant": model.variant,
        "variants": model.variants,
        "dice_gate": manifest.provenance.dice_gate,
        "intended_use": manifest.intended_use,
    }
