"""Jobs on processes of this machine and on a real Ray cluster, whose workers are killed in mid-job."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hilum_ray import ray_cluster, ray_settings

from hilum_client.cluster import Cluster, ClusterError, open_cluster
from hilum_client.errors import InputError, MissingExtra

ROOT = Path(__file__).resolve().parents[2]
PATHS = (str(ROOT), str(ROOT / "tests" / "support"))


@dataclass(frozen=True)
class Job:
    """What the functions below do: leave a line in a file of their own for every start, then as they are told.

    Attributes:
        folder: where the files are.
        name: of the job, and of its file.
        after: a job whose file must be there first; with as many lines as ``lines``.
    """

    folder: Path
    name: str
    after: str = ""
    lines: int = 1

    def start(self) -> int:
        """How often it was begun by now."""
        with (self.folder / self.name).open("a") as file:
            file.write(f"{os.getpid()}\n")
        return len(pids(self.folder / self.name))


def pids(path: Path) -> list[int]:
    """Of the processes that began a job."""
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(path: Path, lines: int = 1) -> int:
    """Until a job was begun so often; the last process that did."""
    for _ in range(3000):
        found = pids(path)
        if len(found) >= lines:
            return found[-1]
        time.sleep(0.02)
    raise TimeoutError(path)


def wait_for_end(pid: int) -> None:
    """Until there is no such process."""
    for _ in range(1500):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                time.sleep(0.02)
                continue
        return
    raise TimeoutError(pid)


def closed_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port: int = place.getsockname()[1]
    return port


def wait_for_port(port: int) -> None:
    """Until something listens there."""
    for _ in range(600):
        with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise TimeoutError(port)


def work(job: Job) -> str:
    """Wait for another job, if need be."""
    job.start()
    if job.after:
        wait_for(job.folder / job.after, job.lines)
    return job.name


def hang_once(job: Job) -> str:
    """Wait to be killed; well the second time."""
    if job.start() == 1:
        time.sleep(300)
    return job.name


def fragile(job: Job) -> str:
    return hang_once(job) if job.name == "fragile" else work(job)


def die_if_deadly(job: Job) -> str:
    job.start()
    if job.name == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    return job.name


def refuse(job: Job) -> str:
    job.start()
    raise InputError("No such thing.", code="odd")


def refuse_oddly(job: Job) -> str:
    raise Odd(job.name, job.start())


class Odd(Exception):  # noqa: N818
    """One that cannot be unpickled."""

    def __init__(self, name: str, starts: int) -> None:
        super().__init__(f"{name} began {starts} times")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let spawned processes, which are handed this path, find this module."""
    monkeypatch.syspath_prepend(PATHS[0])


@pytest.fixture(scope="module", autouse=True)
def settings() -> Iterator[None]:
    """What every process finds that is started here, this module included."""
    with ray_settings(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(PATHS))
        yield


@pytest.fixture(scope="module")
def ray_address(settings: None) -> Iterator[str]:
    with ray_cluster() as address:
        yield address


@pytest.fixture(scope="module")
def ray_client_address(ray_address: str) -> Iterator[str]:
    """The door of the same cluster for drivers that are on none of its machines."""
    port = closed_port()
    options = {"address": ray_address, "host": "127.0.0.1", "port": str(port), "mode": "legacy"}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    server = subprocess.Popen([sys.executable, "-m", "ray.util.client.server", *words], stderr=subprocess.DEVNULL)
    with server:
        wait_for_port(port)
        yield f"ray://127.0.0.1:{port}"
        server.terminate()


@pytest.fixture(
    scope="module", params=["local", "ray_address", pytest.param("ray_client_address", marks=pytest.mark.slow)]
)
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Two workers, whatever they are."""
    address = None if request.param == "local" else request.getfixturevalue(request.param)
    with open_cluster(address, 2) as cluster:
        yield cluster


def test_results_come_in_the_order_of_the_jobs(cluster: Cluster, tmp_path: Path) -> None:
    jobs = [Job(tmp_path, "a", after="b"), Job(tmp_path, "b"), *(Job(tmp_path, name) for name in "cde")]
    assert list(cluster.map(work, jobs)) == ["a", "b", "c", "d", "e"]
    assert list(cluster.map(work, [])) == []


def test_a_killed_worker_costs_its_own_job_one_more_try_and_nothing_else(cluster: Cluster, tmp_path: Path) -> None:
    names = {"first": "", "fragile": "", "beside": "fragile", "last": ""}
    results = cluster.map(fragile, [Job(tmp_path, name, after, 2) for name, after in names.items()])
    assert next(results) == "first"
    wait_for(tmp_path / "beside")
    os.kill(wait_for(tmp_path / "fragile"), signal.SIGKILL)
    assert list(results) == ["fragile", "beside", "last"]
    starts = {name: len(pids(tmp_path / name)) for name in names}
    assert starts == {"first": 1, "fragile": 2, "beside": 1, "last": 1}


def test_what_the_function_raises_arrives_as_itself_and_is_not_tried_again(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="in refuse") as caught:  # where it was raised, as a note
        list(cluster.map(refuse, [Job(tmp_path, "a")]))
    assert (type(caught.value), str(caught.value), caught.value.code) == (InputError, "No such thing.", "odd")
    assert len(pids(tmp_path / "a")) == 1
    assert list(cluster.map(work, [Job(tmp_path, "b")])) == ["b"]


def test_jobs_that_are_not_wanted_any_more_are_ended(cluster: Cluster, tmp_path: Path) -> None:
    results = cluster.map(fragile, [Job(tmp_path, name) for name in ("first", "fragile")])
    assert next(results) == "first"
    pid = wait_for(tmp_path / "fragile")
    results.close()
    wait_for_end(pid)
    assert list(cluster.map(work, [Job(tmp_path, "b")])) == ["b"]
    assert len(pids(tmp_path / "fragile")) == 1


def test_a_job_that_kills_every_worker_is_named(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hilum_client.cluster.TRIES", 2)  # Ray counts those after the first
    sentence = r"^Job 2 was lost \(.* died .*\): Job\(.*name='deadly',.*; if memory ran out, use fewer workers\.$"
    results = cluster.map(die_if_deadly, [Job(tmp_path, "good"), Job(tmp_path, "deadly")])
    assert next(results) == "good"
    with pytest.raises(ClusterError, match=sentence) as caught:
        next(results)
    assert caught.value.code == "job_lost"
    assert len(pids(tmp_path / "deadly")) in (2, 3)


def test_an_exception_that_cannot_travel_is_told(tmp_path: Path) -> None:
    with open_cluster(None, 2) as cluster, pytest.raises(RuntimeError, match="Odd: a began 1 times"):
        next(cluster.map(refuse_oddly, [Job(tmp_path, "a")]))


def test_one_worker_is_this_process(tmp_path: Path) -> None:
    with open_cluster(None) as cluster:
        results = cluster.map(work, [Job(tmp_path, name) for name in "ab"])
        assert next(results) == "a"
        assert not (tmp_path / "b").exists()
        assert list(results) == ["b"]
        assert pids(tmp_path / "a") == [os.getpid()]
        assert cluster.describe() == "this process"


def test_closing_ends_the_processes_in_mid_job_too(tmp_path: Path) -> None:
    with open_cluster(None, 2) as cluster:
        assert cluster.describe() == "2 processes of this machine"
        results = cluster.map(fragile, [Job(tmp_path, name) for name in ("first", "fragile")])
        next(results)
        running = wait_for(tmp_path / "fragile")
    wait_for_end(running)
    wait_for_end(pids(tmp_path / "first")[0])


def test_workers_follow_a_killed_driver(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\nfrom hilum_client.cluster import open_cluster\n"
        "from tests.client.test_cluster import Job, hang_once\n"
        "with open_cluster(None, 2) as cluster:\n"
        f"    list(cluster.map(hang_once, [Job(Path({str(tmp_path)!r}), name) for name in 'ab']))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as driver:
        workers = [wait_for(tmp_path / name) for name in "ab"]
        driver.kill()
    for pid in workers:
        wait_for_end(pid)
    assert len(pids(tmp_path / "a")) == 1


@pytest.mark.parametrize("cluster", ["ray_address"], indirect=True)
def test_a_cluster_that_was_joined_before_is_used_and_not_left(cluster: Cluster, tmp_path: Path) -> None:
    with open_cluster("auto") as again:
        assert again.describe() == "Ray cluster auto (machines: 1, CPUs: 2, GPUs: 0)"
        assert list(again.map(work, [Job(tmp_path, "a")])) == ["a"]
    assert list(cluster.map(work, [Job(tmp_path, "b")])) == ["b"]


@pytest.mark.parametrize("cluster", ["ray_address"], indirect=True)
def test_jobs_that_no_machine_can_do_yet_are_told_of(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert list(cluster.map(work, [Job(tmp_path, "a")], cpus=2)) == ["a"]
    assert caplog.messages == []
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 1.0}}])
    assert list(cluster.map(work, [Job(tmp_path, "b")], cpus=2)) == ["b"]
    assert caplog.messages == ["No machine of the Ray cluster has 2 CPUs and 0 GPUs; waiting for one."]


@pytest.mark.parametrize("address", ["ray://127.0.0.1:{}", "127.0.0.1:{}", "auto"])
def test_an_address_where_nothing_answers(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port()}")
    sentence = r"^The Ray cluster .* cannot be joined \(Connection refused\); start it, or give another address\.$"
    with pytest.raises(ClusterError, match=sentence) as caught:
        open_cluster(address.format(closed_port())).__enter__()
    assert caught.value.code == "no_cluster"


def test_something_else_listens_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr("hilum_client.cluster.JOIN_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ClusterError, match=rf"^The Ray cluster {address} cannot be joined \(no answer in 1 s\);"):
            open_cluster(address).__enter__()


@pytest.mark.parametrize("address", ["", "cluster", "ray://", "ray://host", "http://host:80", "host:port", "local"])
def test_what_is_no_address(address: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(ClusterError, match="is no address of a Ray cluster; give auto, ray://HOST:PORT") as caught:
        open_cluster(address).__enter__()
    assert caught.value.code == "bad_cluster_address"


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"--cluster needs the extra \[cluster\]: pip install 'hilum\[cluster\]'"):
        open_cluster("auto").__enter__()


def test_too_few_workers() -> None:
    with pytest.raises(InputError, match="0 workers cannot work"):
        open_cluster(None, 0).__enter__()
