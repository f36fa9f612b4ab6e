"""The command of this room: ``hilum benchmark``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from hilum_benchmark.row import Row
from hilum_benchmark.session import Choice

benchmark_app = typer.Typer(add_completion=False, no_args_is_help=True, help="Measure speed and memory beside peers.")


@benchmark_app.callback()
def benchmark() -> None:
    """Measure speed and memory beside the peers."""


@benchmark_app.command()
def volume(
    only: Annotated[str | None, typer.Option(help="Rows, separated by commas; default: all but huge.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each row; the median counts.")] = 3,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("docs/results"),
    quick: Annotated[bool, typer.Option(help="Tiny sizes: checks that the rows run, gives no figures.")] = False,
    again: Annotated[bool, typer.Option(help="Measure also what was measured with these versions before.")] = False,
    work: Annotated[Path | None, typer.Option(help="Folder that keeps the prepared files.")] = None,
) -> None:
    """Measure the work on whole volumes: windows, blending, reading, whole jobs, the gateway.

    Example: hilum benchmark volume --only blending,io --rounds 5
    """
    from hilum_benchmark.rows import VOLUME_ROWS

    _tabled("volume", VOLUME_ROWS, _named(only, VOLUME_ROWS), out, Choice(rounds, quick, again, work))


@benchmark_app.command()
def networks(
    only: Annotated[str | None, typer.Option(help="Networks, separated by commas; default: all.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each network; the median counts.")] = 3,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("docs/results"),
    quick: Annotated[bool, typer.Option(help="A tiny window: checks that all runs, gives no figures.")] = False,
    again: Annotated[bool, typer.Option(help="Measure also what was measured with this source before.")] = False,
    no_latency: Annotated[bool, typer.Option("--no-latency", help="Only what is counted, no seconds.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Count and time the named networks at 4x96x96x96 to 4 classes.

    Example: hilum benchmark networks --only unet3d,c2fnas-panc
    """
    from hilum_benchmark import networks_table, session
    from hilum_benchmark.rows import networks as rows

    known = rows.names()
    wanted = known if only is None else only.split(",")
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise typer.BadParameter(f"There is no network {unknown[0]!r}; there are {', '.join(known)}.")
    choice = Choice(rounds, quick, again)
    chosen = [row for name in wanted for row in rows.rows(name, latency=not no_latency)]
    result = session.run("networks", chosen, out, choice, lambda text: typer.echo(text, err=True))
    places = [row.name for name in known for row in rows.rows(name, latency=True)]
    result.rows = {name: result.rows[name] for name in places if name in result.rows}
    found = networks_table.lines(result, known)
    path = result.write(out)
    text = networks_table.markdown(result, found)
    (out / f"{result.stem}.md").write_text(text)
    networks_table.write_csv(found, out / f"{result.stem}.csv")
    networks_table.plot(result, found, out / f"{result.stem}.png")
    typer.echo(path.read_text() if as_json else text)


@benchmark_app.command()
def training(
    only: Annotated[str | None, typer.Option(help="Rows, separated by commas; default: all.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each row; the median counts.")] = 3,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("docs/results"),
    quick: Annotated[bool, typer.Option(help="Tiny sizes: checks that the rows run, gives no figures.")] = False,
    again: Annotated[bool, typer.Option(help="Measure also what was measured with these versions before.")] = False,
    work: Annotated[Path | None, typer.Option(help="Folder that keeps the prepared files.")] = None,
) -> None:
    """Measure a training step beside the bare network and nnU-Net's trainer, and cached beside uncached epochs.

    Example: hilum benchmark training --rounds 1
    """
    from hilum_benchmark.rows import TRAINING_ROWS

    _tabled("training", TRAINING_ROWS, _named(only, TRAINING_ROWS), out, Choice(rounds, quick, again, work))


@benchmark_app.command()
def export(
    only: Annotated[str | None, typer.Option(help="Rows, separated by commas; default: all.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each row; the median counts.")] = 3,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("docs/results"),
    quick: Annotated[bool, typer.Option(help="Tiny sizes: checks that the rows run, gives no figures.")] = False,
    again: Annotated[bool, typer.Option(help="Measure also what was measured with these versions before.")] = False,
    work: Annotated[Path | None, typer.Option(help="Folder that keeps the prepared files.")] = None,
) -> None:
    """Measure INT8, the demo model's best settings, an export with all checks, and the way to a Triton.

    Example: hilum benchmark export --only best
    """
    from hilum_benchmark.rows import EXPORT_ROWS

    _tabled("export", EXPORT_ROWS, _named(only, EXPORT_ROWS), out, Choice(rounds, quick, again, work))


@benchmark_app.command()
def search(
    only: Annotated[str | None, typer.Option(help="Parts, separated by commas; default: all, in their order.")] = None,
    data: Annotated[Path, typer.Option(help="Folder of the sample CT and the later case.")] = Path(".samples"),
    work: Annotated[Path, typer.Option(help="Folder that keeps searches and runs.")] = Path("runs/search"),
    out: Annotated[Path, typer.Option(help="Folder of the results, a JSON for each part.")] = Path(
        "docs/results/search"
    ),
    workers: Annotated[int, typer.Option(min=1, help="Processes that train networks at once.")] = 1,
    again: Annotated[bool, typer.Option(help="Write also the results of parts that have one.")] = False,
) -> None:
    """Run both searches on the sample CT, beside networks that nobody searched; about three hours on two cores.

    Stopped at any time, the same command goes on. Rankings, latency, and the later case (scored once) are parts too.

    Example: hilum benchmark search --only vnas-0,c2fnas
    """
    from hilum_benchmark.searches import page, parts
    from hilum_benchmark.searches.bench import Bench
    from hilum_benchmark.searches.served import LATER

    bench = Bench("demo_search", data, work, out, LATER, workers=workers)
    known = parts.parts(bench)
    wanted = list(known) if only is None else only.split(",")
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise typer.BadParameter(f"There is no part {unknown[0]!r}; there are {', '.join(known)}.")
    for name in wanted:
        if bench.has(name) and not again:
            typer.echo(f"{name}: kept, its result stands in {out}", err=True)
            continue
        typer.echo(f"{name}: running", err=True)
        bench.write(name, known[name](bench))
    typer.echo(page.write(bench))


def _named(only: str | None, rows: Mapping[str, Row]) -> list[str]:
    """The rows that are asked for; by default all that run by default."""
    names = [name for name, row in rows.items() if row.by_default] if only is None else only.split(",")
    unknown = [name for name in names if name not in rows]
    if unknown:
        raise typer.BadParameter(f"There is no row {unknown[0]!r}; there are {', '.join(rows)}.")
    return names


def _tabled(kind: str, rows: Mapping[str, Row], names: Sequence[str], out: Path, choice: Choice) -> None:
    """Measure rows, and write and print their table and picture."""
    from hilum_benchmark import session, table

    result = session.run(kind, [rows[name] for name in names], out, choice, lambda text: typer.echo(text, err=True))
    result.rows = {name: result.rows[name] for name in rows if name in result.rows}
    text = table.markdown(result)
    result.write(out)
    (out / f"{result.stem}.md").write_text(text)
    table.plot(result, out / f"{result.stem}.png")
    typer.echo(text)
