"""``hilum demo``: a real CT goes in, its segmentation comes out, through the gateway, on this machine."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hilum_client import wire
from hilum_client.client import Client
from hilum_client.extras import load, require
from hilum_client.gateway import Gateway, started
from hilum_client.nifti import Image, read
from hilum_client.options import Repository, application
from hilum_client.sample import Sample, fetch_sample
from hilum_client.scores import REFERENCE_IDS, label_dice
from hilum_client.stages import Stages

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from hilum_client.answers import Result

app = application()

MASK: str = "mask.nii.gz"
PICTURE: str = "montage.png"


@dataclass(frozen=True)
class Score:
    """One label: its volume, that of the reference, and their Dice; None where the reference has no such label."""

    name: str
    id: int
    ml: float
    reference_ml: float | None
    dice: float | None


@app.command(epilog="Example: hilum demo --once")
def demo(
    once: Annotated[bool, typer.Option("--once", help="End by itself after the result.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the gateway; 0 takes a free one.")] = (
        wire.DEFAULT_PORT
    ),
    output: Annotated[Path, typer.Option(help="Folder for mask, picture and the gateway's data.")] = Path(
        "demo-output"
    ),
    samples: Annotated[Path | None, typer.Option(help="Where the sample lies or goes.")] = None,
    repository: Repository = None,
) -> None:
    """Fetch a real CT series, segment it through a gateway, show the result, and stay up until Ctrl-C."""
    from rich.console import Console

    require(("serve", "dicom", "inference"), "hilum demo")
    console = Console(highlight=False)
    signal.signal(signal.SIGTERM, _leave)
    with console.status("The sample: 20 slices of a real CT, fetched once..."):
        sample = fetch_sample(samples)
    console.print(f"Sample: {sample.series} (Apache-2.0, see {sample.licence})", soft_wrap=True, markup=False)
    output.mkdir(parents=True, exist_ok=True)
    with started(port, output / "gateway", repository or ()) as gateway:
        stages = Stages(gateway.process.pid)
        with console.status("The gateway starts..."), stages("start the gateway"):
            gateway.wait_until_ready()
        console.print(f"Gateway: {gateway.url}, log in {gateway.log}", soft_wrap=True, markup=False)
        result = run(gateway.url, sample, output / MASK, stages)
        scores = score(result, read(output / MASK), read(sample.series_labels))
        draw(result, scores, sample, output)
        console.print(score_table(result, scores))
        console.print("The reference is machine-made (by totalsegmentator), not drawn by a person.\n", style="dim")
        console.print(stage_table(stages, result))
        console.print(f"Mask:    {output / MASK}\nPicture: {output / PICTURE}", soft_wrap=True, markup=False)
        if not once:
            stay(console, gateway)


def run(url: str, sample: Sample, mask: Path, stages: Stages) -> Result:
    """Send the series, segment it, fetch the mask; with a bar for each."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    from hilum_client.show import bars, counter

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn()
    with Client(url) as client:
        quiet = not console.is_terminal
        with stages("send and check the series"), Progress(*columns, console=console, disable=quiet) as progress:
            volume = client.upload(sample.series, sent=counter(progress, "sending"))
        with stages("segment"), bars() as progress:
            job = client.submit(volume, priority="interactive")
            job = client.wait(job, counter(progress, "segmenting"))
        with stages("fetch the mask"):
            return client.result(job, mask)


def score(result: Result, mask: Image, reference: Image) -> list[Score]:
    """Each label against the reference, both brought to the same voxel order."""
    ours, theirs = mask.canonical(), reference.canonical()
    scores = []
    for label in result.statistics:
        name, number, ml = str(label["name"]), int(label["id"]), float(label["ml"])
        ids = REFERENCE_IDS.get(name)
        if ids is None:
            scores.append(Score(name, number, ml, None, None))
            continue
        voxels = sum(int((theirs.array == one).sum()) for one in ids)
        dice = label_dice(ours.array, number, theirs.array, ids)
        scores.append(Score(name, number, ml, voxels * theirs.voxel_ml, dice))
    return scores


def draw(result: Result, scores: list[Score], sample: Sample, output: Path) -> None:
    """The picture beside the mask."""
    from hilum_client.montage import Shown, montage

    volume: Any = load("hilum_inference.io:read_volume", "dicom", "hilum demo")(sample.series)
    shown = [
        Shown(one.id, f"{one.name}  {one.ml:.0f} ml" + ("" if one.dice is None else f"  Dice {one.dice:.2f}"))
        for one in scores
    ]
    title = f"Hilum: {result.model}, version {result.version}, on a real CT series of {volume.grid.shape[2]} slices"
    image = Image(volume.values(0), volume.grid.affine)
    montage(image, read(output / MASK).array, shown, title).save(output / PICTURE)


def score_table(result: Result, scores: list[Score]) -> Table:
    """Label, volume, volume in the reference, Dice."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=f"{result.model} {result.version}", title_justify="left")
    for title in ("label", "volume, ml", "reference, ml", "Dice"):
        table.add_column(title, justify="left" if title == "label" else "right")
    for one in scores:
        reference = "-" if one.reference_ml is None else f"{one.reference_ml:.1f}"
        table.add_row(one.name, f"{one.ml:.1f}", reference, "-" if one.dice is None else f"{one.dice:.3f}")
    return table


def stage_table(stages: Stages, result: Result) -> Table:
    """Seconds of each stage and of the parts of the segmentation; memory of the gateway's processes together."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for title in ("stage", "seconds", "peak memory, MiB"):
        table.add_column(title, justify="left" if title == "stage" else "right")
    for stage in stages.done:
        table.add_row(stage.name, f"{stage.seconds:.2f}", f"{stage.peak / 2**20:.0f}" if stage.peak else "-")
        if stage.name == "segment":
            for name, seconds in result.timings.items():
                if name != "total":
                    table.add_row(f"  {name}", f"{seconds:.3f}", "", style="dim")
    return table


def stay(console: Console, gateway: Gateway) -> None:
    """Until Ctrl-C, or until the gateway ends."""
    try:
        console.print(f"\nThe gateway stays up at {gateway.url} until Ctrl-C.", markup=False)
        gateway.process.wait()
    except KeyboardInterrupt:
        return


def _leave(number: int, _frame: Any) -> None:
    raise SystemExit(128 + number)
