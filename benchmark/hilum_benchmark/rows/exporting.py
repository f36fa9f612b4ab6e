"""How long a network of C2FNAS-Panc's size takes from its weights to a published version, all checks included."""

from __future__ import annotations

import time

from hilum_benchmark.figures import Figure, Measured, Rounds, at_most
from hilum_benchmark.row import Contender, Context, Row

HERE = "hilum_benchmark.rows.exporting"
SIDE, QUICK_SIDE = 96, 32
SPACING = 1.0
SECONDS, SHARE = 300.0, 0.51
CASES = ("trained", "kept")

RECIPE = """
name = "panc"
[architecture]
{architecture}
[[channels]]
name = "ct"
[[labels]]
name = "organ"
id = 1
from_ids = [1]
[preprocessing.geometry]
spacing = [{spacing}, {spacing}, {spacing}]
[preprocessing.intensity]
steps = [[{{ rule = "window", low = -1000.0, high = 1000.0 }}]]
[preprocessing.windows]
size = [{side}, {side}, {side}]
overlap = 0.25
[training]
steps = 1
class_weights = [1.0, 1.0]
"""


def prepare(context: Context) -> Measured:
    """A run whose weights are chance, and the two cases that it was made from, of eight windows each."""
    import json
    from dataclasses import asdict

    import numpy as np
    import torch

    from hilum_inference.io import write_volume
    from hilum_inference.volume import Volume
    from hilum_search.architecture import C2FNAS_PANC, to_json
    from hilum_search.cases import Files
    from hilum_search.network import build
    from hilum_search.recipe import parse_recipe
    from hilum_search.record import Origin, versions
    from hilum_search.recorded import contents
    from hilum_search.trained import Trained, write_trained

    side = QUICK_SIDE if context.quick else SIDE
    fields = {name: value for name, value in json.loads(to_json(C2FNAS_PANC)).items() if name != "format"}
    lines = "\n".join(f"{name} = {json.dumps(value)}" for name, value in fields.items())
    recipe = parse_recipe(RECIPE.format(architecture=lines, spacing=SPACING, side=side))
    origins = []
    data = context.folder / "data"
    data.mkdir(exist_ok=True)
    for number, name in enumerate(CASES):
        chance = np.random.default_rng(number)
        image = chance.normal(0, 300, (side + side // 2,) * 3).astype(np.int16)
        paths = data / f"{name}.nii.gz", data / f"{name}_seg.nii.gz"
        affine = np.diag([SPACING, SPACING, SPACING, 1.0])
        write_volume(paths[0], Volume.from_array(image, affine))
        write_volume(paths[1], Volume.from_array((image > 0).astype(np.uint8), affine))
        files = Files((paths[0],), paths[1], name)
        origins.append(Origin(name, "test" if name == "kept" else "train", files=contents(files, data)))
    torch.manual_seed(0)
    network = build(C2FNAS_PANC, 1, recipe.classes)
    _settle(network, side)
    training = {
        "recipe": json.loads(recipe.file.model_dump_json()),
        "recipe_digest": recipe.digest,
        "seed": 0,
        "parameters": sum(p.numel() for p in network.parameters()),
        "cases": [asdict(origin) for origin in origins],
        "dice": {"organ": None},
        "dice_per_case": {},
        "step": 0,
        "start": "",
        "cpu_seconds": 0.0,
        "processor": "",
        "software": versions(),
    }
    write_trained(context.folder / "run", Trained(C2FNAS_PANC, network.eval(), recipe.manifest(), training))
    return {}


def _settle(network: object, side: int) -> None:
    """Make one class certain everywhere, so that rounding moves no voxel of a network that nobody trained."""
    import torch

    with torch.no_grad():
        network.head.bias.copy_(torch.tensor([0.0, 1000.0]))  # type: ignore[attr-defined]


def seconds(context: Context) -> Measured:
    """Wall seconds of hilum export with FP32, FP16 and INT8, this process's peak memory, and the files' sizes."""
    import resource

    from hilum_export.export import Wishes, export

    start = time.perf_counter()
    done = export(
        context.folder / "run",
        context.folder / "models",
        wishes=Wishes(("fp16", "int8"), data=context.folder / "data"),
    )
    spent = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    sizes = {file.precision: (done.folder / file.path.name).stat().st_size for file in done.files}
    measured = {f"{name}_share": size / sizes["fp32"] for name, size in sizes.items()}
    return measured | {"seconds": spent, "peak_gib": peak, "withheld": float(len(done.withheld))}


def _figures(rounds: Rounds) -> list[Figure]:
    found: list[Figure] = []
    for what, name, limit, unit in (
        ("export of C2FNAS-Panc, all checks: wall time on one thread", "seconds", SECONDS, "s"),
        ("export of C2FNAS-Panc: peak memory", "peak_gib", 16.0, "GiB"),
        ("size of FP16 beside FP32", "fp16_share", SHARE, "of it"),
        ("size of INT8 beside FP32", "int8_share", SHARE, "of it"),
        ("precisions withheld", "withheld", 0.0, "of 2"),
    ):
        values = [measured[name] for measured in rounds.get("export", ()) if name in measured]
        found += at_most(values, what, limit, unit)
    return found


ROW = Row(
    "exporting",
    "C2FNAS-Panc from its weights to a published version",
    {"export": Contender(f"{HERE}:seconds")},
    _figures,
    prepare=f"{HERE}:prepare",
    packages=("hilum_export", "hilum_inference", "hilum_benchmark"),
    rounds=1,
    note="FP32, FP16 and INT8 with every check, the TensorRT-RTX build and a held-out case of eight windows of 96 "
    "through every file and the network in torch. Weights are chance and the head is certain of one class, so the "
    "checks cost what they cost and say nothing of masks.",
)
