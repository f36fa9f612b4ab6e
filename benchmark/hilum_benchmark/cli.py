"""The command of this room: ``hilum benchmark``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
    from hilum_benchmark import session, table
    from hilum_benchmark.rows import VOLUME_ROWS

    names = [name for name, row in VOLUME_ROWS.items() if row.by_default] if only is None else only.split(",")
    unknown = [name for name in names if name not in VOLUME_ROWS]
    if unknown:
        raise typer.BadParameter(f"There is no row {unknown[0]!r}; there are {', '.join(VOLUME_ROWS)}.")
    choice = session.Choice(rounds, quick, again, work)
    rows = [VOLUME_ROWS[name] for name in names]
    result = session.run("volume", rows, out, choice, lambda text: typer.echo(text, err=True))
    result.rows = {name: result.rows[name] for name in VOLUME_ROWS if name in result.rows}
    text = table.markdown(result)
    result.write(out)
    (out / f"{result.stem}.md").write_text(text)
    table.plot(result, out / f"{result.stem}.png")
    typer.echo(text)
