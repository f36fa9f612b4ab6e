"""The run's networks exported, served by a gateway and scored on a case that no choice has seen."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hilum_benchmark.searches.bench import Bench, Entry
from hilum_benchmark.serving import gateway
from hilum_client.client import Client
from hilum_export.export import Wishes, export
from hilum_inference.repository import shipped_repository
from hilum_search.cases import Files
from hilum_search.data import read_pair
from hilum_search.evaluate import classes
from hilum_search.metrics import dice

LATER = Files((Path("example_ct_dicom"),), Path("example_seg_dicom.nii.gz"), "DICOM patient")
DEMO = "abdomen-ct-demo"
REPOSITORIES = "repositories"


def served(bench: Bench, rows: Sequence[Entry]) -> dict[str, Any]:
    """Dice by label of every run's answer over HTTP, and of the shipped demo model's, by the run's folder."""
    rules = bench.rules
    image, reference = read_pair(_below(bench))
    truth = classes(reference, rules.labels)
    found: dict[str, Any] = {}
    for row in rows:
        repository = bench.work / REPOSITORIES / row.folder
        shutil.rmtree(repository, ignore_errors=True)
        exported = export(bench.work / row.folder, repository, wishes=Wishes(("fp32",), dice_gate=False))
        found[row.folder] = {"bytes": exported.bytes} | _answered(bench, repository, rules.name, truth)
    found[DEMO] = _answered(bench, shipped_repository(), DEMO, truth)
    return {"grid": image.grid.shape, "models": found}


def _answered(bench: Bench, repository: Path, model: str, truth: Any) -> dict[str, Any]:
    with gateway(repository) as server, Client(server.url) as client:
        result = client.segment(_below(bench).images[0], model)
    if result.labels is None:  # only where it was asked into a file
        raise ValueError(f"{model} answered no labels")
    scores = dice(result.labels, truth, [label.id for label in bench.rules.labels])
    return {"dice": {label.name: scores[label.id] for label in bench.rules.labels}, "seconds": result.timings}


def _below(bench: Bench) -> Files:
    """The later case with its whole paths."""
    later = bench.later
    images = tuple(bench.data / path for path in later.images)
    return Files(images, bench.data / later.labels, later.name)
