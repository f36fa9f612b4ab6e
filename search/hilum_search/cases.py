"""What a training case is on disk, and which part of which case is trained on, validated on, kept for the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Layout = Literal["msd", "nnunet", "pairs", "dicom", "recipe"]


@dataclass(frozen=True)
class Files:
    """Where a case lies: its image and its reference segmentation, on one grid.

    Attributes:
        images: a file or DICOM folder for each channel in order, or one that holds every channel.
        labels: the reference: a file of integer ids, or a DICOM SEG.
        name: what reports call it; unique in its dataset.
        patient: cases of one patient never stand on two sides of a split; empty where nobody knows: then a case is
            taken for a patient of its own.
    """

    images: tuple[Path, ...]
    labels: Path
    name: str
    patient: str = ""


@dataclass(frozen=True)
class Dataset:
    """A folder of labelled cases, read but for its voxels.

    Attributes:
        folder: paths in records are relative to it.
        layout: how the folder was read.
        cases: in order of their names.
        channels: name of each channel, in order.
        modalities: ``CT``, ``MR``... of each channel.
        labels: id in the files to name, background left out; empty where the folder does not name them.
    """

    folder: Path
    layout: Layout
    cases: tuple[Files, ...]
    channels: tuple[str, ...] = ("image",)
    modalities: tuple[str, ...] = ("",)
    labels: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """A case, or a slab of it that counts as a case.

    Attributes:
        files: of the case.
        planes: [first, last) along the window's last axis on the model's grid; last None: to the end; None: all.
    """

    files: Files
    planes: tuple[int, int | None] | None = None

    @property
    def name(self) -> str:
        """The case's name, with the planes of a slab.

        >>> Part(Files((Path("a.nii"),), Path("b.nii"), "a"), (10, None)).name
        'a[10:]'
        """
        if self.planes is None:
            return self.files.name
        first, last = self.planes
        return f"{self.files.name}[{first}:{'' if last is None else last}]"


@dataclass(frozen=True)
class Split:
    """Parts that share no voxel and no patient."""

    train: tuple[Part, ...]
    validation: tuple[Part, ...] = ()
    test: tuple[Part, ...] = ()
