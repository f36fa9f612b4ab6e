"""``hilum segment``: volumes in, masks out, in this process or on a server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from hilum_client import wire
from hilum_client.backend import Input, Where, open_backend
from hilum_client.errors import ClientError, ConnectError, InputError, MissingExtra, told
from hilum_client.options import Force, Key, Model, Repository, Server, Threads, Variant, application

app = application()

MASK_SUFFIX = "-mask.nii.gz"


@dataclass(frozen=True)
class Case:
    """One image (or channel name -> image) and where its mask goes."""

    name: str
    image: Input
    out: Path


@app.command(epilog="Example: hilum segment ct.nii.gz -o mask.nii.gz")
def segment(
    inputs: Annotated[list[Path] | None, typer.Argument(help="NIfTI, NRRD, zip of DICOM, or a DICOM folder.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Mask (.nii.gz, .nii, .nrrd), or a folder.")] = Path(),
    model: Model = None,
    channel: Annotated[list[str] | None, typer.Option(help="name=path, for each channel of one case.")] = None,
    force: Force = False,
    server: Server = None,
    key: Key = None,
    repository: Repository = None,
    threads: Threads = None,
    variant: Variant = None,
) -> None:
    """Segment volumes; each mask lies on its image's own grid."""
    from rich.console import Console

    from hilum_client.show import bars, counter, result_table

    cases = plan(inputs or [], channel or [], out, force)
    where = Where(server, key, tuple(repository or ()), threads, variant)
    console = Console()
    with open_backend(where, "hilum segment") as backend:
        for case in cases:
            case.out.parent.mkdir(parents=True, exist_ok=True)
            with bars() as progress, naming(case if len(cases) > 1 else None):
                result = backend.segment(case.image, model=model, out=case.out, progress=counter(progress, case.name))
            console.print(result_table(case.name, result))
            console.print(f"{case.out}\n", highlight=False, soft_wrap=True)


@contextmanager
def naming(case: Case | None) -> Iterator[None]:
    """Put the case in front of the sentence that it fails with: which of several inputs is at fault.

    A lost server and a missing part are no fault of a case, and the file system names its file itself.
    """
    try:
        yield
    except (ConnectError, MissingExtra, OSError):
        raise
    except Exception as error:
        known = told(error)
        if case is None or known is None:
            raise
        code, sentence = known
        raise ClientError(f"{case.image}: {sentence}", code=code, status=getattr(error, "status", None)) from error


def plan(inputs: list[Path], channels: list[str], out: Path, force: bool) -> list[Case]:
    """What is to be done, checked before anything starts.

    Raises:
        InputError: no input, an input that is missing, two masks of one name, or a mask that is there already.
    """
    if channels:
        if inputs:
            raise InputError(
                "Give the images either as arguments (one case each) or as --channel name=path (one case)."
            )
        image = named(channels)
        cases = [Case("channels", image, target(next(iter(image.values())), out, several=False))]
    elif inputs:
        cases = [Case(path.name, existing(path), target(path, out, several=len(inputs) > 1)) for path in inputs]
    else:
        raise InputError("Nothing to segment: name a file or folder (see hilum segment --help).", code="no_input")
    twice = [path for path, count in Counter(case.out for case in cases).items() if count > 1]
    if twice:
        raise InputError(f"Two inputs would write {twice[0]}; segment them into different folders.", code="same_name")
    for case in cases:
        writable(case, force)
    return cases


def named(channels: list[str]) -> dict[str, Path]:
    """``name=path`` options as channel name -> path."""
    image: dict[str, Path] = {}
    for text in channels:
        name, sign, path = text.partition("=")
        if not (name and sign and path) or name in image:
            raise InputError(f"--channel takes name=path, each name once; got {text!r}.", code="bad_option")
        image[name] = existing(Path(path))
    return image


def existing(path: Path) -> Path:
    """A path that is there."""
    if not path.exists():
        raise InputError(f"There is no file or folder {path}.", code="no_such_file")
    return path


def target(image: Path, out: Path, *, several: bool) -> Path:
    """Where an image's mask goes: ``out`` itself, or ``<image>-mask.nii.gz`` in the folder ``out``."""
    suffixes = tuple(f".{name}" for name in wire.MASK_FORMATS)
    if out == Path():
        raise InputError("Say where the mask goes: -o mask.nii.gz, or -o FOLDER.", code="no_output")
    if out.name.lower().endswith(suffixes) and not out.is_dir():
        if several:
            raise InputError(
                f"Several inputs need a folder for their masks; {out} names one file.", code="not_a_folder"
            )
        return out
    if not several and not out.is_dir():
        raise InputError(
            f"{out} is no folder that is there, and a mask must end in {', '.join(suffixes)}.", code="unknown_format"
        )
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; several masks need a folder.", code="not_a_folder")
    return out / (stem(image) + MASK_SUFFIX)


def stem(path: Path) -> str:
    """A file's name without the suffix of its format; a folder's name as it is."""
    name = own_name(path)
    for suffix in (".nii.gz", ".nii", ".nrrd", ".zip", ".dcm"):
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def own_name(path: Path) -> str:
    """A path's last name; a link's is its own, since links by patient may lead to files of one name."""
    return path.name if path.name not in ("", "..") else path.resolve().name


def writable(case: Case, force: bool) -> None:
    """Refuse to overwrite: a mask only with ``--force``, an input never."""
    sources = [case.image] if isinstance(case.image, Path) else list(case.image.values())
    if any(source.resolve() == case.out.resolve() for source in sources):
        raise InputError(f"{case.out} is the input itself; name another file for the mask.", code="same_file")
    if case.out.exists() and not force:
        raise InputError(f"{case.out} is there already; --force overwrites it.", code="exists")
