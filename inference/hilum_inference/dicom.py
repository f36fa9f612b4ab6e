"""A DICOM series (folder, zip or one file) as a volume.

Images are sorted along their common normal by ImagePositionPatient, and the distance between them comes from those
positions: SliceThickness and SpacingBetweenSlices are often wrong and are read for a single image only. Positions are
rounded to 0.1 mm in practice, so an image may lie off its place by that rounding, or by 2 % of the step; a gap is a
missing image and is refused. World
coordinates turn from LPS to RAS here. The array is (1, columns, rows, images): i runs along a row.
"""

from __future__ import annotations

import math
import struct
import tempfile
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilum_inference.errors import GeometryError, LimitError, UnreadableError
from hilum_inference.gate.limits import Limits
from hilum_inference.io import placed
from hilum_inference.volume import Affine, Grid, Volume

STEP_TOLERANCE = 0.02
"""Share of the step by which an image may lie off its place between the first and the last..."""
ROUNDING_MM = 0.175
"""...or this many millimetres, whichever is more: three coordinates of one decimal are off by sqrt(3) x 0.05 mm, and
so are those of the image that it is compared with."""
ALIKE = 1e-3
"""Largest difference of orientation cosines and pixel spacing (mm) within one series."""
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_NO_IMAGES = frozenset({"SEG", "SR", "PR", "KO", "RTSTRUCT", "RTDOSE", "RTPLAN", "REG", "FID", "DOC"})
_STACKED = frozenset({"CT", "MR", "PT", "NM", "US"})
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_TAGS = [
    "SOPClassUID",
    *("SeriesInstanceUID", "Modality", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated"),
    *("PhotometricInterpretation", "PixelRepresentation", "ImagePositionPatient", "ImageOrientationPatient"),
    *("PixelSpacing", "SliceThickness", "SpacingBetweenSlices", "RescaleSlope", "RescaleIntercept"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit"),
]
_DAMAGED = "DICOM file {} has a damaged header; export it again."
_Head = tuple[int, Path, Any]  # number among the files, path, header
# What pydicom and its decoders raise on damaged data, as met in practice.
_FAULTS = (
    AttributeError,
    EOFError,
    KeyError,
    IndexError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class _Image:
    """What one file says of its image; mm, LPS."""

    path: Path
    modality: str
    size: tuple[int, int]  # (columns, rows)
    dtype: np.dtype[Any]
    syntax: Any  # pydicom.uid.UID of the transfer syntax
    position: NDArray[np.float64]  # (3,)
    axes: NDArray[np.float64]  # (3, 2): unit vectors along a row and along a column
    spacing: NDArray[np.float64]  # (2,): between columns, between rows
    thickness: float
    slope: float
    intercept: float
    padding: tuple[int, int] | None


@np.errstate(all="ignore")
def read_series(
    path: Path, *, series: str | None = None, limits: Limits | None = None, workspace: Path | None = None
) -> Volume:
    """The volume of one series.

    Args:
        path: a folder (searched to its depths; hidden files, and those that are no DICOM images, are passed over), a
            zip or one file.
        series: its SeriesInstanceUID, needed only where there are several.
        limits: bounds on files and voxels; the defaults where left out.
        workspace: where a zip is unpacked for the time being; the system's temporary folder where left out.

    Raises:
        UnreadableError: no image, several series, images that do not belong together or cannot be decoded.
        GeometryError: positions missing, doubled or with a gap.
        LimitError: too many files or voxels.
    """
    limits = limits or Limits()
    if path.is_file() and _is_zip(path):
        from hilum_inference.gate.archive import unpack

        with tempfile.TemporaryDirectory(prefix=".hilum-", dir=workspace) as folder:
            unpack(path, Path(folder), limits)
            return read_series(Path(folder), series=series, limits=limits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's remarks on sloppy headers quote their values
        images = _images(_choose(_heads(_files(path, limits)), series))
        ordered, affine = _place(_alike(images))
        columns, rows = ordered[0].size
        shape = (columns, rows, len(ordered))
        if math.prod(shape) > limits.max_voxels or max(shape) > limits.max_dimension:
            raise LimitError(
                f"The series has {columns} x {rows} x {len(ordered)} voxels; allowed are {limits.max_voxels} in all "
                f"and {limits.max_dimension} along an axis.",
                code="too_many_voxels",
            )
        grid = placed(shape, _LPS_TO_RAS @ affine)
        return _stack(ordered, grid)


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _files(path: Path, limits: Limits) -> list[Path]:
    if path.is_file():
        return [path]
    below = (each.relative_to(path) for each in path.rglob("*") if each.is_file())
    files = sorted(path / each for each in below if not any(part.startswith(".") for part in each.parts))
    if len(files) > limits.max_files:
        raise LimitError(f"The folder holds {len(files)} files; allowed are {limits.max_files}.", code="too_many_files")
    return files


def _heads(files: Iterable[Path]) -> list[_Head]:
    """The headers of all DICOM images among some files, not judged yet: most may be of other series."""
    try:
        import pydicom
    except ImportError as error:
        raise UnreadableError(
            "DICOM is read with the extra: pip install 'hilum[dicom]'.", code="dicom_not_installed"
        ) from error
    found = []
    for number, path in enumerate(files, start=1):
        with path.open("rb") as file:
            if file.read(132)[128:] != b"DICM":
                continue
        with _refusing(_DAMAGED.format(number), "bad_dicom"):
            head = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
            if "Rows" in head and head.get("Modality") not in _NO_IMAGES:
                found.append((number, path, head))
    return found


@contextmanager
def _refusing(message: str, code: str) -> Iterator[None]:
    """Turn what damaged data makes pydicom and its decoders raise into a refusal.

    The cause is dropped: it quotes the bytes that it stumbled over, which may be the patient's name.
    """
    try:
        yield
    except BaseException as error:
        module, name = type(error).__module__, type(error).__name__
        if isinstance(error, _FAULTS) or module == "pydicom.errors" or name == "PanicException":  # of Rust decoders
            raise UnreadableError(message, code=code) from None
        raise


def _images(heads: Iterable[_Head]) -> list[_Image]:
    """The checked headers of one series."""
    found = []
    for number, path, head in heads:
        with _refusing(_DAMAGED.format(number), "bad_dicom"):
            found.append(_image(path, head))
    return found


def _image(path: Path, head: Any) -> _Image:
    """The checked header of one image; plain ValueErrors mean that a value is damaged."""
    if int(head.get("NumberOfFrames") or 1) > 1:
        raise UnreadableError(
            "The DICOM file holds many frames; export it as a classic series, one image a file.", code="multi_frame"
        )
    if head.get("SamplesPerPixel", 1) != 1 or head.get("PhotometricInterpretation") != "MONOCHROME2":
        raise UnreadableError(
            f"The images are {head.get('PhotometricInterpretation')}; only MONOCHROME2 (grey, larger is brighter) is "
            "read.",
            code="not_monochrome2",
        )
    bits = int(head.BitsAllocated)
    if bits not in (8, 16, 32):
        raise UnreadableError(f"The pixels take {bits} bits; 8, 16 and 32 are read.", code="unsupported_type")
    orientation = _numbers(head, "ImageOrientationPatient", 6)
    axes = orientation.reshape(2, 3).T
    lengths = np.linalg.norm(axes, axis=0)
    if np.abs(lengths - 1).max() > 0.01:
        raise GeometryError("ImageOrientationPatient does not hold two unit vectors.", code="bad_orientation")
    slope, intercept = float(head.get("RescaleSlope") or 1), float(head.get("RescaleIntercept") or 0)
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise UnreadableError(f"The rescaling ({slope:g}, {intercept:g}) is not finite.", code="bad_scaling")
    return _Image(
        path=path,
        modality=str(head.get("Modality", "")),
        size=(int(head.Columns), int(head.Rows)),
        dtype=np.dtype(f"{'i' if head.get('PixelRepresentation') else 'u'}{bits // 8}"),
        syntax=head.file_meta.TransferSyntaxUID,
        position=_numbers(head, "ImagePositionPatient", 3),
        axes=axes / lengths,
        spacing=_numbers(head, "PixelSpacing", 2)[::-1],
        thickness=float(head.get("SliceThickness") or head.get("SpacingBetweenSlices") or 0),
        slope=slope,
        intercept=intercept,
        padding=_padding(head),
    )


def _numbers(head: Any, tag: str, count: int) -> NDArray[np.float64]:
    value = head.get(tag)
    numbers = np.array([] if value is None else [float(v) for v in value])
    if numbers.size != count or not np.isfinite(numbers).all():
        raise GeometryError(
            f"An image lacks {tag}, so it cannot be placed in space; export the original CT or MR images.",
            code="missing_position",
        )
    return numbers


def _padding(head: Any) -> tuple[int, int] | None:
    """Lowest and highest stored value that mean "nothing was measured here"."""
    value, limit = head.get("PixelPaddingValue"), head.get("PixelPaddingRangeLimit")
    if value is None:
        return None
    # some write them as unsigned beside signed pixels, or the other way round
    kind = "i" if head.get("PixelRepresentation") else "u"
    bits = np.array([int(value), int(value if limit is None else limit)]).astype(f"{kind}{head.BitsAllocated // 8}")
    return int(bits.min()), int(bits.max())


def _choose(heads: Sequence[_Head], series: str | None) -> list[_Head]:
    groups: dict[str, list[_Head]] = {}
    for each in heads:
        groups.setdefault(str(each[2].get("SeriesInstanceUID", "")), []).append(each)
    if not groups:
        raise UnreadableError("There is no DICOM image in it; send the files of one CT or MR series.", code="no_images")
    if series in groups:
        return groups[series]
    stacks = [group for group in groups.values() if not all(_is_picture(head) for _, _, head in group)]
    taken = stacks if len(groups) > 1 else list(groups.values())
    if series is None and len(taken) == 1:
        return taken[0]
    names = [
        f"{uid} ({group[0][2].get('Modality', '')}, {len(group)} images)" for uid, group in list(groups.items())[:8]
    ]
    more = f" and {len(groups) - 8} more" if len(groups) > 8 else ""
    raise UnreadableError(
        f"There are {len(groups)} series, none of them chosen: {'; '.join(names)}{more}; send one, or name one.",
        code="several_series" if series is None else "unknown_series",
    )


def _is_picture(head: Any) -> bool:
    """Whether an image lies nowhere in the patient: a dose report, a screen capture, a radiograph.

    Not one of a stack whose positions were taken out: that may be what was meant.
    """
    if "ImagePositionPatient" in head or str(head.get("NumberOfFrames") or 1) != "1":
        return False
    kind = str(head.get("SOPClassUID", ""))
    pictures = kind.startswith(_SECONDARY_CAPTURE) or head.get("Modality") not in _STACKED
    return pictures or head.get("SamplesPerPixel", 1) != 1


def _alike(images: list[_Image]) -> list[_Image]:
    first = images[0]
    if any(image.size != first.size for image in images):
        raise UnreadableError(
            "The images of the series differ in size; send one stack of equal images.", code="mixed_sizes"
        )
    if any(np.abs(image.axes - first.axes).max() > ALIKE for image in images):
        raise GeometryError(
            "The images of the series are not parallel (a localizer, or several stacks); send one parallel stack.",
            code="mixed_orientations",
        )
    if any(np.abs(image.spacing - first.spacing).max() > ALIKE for image in images):
        raise GeometryError("The images of the series differ in pixel spacing; send one stack.", code="mixed_spacing")
    return images


def _place(images: list[_Image]) -> tuple[list[_Image], Affine]:
    """The images in the order of their positions along the normal, and the LPS affine of (column, row, image)."""
    axes, spacing = images[0].axes, images[0].spacing
    normal = np.cross(axes[:, 0], axes[:, 1])
    ordered = sorted(images, key=lambda image: float(image.position @ normal))
    positions = np.array([image.position for image in ordered])  # (images, 3)
    step = normal * ordered[0].thickness if len(ordered) == 1 else _step(positions, normal)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = axes[:, 0] * spacing[0], axes[:, 1] * spacing[1]
    affine[:3, 2], affine[:3, 3] = step, positions[0]
    return ordered, affine


def _step(positions: NDArray[np.float64], normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """The vector (3,) from each image to the next; ``positions`` (images, 3) are sorted along the normal.

    Each position is judged against its place on the line from the first to the last: rounded positions make steps
    that differ by more than they are off themselves.
    """
    along = positions @ normal
    _check_steps(along)
    count = np.arange(len(positions))[:, None]
    step: NDArray[np.float64] = (positions[-1] - positions[0]) / (len(positions) - 1)
    off = np.linalg.norm(positions - positions[0] - count * step, axis=1)
    worst = int(np.argmax(off))
    if off[worst] > max(STEP_TOLERANCE * float(np.linalg.norm(step)), ROUNDING_MM):
        raise GeometryError(
            f"The images do not lie evenly on a straight line: image {worst + 1} of {len(positions)} is "
            f"{off[worst]:.2f} mm from its place; send one stack.",
            code="uneven_positions",
        )
    upright: NDArray[np.float64] = normal * (along[-1] - along[0]) / (len(positions) - 1)
    aside = positions - positions[0] - (along - along[0])[:, None] * normal  # (images, 3): within the image plane
    return upright if np.linalg.norm(aside, axis=1).max() <= ROUNDING_MM else step  # rounding is no gantry tilt


def _check_steps(along: NDArray[np.float64]) -> None:
    """Refuse doubled images and gaps; ``along`` are the sorted positions on the normal in mm."""
    steps = np.diff(along)
    usual = float(np.median(steps))
    close, far = int(np.argmin(steps)), int(np.argmax(steps))
    if steps[close] < max(0.25 * usual, 1e-3):
        raise GeometryError(
            f"Images {close + 1} and {close + 2} lie at the same place ({along[close]:.2f} mm): doubled files, or "
            "several phases in one series; send each place once.",
            code="duplicate_slices",
        )
    if steps[far] > max(1.5 * usual, usual + 2 * ROUNDING_MM):
        raise GeometryError(
            f"Between {along[far]:.2f} and {along[far + 1]:.2f} mm the step is {steps[far]:.2f} mm where "
            f"{usual:.2f} mm is usual: {max(1, round(steps[far] / usual) - 1)} image(s) are missing; send the complete "
            "series.",
            code="missing_slices",
        )


def _stack(images: list[_Image], grid: Grid) -> Volume:
    """Decode every image into one array; a rescaling that differs between images is applied here."""
    rescalings = {(image.slope, image.intercept) for image in images}
    stored = np.result_type(*{image.dtype for image in images})
    alike = len(rescalings) == 1
    dtype = stored if alike else _rescaled_type(stored, rescalings)
    array = np.empty(grid.shape, dtype, order="F")
    lows: list[float] = []
    unmeasured = []
    for k, image in enumerate(images):
        plane, measured = _pixels(image, k + 1)
        if not alike:
            plane = plane.astype(np.float64) * image.slope + image.intercept
        array[:, :, k] = plane.T
        if measured:
            lows.append(plane.min())
        else:
            unmeasured.append(k)
    if lows:
        array[:, :, unmeasured] = min(lows)
    slope, intercept = next(iter(rescalings)) if alike else (1.0, 0.0)
    return Volume(array[None], grid, slope, intercept)


def _rescaled_type(stored: np.dtype[Any], rescalings: Iterable[tuple[float, float]]) -> np.dtype[Any]:
    """int32 where every rescaled value is a whole number that fits, else float32."""
    info = np.iinfo(stored)
    largest = max(abs(info.min), info.max)
    whole = all(
        slope.is_integer() and intercept.is_integer() and abs(slope) * largest + abs(intercept) < 2**31
        for slope, intercept in rescalings
    )
    return np.dtype(np.int32 if whole else np.float32)


def _pixels(image: _Image, number: int) -> tuple[NDArray[Any], bool]:
    """(rows, columns) stored values, and whether any was measured.

    What CT scanners pad with becomes the lowest value that was measured in the image.
    """
    damaged = (
        f"The pixels of image {number} cannot be decoded (damaged, or compressed in a way that is not read); export "
        "the series uncompressed."
    )
    with _refusing(damaged, "bad_pixels"):
        plane = _decoded(image)
    if plane.shape != image.size[::-1] or not np.can_cast(plane.dtype, image.dtype, "safe"):
        raise UnreadableError(
            f"The pixels of image {number} contradict its header; export it again.", code="bad_pixels"
        )
    if image.padding is None or image.modality != "CT":  # MR pads with 0, which is background anyway
        return plane, True
    padded = (plane >= image.padding[0]) & (plane <= image.padding[1])
    if padded.all():
        return plane, False
    if padded.any():
        plane[padded] = plane[~padded].min()
    return plane, True


def _decoded(image: _Image) -> NDArray[Any]:
    """(rows, columns); a plain ValueError means that the pixels are damaged."""
    import pydicom
    from pydicom.encaps import generate_frames
    from pydicom.pixels import pixel_array
    from pydicom.uid import JPEGLSTransferSyntaxes, JPEGTransferSyntaxes

    plain = not (image.syntax.is_compressed or image.syntax.is_deflated)
    dataset: Any = image.path if plain else pydicom.dcmread(image.path)
    if image.syntax in (*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes):
        # these decoders fill up what is missing without a word; a few bytes may pad an end that is there
        (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
        if b"\xff\xd9" not in frame.rstrip(b"\0")[-16:]:
            raise ValueError
    pixels: NDArray[Any] = pixel_array(dataset, decoding_plugin="pylibjpeg" if image.syntax.is_compressed else "")
    return pixels
