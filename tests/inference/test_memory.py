"""What is free to a process in a container: files as Linux writes them, and the kernel itself where it lets us."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from hilum_inference.memory import MEMORY_SHARE, available, free_memory

MIB = 2**20


def group(folder: Path, limit: str, used: int, droppable: int = 0) -> None:
    """A group of version 2."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 7\ninactive_file {droppable}\nactive_file 9\n")


def old_group(folder: Path, limit: int, used: int, droppable: int = 0) -> None:
    """A group of version 1."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"inactive_file 5\ntotal_inactive_file {droppable}\n")


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    return tmp_path / "cgroup"


@pytest.fixture
def groups(tmp_path: Path) -> Path:
    return tmp_path / "own"


def test_the_limit_of_a_container_less_what_it_uses(groups: Path, mount: Path) -> None:
    groups.write_text("0::/\n")
    group(mount, str(64 * MIB), 24 * MIB, 4 * MIB)
    assert available(groups, mount) == 44 * MIB, "caches that the kernel drops by itself are free"


def test_the_least_of_all_groups_around_it(groups: Path, mount: Path) -> None:
    groups.write_text("0::/kubepods/pod7/gateway\n")
    group(mount / "kubepods" / "pod7" / "gateway", "max", MIB)
    group(mount / "kubepods" / "pod7", str(64 * MIB), 60 * MIB)
    group(mount / "kubepods", str(128 * MIB), 100 * MIB)
    assert available(groups, mount) == 4 * MIB
    group(mount / "kubepods" / "pod7" / "gateway", str(3 * MIB), MIB)
    assert available(groups, mount) == 2 * MIB


def test_more_used_than_allowed_is_nothing_left(groups: Path, mount: Path) -> None:
    groups.write_text("0::/\n")
    group(mount, str(MIB), 2 * MIB)
    assert available(groups, mount) == 0


def test_version_1_and_a_path_that_only_the_machine_sees(groups: Path, mount: Path) -> None:
    groups.write_text("3:cpu,cpuacct:/docker/f00\n4:memory:/docker/f00\n0::/system.slice\n")
    old_group(mount / "memory", 64 * MIB, 30 * MIB, 2 * MIB)
    assert available(groups, mount) == 36 * MIB
    old_group(mount / "memory" / "docker" / "f00", 32 * MIB, 30 * MIB)
    assert available(groups, mount) == 2 * MIB


@pytest.mark.parametrize("content", ["", "0::/\n", "0::/gone\n7:pids:/x\n", "4:memory:/\n"])
def test_without_a_limit_it_is_the_machine(groups: Path, mount: Path, content: str) -> None:
    groups.write_text(content)
    group(mount, "max", MIB)
    old_group(mount / "memory", 2**63 - 4096, MIB)
    assert available(groups, mount) == pytest.approx(psutil.virtual_memory().available, rel=0.1)


def test_a_system_that_knows_no_groups(tmp_path: Path) -> None:
    assert available(tmp_path / "none", tmp_path) == pytest.approx(psutil.virtual_memory().available, rel=0.1)


@pytest.fixture
def limited() -> Iterator[Path]:
    """A true group of 300 MiB below this process's own."""
    own = {line.split(":")[1]: line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()}
    number, _, path = own.get("memory", own.get("", ["0", "", "/"]))
    root, limit = (
        ("/sys/fs/cgroup", "memory.max") if number == "0" else ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
    )
    folder = Path(root) / path.lstrip("/") / f"hilum-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / limit).write_text(str(300 * MIB))
    except OSError:
        if folder.is_dir():
            folder.rmdir()
        pytest.skip("this system lets no one make a control group that limits memory")
    yield folder
    folder.rmdir()


def test_the_kernel_says_the_same(limited: Path) -> None:
    script = f"""
import os
from pathlib import Path
Path({str(limited / "cgroup.procs")!r}).write_text(str(os.getpid()))
from hilum_inference.memory import available
before = available()
held = bytearray(100 * 2**20)
print(before, available())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    before, after = map(int, done.stdout.split())
    assert 200 * MIB < before <= 300 * MIB
    assert 90 * MIB < before - after < 130 * MIB


def test_a_segmentation_plans_with_a_share_of_it() -> None:
    assert free_memory() == pytest.approx(available() * MEMORY_SHARE, rel=0.1)
