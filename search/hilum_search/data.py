"""Training cases: image and reference segmentation on the model's grid, cut into slabs that share no voxel.

Reading, orientation, resampling and intensity rules are those of the heart, so that training and serving cannot differ.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilum_client.segment import stem
from hilum_inference import intensity
from hilum_inference.geometry import ModelGrid, oriented_axes
from hilum_inference.intensity import Normaliser
from hilum_inference.io import read_volume, stack_channels
from hilum_inference.manifest import Geometry, Manifest
from hilum_inference.preprocess import model_grid, resampled
from hilum_inference.volume import Grid, Volume
from hilum_search.cases import Dataset, Files, Part
from hilum_search.errors import DataError, RecipeError
from hilum_search.recipe import Recipe, Target
from hilum_search.reference import read_reference

GRID_TOLERANCE_MM = 1e-2
"""Image and reference must place their voxels alike within this distance; headers are rounded."""


@dataclass(frozen=True)
class Case:
    """One case, or a slab of one, on the model's grid.

    Attributes:
        name: what reports call it.
        image: (C, D, H, W) float32 values before the intensity rule, in the stored unit (HU).
        ids: (D, H, W) ids of the reference segmentation.
        normalisers: the intensity rule of each channel, with the figures of the whole case.
    """

    name: str
    image: NDArray[np.float32]
    ids: NDArray[np.integer[Any]]
    normalisers: tuple[Normaliser, ...]

    def planes(self, first: int, last: int) -> Case:
        """The slab of planes [first, last) along the last axis.

        Raises:
            DataError: planes that the case does not have.
        """
        if not 0 <= first < last <= self.ids.shape[2]:
            raise DataError(f"The slab {first}:{last} lies outside the {self.ids.shape[2]} planes of {self.name}.")
        kept = slice(first, last)
        name = f"{self.name}[{first}:{last}]"
        return dataclasses.replace(self, name=name, image=self.image[..., kept], ids=self.ids[..., kept])


def recipe_cases(recipe: Recipe, folder: Path) -> Dataset:
    """The cases that a recipe names, below ``folder``.

    Raises:
        DataError: a file is missing or is not the one that the recipe names, or the recipe has no cases.
    """
    if not recipe.file.cases:
        raise DataError(f"The recipe {recipe.name} names no cases; add [[cases]] with image and labels.")
    found = []
    for case in recipe.file.cases:
        for name, expected in ((case.image, case.image_sha256), (case.labels, case.labels_sha256)):
            if not (folder / name).exists():
                raise DataError(f"There is no {name} in {folder}; --data names the folder of the recipe's cases.")
            if expected and content_digest(folder / name) != expected:
                raise DataError(f"{name} is not the file that the recipe {recipe.name} names: its SHA-256 differs.")
        found.append(Files((folder / case.image,), folder / case.labels, stem(folder / case.image), case.patient))
    channels = recipe.file.channels
    names, modalities = tuple(c.name for c in channels), tuple(c.modality for c in channels)
    return Dataset(folder, "recipe", tuple(found), names, modalities)


def load_case(files: Files, manifest: Manifest) -> Case:
    """A case on the model's grid: the image by the manifest's interpolation, the reference by nearest voxel.

    Raises:
        InputError: a file that cannot be read or does not fit the model.
        DataError: image and reference on different grids.
        RecipeError: an intensity rule that runs before resampling.
    """
    if manifest.intensity.stage != "after-resampling":
        raise RecipeError("Training offers intensity rules after resampling only: augmentation works on stored values.")
    image, labels = read_pair(files)
    grid = model_grid(image, manifest)
    values = _resampled(image, grid, manifest.geometry)
    fitted = tuple(
        intensity.fit(manifest.intensity, manifest.intensity_steps(n), lambda n=n: [values[n]])  # type: ignore[misc]
        for n in range(len(values))
    )
    return Case(files.name, values, _nearest(labels, grid), fitted)


def load_part(part: Part, recipe: Recipe) -> Case:
    """A case, or a slab of it, on the model's grid.

    Raises:
        InputError, DataError: as load_case; a slab that lies outside the case.
    """
    case = load_case(part.files, recipe.manifest())
    if part.planes is None:
        return case
    first, last = part.planes
    return case.planes(first, case.ids.shape[2] if last is None else last)


def read_pair(files: Files) -> tuple[Volume, Volume]:
    """Image as stored, and reference segmentation with its axes in the order and direction of the image's.

    Raises:
        InputError: a file that cannot be read.
        DataError: two different grids.
    """
    image = stack_channels([read_volume(path) for path in files.images])
    labels = turned(read_reference(files.labels, image.grid), image.grid.orientation)
    if not image.grid.close_to(labels.grid, GRID_TOLERANCE_MM):
        names = f"{files.images[0].name} and {files.labels.name}"
        raise DataError(f"{names} lie on different grids; resample one to the other.")
    return image, labels


def turned(volume: Volume, orientation: str) -> Volume:
    """The same voxels in the same places with the axes in another order and direction, nothing copied."""
    axes, flipped = oriented_axes(volume.grid, Geometry(orientation=orientation))
    array = volume.array.transpose(0, *(axis + 1 for axis in axes))
    array = array[:, *(slice(None, None, -1 if flip else 1) for flip in flipped)]
    step = np.zeros((4, 4))  # from the new voxel indices to the old ones
    step[3, 3] = 1
    for new, (old, flip) in enumerate(zip(axes, flipped, strict=True)):
        step[old, new] = -1 if flip else 1
        step[old, 3] = volume.grid.shape[old] - 1 if flip else 0
    shape = (array.shape[1], array.shape[2], array.shape[3])
    return dataclasses.replace(volume, array=array, grid=Grid(shape, volume.grid.affine @ step))


def normalise(values: NDArray[np.float32], normalisers: Sequence[Normaliser]) -> NDArray[np.float32]:
    """(C, D, H, W) values through the intensity rule of each channel, a copy."""
    out = np.array(values, np.float32, order="C")
    for block, normaliser in zip(out, normalisers, strict=True):
        normaliser.apply(block)
    return out


def targets(ids: NDArray[np.integer[Any]], labels: Sequence[Target]) -> NDArray[np.int64]:
    """(D, H, W) classes of the network from ids of the reference segmentation."""
    classes: NDArray[np.int64] = class_table(labels, int(ids.max(initial=0)))[ids]
    return classes


def class_table(labels: Sequence[Target], largest: int) -> NDArray[np.int64]:
    """Class of every id from 0 to ``largest`` (or the largest id that a label names); 0 where no label names it."""
    size = max(largest, *(i for label in labels for i in label.from_ids)) + 1
    table = np.zeros(size, np.int64)
    for label in labels:
        table[list(label.from_ids)] = label.id
    return table


def content_digest(path: Path) -> str:
    """SHA-256 of a file's bytes; of a folder, over the names and SHA-256 of the files in it and below.

    Hidden files are passed over, as the Finder's .DS_Store.
    """
    if path.is_dir():
        below = (each.relative_to(path) for each in path.rglob("*") if each.is_file())
        files = sorted(path / each for each in below if not any(part.startswith(".") for part in each.parts))
        listed = [f"{each.relative_to(path).as_posix()} {content_digest(each)}" for each in files]
        return hashlib.sha256("\n".join(listed).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _resampled(volume: Volume, grid: ModelGrid, geometry: Geometry) -> NDArray[np.float32]:
    channels = []
    for channel in range(volume.channels):
        block = np.array(grid.view(volume.values(channel)[None])[0], order="C")  # written to where it is held in range
        channels.append(resampled(block, grid, geometry))
    return np.stack(channels)


def _nearest(volume: Volume, grid: ModelGrid) -> NDArray[np.int64]:
    block: NDArray[Any] = grid.view(volume.array)[0]
    for axis, mapping in enumerate(grid.maps):
        block = np.take(block, mapping.nearest, axis=axis)
    ids = np.rint(block * volume.slope + volume.intercept)
    return np.ascontiguousarray(ids, dtype=np.int64)
