"""The real CT that the demo and some tests use: fetched from the package that holds it, checked, never part of ours.

It comes from the source distribution of totalsegmentator 2.18.0 (Apache-2.0): two CT volumes of two patients, and for
each a segmentation that was made by that program. ``python -m hilum_client.sample FOLDER`` fetches it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

from hilum_client.backend import DATA_FOLDER
from hilum_client.errors import SampleError
from hilum_client.options import application
from hilum_client.report import sha256, write_atomically

PACKAGE: Final = "totalsegmentator"
VERSION: Final = "2.18.0"
ARCHIVE: Final = f"{PACKAGE}-{VERSION}.tar.gz"
ARCHIVE_SHA256: Final = "5d4223ef93973bc36d710869d11e7742ead2c154c72f7f9edcaaadd5b6c4bd03"
FETCH_SECONDS: Final = 900

SERIES: Final = "example_ct_dicom"
_SLICES: Final = (
    "4c5633409fa4d3edf6871e5684e9e1b10325b4d0949997582f43b23a684d0dc4",
    "9148f91127145497f4d6c6f0780f9452504cd7fe5088ec8f2bf2b21800c731ff",
    "3edaccec892e0821440cbefe3d5465923bb5146c316cbaf58f578d962f120484",
    "9b68685f0c5f9bfcfc2c397f4fadf431da288d7422ca72e7d9031d4e039418cd",
    "c8d2c0dc05e414d47d3652c658d8fecc20c3cf7ce106c10d84ad033d39700bcc",
    "0ee2c1d58e06cedd91483ca35c04da3c26fea0dbe88aaf1eaa950b57f38357d6",
    "c76cf0818d4215b92883d109b8a0b62ae0a4d81637eed98738f9c62b6f49bb72",
    "106e20514fd3ca66895e14dbfba96c01c1195e4ed890c035d4368dd71f3ee116",
    "5804e6c4a50f4d5b20040ac82a1c6d79cba5f7267d71f10b0a1b49eda1bc13ff",
    "bef219a16b22949224de4581a2d288863b2585d29556ac24021f03307378cb39",
    "9de5a49e880417d5330fe299115fdb95831a98234216a31c5c0e9a0be9a6dcd3",
    "fa00c8d81ec8aa0d0cfc4e05343782c3a75a4c60df8cccf9ff5db42ac454e61d",
    "ebba0900b0f728db0c94c769db3e5ca38a0cd916386a727541eb3e56350770e5",
    "f084ec95cfba25efb7cbe86e8b4966b051904037e8385f58fe398c5475693b89",
    "20a9b88a30ea8a824ac65cb19c1ebf80964b41ff476497706ff2a286e5f27a25",
    "2a515d3b60f3ff733aac1fc5414206c331e3ed2ccef8c2e0c30b844c538e3ed8",
    "5880669f1bc36b09cad4bdf487992ec415da0afa014e927efc282e612f467574",
    "7af4dd5b5766a87368939116b91f90d989820e7b2237fb9bcd10d47db0960875",
    "671306f4462ae881976c18c6a2d8a1567279fb0166ef0e9e8a41271fac9c1cbb",
    "fdb76ad5272f074e07cc81509604fd163f2f8a9903d34b16ba6f078250373c51",
)
_IMAGES: Final = {
    "example_ct.nii.gz": "dbd3ae6d614d1d7ef3a46925c30c70038ed52da6b37fdd6afdc7b9b71387e3e1",
    "example_seg_fast_force_split.nii.gz": "e8097758e56e73099075b6caaebce23ef11bc6fad66a4ec3753b9406846558c7",
    "example_seg_dicom.nii.gz": "98af7f6536c316ff9084054f20956cd3e28af376b81d582d269fbea2744878fc",
}
LICENSE: Final = "LICENSE"
MEMBERS: Final[dict[str, str]] = {
    **_IMAGES,
    **{
        f"{SERIES}/CT.1.3.12.2.1107.5.1.4.60064.300000221208081134280000{16573 + n}": digest
        for n, digest in enumerate(_SLICES)
    },
    LICENSE: "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4",
}
"""Path below the sample's folder -> SHA-256. In the archive the images lie in ``tests/reference_files``."""

app = application()


@dataclass(frozen=True)
class Sample:
    """Where the sample lies.

    Attributes:
        ct, ct_labels: a CT of the abdomen, 3 mm, and its reference segmentation (61 labels, machine-made).
        series, series_labels: 20 DICOM slices of another patient, and their reference (31 labels, machine-made).
        licence: of all of it.
    """

    folder: Path

    @property
    def ct(self) -> Path:
        """NIfTI, 122 x 101 x 112."""
        return self.folder / "example_ct.nii.gz"

    @property
    def ct_labels(self) -> Path:
        """On the grid of ``ct``."""
        return self.folder / "example_seg_fast_force_split.nii.gz"

    @property
    def series(self) -> Path:
        """Folder of a DICOM series, 512 x 512 x 20."""
        return self.folder / SERIES

    @property
    def series_labels(self) -> Path:
        """On the grid of ``series``, axes L, A, S."""
        return self.folder / "example_seg_dicom.nii.gz"

    @property
    def licence(self) -> Path:
        """Apache-2.0."""
        return self.folder / LICENSE


def default_folder() -> Path:
    """``.samples`` of the checkout we stand in (git ignores it), else in the data folder."""
    project = Path("pyproject.toml")
    if project.is_file() and 'name = "hilum"' in project.read_text(encoding="utf-8"):
        return Path(".samples")
    return DATA_FOLDER.expanduser() / "samples"


def fetch_sample(folder: Path | None = None) -> Sample:
    """The sample, fetched where it is not there yet; complete and checked, it needs no network.

    Args:
        folder: where it lies or goes (default: ``default_folder``). An archive put there by hand is used.

    Raises:
        SampleError: it cannot be fetched, or is not what it should be.
    """
    folder = folder or default_folder()
    if not _missing(folder):
        return Sample(folder)
    folder.mkdir(parents=True, exist_ok=True)
    given = folder / ARCHIVE
    if given.is_file():
        _unpack(given, folder)
    else:
        with tempfile.TemporaryDirectory(prefix="hilum-sample-") as empty:
            _unpack(_fetch(Path(empty)), folder)
    return Sample(folder)


def _missing(folder: Path) -> list[str]:
    return [name for name, digest in MEMBERS.items() if not _is(folder / name, digest)]


def _is(path: Path, digest: str) -> bool:
    return path.is_file() and sha256(path) == digest


def _fetch(empty: Path) -> Path:
    """The source distribution, by the ordinary package client."""
    lacking = [name for name in ("pip", "setuptools", "wheel") if importlib.util.find_spec(name) is None]
    if lacking:
        raise SampleError(
            f"Fetching the sample needs {' and '.join(lacking)}: python -m pip install {' '.join(lacking)}"
        )
    options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *options, f"{PACKAGE}=={VERSION}"]
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter, fixed arguments
            command, cwd=empty, capture_output=True, text=True, timeout=FETCH_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise SampleError(f"Fetching the sample took longer than {FETCH_SECONDS} s; try again.") from error
    archive = empty / ARCHIVE
    if done.returncode != 0 or not archive.is_file():
        raise SampleError(
            f"The sample could not be fetched ({_reason(done.stderr)}). It is needed once: "
            f"try again with a network, or put {ARCHIVE} into the sample folder."
        )
    return archive


def _reason(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["no answer"])[-1].rstrip(".")


def _unpack(archive: Path, folder: Path) -> None:
    """Only the members named here, each checked, each whole or not there."""
    if sha256(archive) != ARCHIVE_SHA256:
        raise SampleError(f"{archive.name} is not the archive that is expected (its SHA-256 differs); remove it.")
    root = f"{PACKAGE}-{VERSION}"
    with tarfile.open(archive) as tar:
        for name, digest in MEMBERS.items():
            inside = f"{root}/{name}" if name == LICENSE else f"{root}/tests/reference_files/{name}"
            file = tar.extractfile(inside)
            data = b"" if file is None else file.read()
            if hashlib.sha256(data).hexdigest() != digest:
                raise SampleError(f"{name} in {archive.name} is not what is expected (its SHA-256 differs).")
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / name, data)


@app.command(epilog="Example: python -m hilum_client.sample .samples")
def sample(folder: Annotated[Path | None, typer.Argument(help="Where it goes (default: .samples).")] = None) -> None:
    """Fetch the real CT sample, or check that it is there."""
    try:
        typer.echo(str(fetch_sample(folder).folder))
    except SampleError as error:
        typer.echo(error.message, err=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    app()
