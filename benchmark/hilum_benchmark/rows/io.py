"""Reading a scan, bringing it to the model's grid, and bringing labels back to the scan's own grid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hilum_benchmark.figures import Figure, Measured, Metric, Rounds, at_least, times_less
from hilum_benchmark.process import Meter, Stopwatch
from hilum_benchmark.row import Contender, Context, Row

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hilum_inference.geometry import ModelGrid
    from hilum_inference.volume import Volume

HERE = "hilum_benchmark.rows.io"
SHAPE, QUICK_SHAPE = (512, 512, 300), (40, 36, 30)
SPACING, MODEL_SPACING = (0.8, 0.8, 1.0), 1.5
WINDOW, QUICK_WINDOW = 96, 16


def prepare(context: Context) -> Measured:
    """The scan as .nii.gz."""
    from hilum_benchmark.volumes import write_ct

    write_ct(context.folder / "ct.nii.gz", QUICK_SHAPE if context.quick else SHAPE, SPACING)
    return {}


def pattern(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """(D, H, W) labels with many edges, the same for all: what a network would have answered."""
    import numpy as np

    d, h, w = (np.arange(n, dtype=np.uint8) // 7 for n in shape)
    return np.asarray((d[:, None, None] + 2 * h[None, :, None] + 3 * w[None, None]) % 5, np.uint8)


def ours(context: Context) -> Measured:
    """read_volume, windows of the Source without overlap, ModelGrid.restore."""
    import numpy as np

    from hilum_inference import gate, io, preprocess  # noqa: F401 - what imports cost is not asked here
    from hilum_inference.sinks import empty_like_stored

    _manifest(context)  # imports as well
    forth, back = Stopwatch(), Stopwatch()
    with Meter() as memory:
        with forth:
            volume, grid = _oriented(context)
            for _ in _windows(volume, grid, context):
                pass
        labels = pattern(grid.shape)
        with back:
            out = empty_like_stored(grid, volume.array, np.uint8)
            grid.restore(labels, out)
    np.save(context.folder / "ours.npy", out)
    return _result(forth, back, memory)


def _manifest(context: Context) -> Any:
    from hilum_benchmark.networks import manifest

    geometry = {"orientation": "RAS", "spacing": (MODEL_SPACING,) * 3}
    size = QUICK_WINDOW if context.quick else WINDOW
    described = manifest("io", size, 2, geometry=geometry, intensity={"steps": [[]]})
    windows = described.windows.model_copy(update={"overlap": 0.0})
    return described.model_copy(update={"windows": windows})


def _oriented(context: Context) -> tuple[Volume, ModelGrid]:
    from hilum_inference.io import read_volume
    from hilum_inference.preprocess import model_grid

    volume = read_volume(context.folder / "ct.nii.gz")
    return volume, model_grid(volume, _manifest(context))


def _windows(volume: Volume, grid: ModelGrid, context: Context) -> Any:
    from hilum_inference.preprocess import Source

    source = Source(volume, grid, _manifest(context))
    for start in source.layout:
        yield start, source.window(start)


def monai(context: Context) -> Measured:
    """LoadImaged, Orientationd, Spacingd, then Invertd of the labels by nearest voxel."""
    import numpy as np
    import torch
    from monai.data import MetaTensor
    from monai.transforms import Compose, Invertd, LoadImaged, Orientationd, Spacingd

    torch.set_num_threads(1)
    steps = [
        LoadImaged("image", ensure_channel_first=True),
        Orientationd("image", "RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
        Spacingd("image", (MODEL_SPACING,) * 3, mode="bilinear"),
    ]
    forward = Compose(steps)
    invert = Invertd("pred", transform=forward, orig_keys="image", nearest_interp=True)
    forth, back = Stopwatch(), Stopwatch()
    with Meter() as memory:
        with forth:
            data = forward({"image": str(context.folder / "ct.nii.gz")})
        labels = torch.from_numpy(pattern(data["image"].shape[1:]))[None]
        with back:
            data["pred"] = MetaTensor(labels, meta=data["image"].meta)
            restored = invert(data)["pred"]
            answer = np.asarray(restored[0], np.uint8)
    if answer.shape != (QUICK_SHAPE if context.quick else SHAPE):
        raise ValueError(f"the labels came back as {answer.shape}")
    return _result(forth, back, memory)


def simpleitk(context: Context) -> Measured:
    """ReadImage, DICOMOrient, linear Resample, nearest-neighbour Resample of the labels."""
    import numpy as np
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    forth, back = Stopwatch(), Stopwatch()
    with Meter() as memory:
        with forth:
            image = SimpleITK.ReadImage(str(context.folder / "ct.nii.gz"))
            oriented = SimpleITK.DICOMOrient(image, "RAS")
            resampled = _to_model_grid(oriented)
        labels = pattern(resampled.GetSize())
        with back:
            mask = SimpleITK.GetImageFromArray(np.ascontiguousarray(labels.transpose(2, 1, 0)))
            mask.CopyInformation(resampled)
            nearest = SimpleITK.sitkNearestNeighbor
            restored = SimpleITK.Resample(mask, image, SimpleITK.Transform(), nearest, 0, SimpleITK.sitkUInt8)
            answer = SimpleITK.GetArrayViewFromImage(restored)
    np.save(context.folder / "simpleitk.npy", answer.transpose(2, 1, 0))
    return _result(forth, back, memory)


def _to_model_grid(image: Any) -> Any:
    """Voxel 0 stays where it is; as many voxels as fit between the first and the last centre."""
    import numpy as np
    import SimpleITK

    sizes = zip(image.GetSize(), image.GetSpacing(), strict=True)
    resampler = SimpleITK.ResampleImageFilter()
    resampler.SetSize([int(np.round((n - 1) * s / MODEL_SPACING + 1)) for n, s in sizes])
    resampler.SetOutputSpacing([MODEL_SPACING] * 3)
    resampler.SetOutputOrigin(image.GetOrigin())
    resampler.SetOutputDirection(image.GetDirection())
    resampler.SetInterpolator(SimpleITK.sitkLinear)
    resampler.SetOutputPixelType(SimpleITK.sitkFloat32)
    resampler.SetDefaultPixelValue(-1000.0)
    return resampler.Execute(image)


def agreement(context: Context) -> Measured:
    """Share of equal labels, outside the rim that SimpleITK leaves empty for want of a voxel to interpolate."""
    import numpy as np

    ours, theirs = (np.load(context.folder / f"{name}.npy") for name in ("ours", "simpleitk"))
    reach = [_last_covered(axis) for axis in _lengths(context)]
    inside = tuple(slice(n - last, None) if flip else slice(0, last) for n, last, flip in reach)
    return {"equal_percent": 100.0 * float((ours[inside] == theirs[inside]).mean())}


def _lengths(context: Context) -> list[tuple[int, float, bool]]:
    """(voxels, spacing, flipped) of each axis: two run against the model's."""
    shape = QUICK_SHAPE if context.quick else SHAPE
    return list(zip(shape, SPACING, (True, True, False), strict=True))


def _last_covered(axis: tuple[int, float, bool]) -> tuple[int, int, bool]:
    """How many voxels from voxel 0 of the model's axis lie within half a voxel of its samples."""
    n, spacing, flipped = axis
    samples = round((n - 1) * spacing / MODEL_SPACING + 1)
    return n, min(n, int((samples - 0.5) * MODEL_SPACING / spacing)), flipped


def _result(forth: Stopwatch, back: Stopwatch, memory: Meter) -> dict[str, float]:
    return {
        "cpu_s": forth.cpu_s + back.cpu_s,
        "forth_s": forth.cpu_s,
        "back_s": back.cpu_s,
        "peak_mib": memory.peak_mib,
        "added_mib": memory.added_mib,
    }


def _figures(rounds: Rounds) -> list[Figure]:
    cpu, peak = Metric("hilum", "cpu_s"), Metric("hilum", "peak_mib")
    what = "load, orient, resample, labels back"
    return [
        *times_less(rounds, f"{what}: CPU", cpu, Metric("monai", "cpu_s"), 10),
        *times_less(rounds, f"{what}: peak memory", peak, Metric("monai", "peak_mib"), 15),
        *times_less(rounds, f"{what}: CPU", cpu, Metric("simpleitk", "cpu_s"), 2),
        *at_least(Metric("labels", "equal_percent").values(rounds), "labels back equal to SimpleITK's", 100.0, "%"),
    ]


ROW = Row(
    "io",
    "Reading, resampling and the way back",
    {
        "hilum": Contender(f"{HERE}:ours"),
        "monai": Contender(f"{HERE}:monai"),
        "simpleitk": Contender(f"{HERE}:simpleitk"),
        "labels": Contender(f"{HERE}:agreement"),
    },
    _figures,
    prepare=f"{HERE}:prepare",
    note="512x512x300 int16 .nii.gz, 0.8x0.8x1 mm to 1.5 mm and back; imports are not counted in CPU, the peers' "
    "libraries count in peak memory. Ours hands windows on and never holds the resampled volume.",
)
