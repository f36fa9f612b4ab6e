"""How much a stranger's input may ask for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of one input; every size is counted in real bytes or by products that cannot overflow.

    Attributes:
        max_upload_bytes: as received.
        max_stored_bytes: after inflating, and of everything unpacked from a zip.
        max_voxels: I x J x K x channels.
        max_dimension: of any one axis.
        max_channels: of the fourth axis.
        max_files: members of a zip or files of a folder.
        max_ratio: of inflated to compressed bytes, above the first 16 MiB.
        trailing_bytes: that may follow the voxels unread.
        decode_seconds: wall clock of one decoding child; its CPU time is bounded by the same figure.
        decode_bytes: address space of one decoding child.
    """

    max_upload_bytes: int = 2 << 30
    max_stored_bytes: int = 4 << 30
    max_voxels: int = 1_100_000_000
    max_dimension: int = 4096
    max_channels: int = 64
    max_files: int = 5000
    max_ratio: int = 300
    trailing_bytes: int = 1 << 20
    decode_seconds: float = 120.0
    decode_bytes: int = 6 << 30
