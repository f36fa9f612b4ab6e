"""A search on a real Ray of two workers, one of them killed in mid-child: the ledger is that of one quiet process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from hilum_cases import phantom
from hilum_ray import ray_cluster, ray_settings
from safetensors.torch import load_file

from hilum_client.cluster import ClusterError
from hilum_search.architecture import C2FNAS
from hilum_search.c2fnas.run import SupernetJob, train_supernet
from hilum_search.c2fnas.supernet_run import PATHS
from hilum_search.children import Child, Work
from hilum_search.driver import Place, driving
from hilum_search.ledger import Ledger
from hilum_search.progress import Stage
from hilum_search.recipe import Recipe, parse_recipe
from hilum_search.spaces import C2FNASSpace

STEPS = 60
NETWORKS = [C2FNAS(2, levels, ("3d", "2d", "p3d")) for levels in ((0, 0, 0), (0, 1, 0))]
CHILDREN = [Child(network, STEPS, seed) for network, seed in ((NETWORKS[0], 0), (NETWORKS[1], 0), (NETWORKS[0], 1))]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with ray_settings(), ray_cluster() as found:
        yield found


@pytest.fixture
def work(recipe_text: str, tmp_path: Path) -> Work:
    for number in range(3):
        phantom(tmp_path / "data", f"p{number}", number)
    return Work(recipe_of(recipe_text), tmp_path / "data", tmp_path / "quiet")


def recipe_of(text: str) -> Recipe:
    start, end = text.index("[[cases]]"), text.index("[preprocessing.geometry]")
    return parse_recipe(f"{text[:start]}{text[end:]}\n[split]\nfolds = 2\nfold = 0\ntest_share = 0.3\n")


def searched(work: Work, place: Place) -> list[dict[str, object]]:
    with driving(work, CHILDREN[0], place) as driver:
        driver.evaluator("coarse")(CHILDREN)
    with Ledger.read(work.out / "ledger.sqlite") as ledger:
        return ledger.contents()


def kill_a_worker(out: Path, killed: list[int]) -> None:
    """Once a child is being trained, end the process of ours that does it."""
    mine = psutil.Process()
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and not killed:
        if list(out.glob("children/*/curve.csv")):
            busy = [p for p in mine.children(recursive=True) if "ray::_outcome" in name_of(p)]
            if busy:
                os.kill(busy[0].pid, signal.SIGKILL)
                killed.append(busy[0].pid)
        time.sleep(0.02)


def name_of(process: psutil.Process) -> str:
    """What it is doing, in Ray's words; nothing where it is gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_a_worker_killed_in_mid_child_changes_nothing(work: Work, address: str) -> None:
    quiet = searched(work, Place())
    out = work.out.with_name("ray")
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker, args=(out, killed), daemon=True)
    killer.start()
    there = searched(Work(work.recipe, work.data, out), Place(cluster=address))
    killer.join()
    assert killed
    assert there == quiet
    assert [entry["key"] for entry in there] == [child.key for child in CHILDREN]


def test_a_supernet_trains_on_the_cluster_to_the_same_weights(work: Work, address: str) -> None:
    there = Work(work.recipe, work.data, work.out.with_name("ray"))
    seen: list[Stage] = []
    for one, place in ((work, Place()), (there, Place(cluster=address))):
        job = SupernetJob(one, C2FNASSpace(2, 5, ("2d", "3d"), (0, 1, 0)), 0, 4, os.getpid())
        with driving(one, job.space, place, seen.append) as driver:
            driver.follow(train_supernet, job)
        assert seen.pop().done == 4
    weights = [load_file(each.out / "supernet" / PATHS) for each in (work, there)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_dead_address_is_said_before_anything_is_written(work: Work) -> None:
    pytest.importorskip("ray")
    with pytest.raises(ClusterError), driving(work, CHILDREN[0], Place(cluster="ray://127.0.0.1:9")):
        pytest.fail("a dead cluster was taken for one")
    assert not (work.out / "ledger.sqlite").exists()
