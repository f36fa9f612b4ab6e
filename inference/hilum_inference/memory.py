"""How much memory this process may still take: of the machine, and of the container that it may run in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MEMORY_SHARE: Final = 0.8
"""Share of what is free at the start that one segmentation may plan to use."""
OWN_GROUPS: Final = Path("/proc/self/cgroup")
MOUNT: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class _Names:
    """What a version of Linux' control groups calls its files and the line of caches that it can drop."""

    limit: str
    used: str
    droppable: str


VERSION_2: Final = _Names("memory.max", "memory.current", "inactive_file")
VERSION_1: Final = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def free_memory() -> int:
    """Bytes that one segmentation may plan to use now."""
    return int(available() * MEMORY_SHARE)


def available(groups: Path = OWN_GROUPS, mount: Path = MOUNT) -> int:
    """Bytes that are free on the machine and in every control group around this process: the least of them.

    A container is such a group. Beyond its limit the kernel kills without a word, however much the machine has left.

    Args:
        groups: the kernel's list of this process's groups.
        mount: where the groups lie as folders.
    """
    import psutil

    machine = int(psutil.virtual_memory().available)
    return max(0, min([machine, *_left(groups, mount)]))


def _left(groups: Path, mount: Path) -> Iterator[int]:
    """What each group that limits memory has left; none where the system knows no groups."""
    if not groups.is_file():
        return
    for line in groups.read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        names = VERSION_2 if number == "0" else VERSION_1
        if names is VERSION_1 and "memory" not in controllers.split(","):
            continue
        root = mount / "memory" if names is VERSION_1 else mount
        # In a container the path may be the machine's, and its own folder the root: what is not there is passed over.
        folder = root / path.lstrip("/")
        for each in (folder, *folder.parents):
            if not each.is_relative_to(root):
                break
            left = _left_of(each, names)
            if left is not None:
                yield left


def _left_of(folder: Path, names: _Names) -> int | None:
    """Limit less use, where what the kernel can drop at once counts as free; None where the group has no limit."""
    try:
        limit = (folder / names.limit).read_text().strip()
        if limit == "max":
            return None
        used = int((folder / names.used).read_text())
        counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    return int(limit) - used + int(counts.get(names.droppable, 0))
