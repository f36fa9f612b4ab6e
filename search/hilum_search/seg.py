"""DICOM SEG as a volume of segment numbers, laid frame by frame on the planes of its image.

Frames are placed by their own positions: writers leave empty ones out, in any order, and repeat the rounded positions
of the images, so that their distances tell nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilum_inference.dicom import ROUNDING_MM, STEP_TOLERANCE
from hilum_inference.volume import Grid, Volume
from hilum_search.errors import DataError

_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])
# What damaged or incomplete objects make highdicom and pydicom raise.
_FAULTS = (AttributeError, EOFError, IndexError, KeyError, OSError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class _Frame:
    """One frame: its segment (0 where the pixels hold the numbers), and its place in RAS mm.

    Attributes:
        segment: number.
        origin: (3,) centre of the first pixel.
        steps: (3, 2) from column to column, and from row to row.
        size: (columns, rows).
    """

    segment: int
    origin: NDArray[np.float64]
    steps: NDArray[np.float64]
    size: tuple[int, int]


def read_seg(path: Path, like: Grid | None) -> Volume:
    """The segments of a SEG in one volume whose ids are the segment numbers.

    Args:
        path: a DICOM SEG, BINARY or LABELMAP.
        like: the grid of its image, which the volume gets; None: the box of the planes that have frames.

    Raises:
        DataError: damaged, of probabilities, with segments that overlap, or off the image's planes.
    """
    with _refusing():
        seg = _open(path)
        kind = str(seg.SegmentationType)
        frames = [_frame(seg, number, kind) for number in range(int(seg.NumberOfFrames))]
    if kind not in ("BINARY", "LABELMAP"):
        raise DataError(f"A {kind} DICOM SEG holds shares of voxels, not labels; save it as BINARY or LABELMAP.")
    grid = _grid_of(frames) if like is None else like
    largest = max(int(each.SegmentNumber) for each in seg.SegmentSequence)
    ids = np.zeros(grid.shape, np.uint8 if largest < 256 else np.uint16, order="F")
    for number, frame in enumerate(frames):
        with _refusing():
            pixels = seg.get_stored_frame(number + 1)
        _lay(ids, grid, frame, np.where(pixels, frame.segment or pixels, 0).T)
    return Volume(ids[None], grid)


def _open(path: Path) -> Any:
    try:
        import highdicom
    except ImportError as error:
        raise DataError("DICOM SEG is read with the extra: pip install 'hilum[dicom]'.") from error
    return highdicom.seg.segread(path)


@contextmanager
def _refusing() -> Iterator[None]:
    """Turn what a damaged SEG raises into a refusal; the cause is dropped, since it may quote the header."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except _FAULTS:
            raise DataError("The DICOM SEG is damaged, or lacks what the standard asks for; export it again.") from None


def _frame(seg: Any, number: int, kind: str) -> _Frame:
    own, shared = seg.PerFrameFunctionalGroupsSequence[number], seg.SharedFunctionalGroupsSequence[0]

    def group(name: str) -> Any:
        return (own[name] if name in own else shared[name]).value[0]

    segment = 0
    if kind != "LABELMAP":
        segment = int(group("SegmentIdentificationSequence").ReferencedSegmentNumber)
    position = np.array(group("PlanePositionSequence").ImagePositionPatient, np.float64)
    axes = np.array(group("PlaneOrientationSequence").ImageOrientationPatient, np.float64).reshape(2, 3)
    rows, columns = (float(mm) for mm in group("PixelMeasuresSequence").PixelSpacing)  # between rows, between columns
    steps = (axes * [[columns], [rows]] * _LPS_TO_RAS).T
    return _Frame(segment, position * _LPS_TO_RAS, steps, (int(seg.Columns), int(seg.Rows)))


def _grid_of(frames: list[_Frame]) -> Grid:
    """The box of all frames, as far apart as the nearest two; a single plane counts as 1 mm thick."""
    first = frames[0]
    normal = np.cross(first.steps[:, 0], first.steps[:, 1])
    normal /= np.linalg.norm(normal)
    along = np.unique(np.round([frame.origin @ normal for frame in frames], 3))
    step = float(np.diff(along).min()) if len(along) > 1 else 1.0
    affine = np.eye(4)
    affine[:3, :2], affine[:3, 2] = first.steps, normal * step
    affine[:3, 3] = first.origin + normal * (along[0] - first.origin @ normal)
    planes = round(float(along[-1] - along[0]) / step) + 1
    return Grid((*first.size, planes), affine)


def _lay(ids: NDArray[Any], grid: Grid, frame: _Frame, pixels: NDArray[Any]) -> None:
    """Write one frame's (columns, rows) numbers into ``ids`` (I, J, K)."""
    target = _plane(ids, grid, frame)
    clash = (target != 0) & (pixels != 0) & (target != pixels)
    if clash.any():
        one, other = sorted((int(target[clash][0]), int(pixels[clash][0])))
        raise DataError(
            f"The segments {one} and {other} of the DICOM SEG overlap, and a voxel has one label; draw them apart."
        )
    np.copyto(target, pixels.astype(ids.dtype), where=pixels != 0)


def _plane(ids: NDArray[Any], grid: Grid, frame: _Frame) -> NDArray[Any]:
    """The (columns, rows) view of the plane of ``ids`` on which a frame lies."""
    inverse = np.linalg.inv(grid.affine[:3, :3])
    steps = inverse @ frame.steps  # (3, 2) in voxels
    first = inverse @ (frame.origin - grid.affine[:3, 3])  # (3,) where the first pixel lies, in voxels
    axes = [int(np.argmax(np.abs(steps[:, n]))) for n in (0, 1)]
    if axes[0] == axes[1]:
        raise _elsewhere(grid, frame)
    across = 3 - axes[0] - axes[1]
    view = ids.transpose(*axes, across)
    straight, corner = np.zeros((3, 2)), np.zeros(3)  # what steps and first are where the frame fits
    for n, axis in enumerate(axes):
        backwards = bool(steps[axis, n] < 0)
        straight[axis, n] = -1 if backwards else 1
        corner[axis] = grid.shape[axis] - 1 if backwards else 0
        view = np.flip(view, n) if backwards else view
    plane = round(float(first[across]))
    corner[across] = plane
    off = grid.affine[:3, :3] @ (first - corner)  # mm
    drift = grid.affine[:3, :3] @ ((steps - straight) * (np.array(frame.size) - 1))  # mm, at the far ends
    allowed = max(ROUNDING_MM, STEP_TOLERANCE * grid.spacing[across])
    fits = max(np.linalg.norm(off), np.abs(drift).max()) <= allowed
    if not fits or view.shape[:2] != frame.size or not 0 <= plane < view.shape[2]:
        raise _elsewhere(grid, frame)
    return view[:, :, plane]


def _elsewhere(grid: Grid, frame: _Frame) -> DataError:
    columns, rows = (float(mm) for mm in np.linalg.norm(frame.steps, axis=0))
    place = ", ".join(f"{mm:.4g}" for mm in frame.origin)
    sizes, spacing = "x".join(map(str, grid.shape)), " x ".join(f"{mm:.4g}" for mm in grid.spacing)
    return DataError(
        f"A frame of the DICOM SEG ({frame.size[0]}x{frame.size[1]} pixels of {columns:.4g} x {rows:.4g} mm from "
        f"{place}) lies on no plane of its image ({sizes} voxels of {spacing} mm); resample one to the other."
    )
