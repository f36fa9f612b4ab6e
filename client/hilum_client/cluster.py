"""Jobs on the processes of this machine or of a Ray cluster: results come in the order of the jobs, whoever dies."""

from __future__ import annotations

import contextlib
import importlib
import logging
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from queue import LifoQueue
from textwrap import shorten
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit
from weakref import WeakSet

from hilum_client.errors import ClientError, InputError
from hilum_client.extras import missing

J = TypeVar("J")
R = TypeVar("R")

log = logging.getLogger(__name__)

TRIES: Final = 3
"""How often a job is begun that ends the process it runs in."""

CONNECT_SECONDS: Final = 5.0
JOIN_SECONDS: Final = 60.0
GRACE_SECONDS: Final = 5.0
"""For a worker without a job to end by itself."""


class ClusterError(ClientError):
    """The cluster is not there, or lost a job for good."""

    code = "cluster_failed"


class Cluster(ABC):
    """Where jobs run; made by ``open_cluster``."""

    def __init__(self) -> None:
        self._under_way: WeakSet[Generator[Any]] = WeakSet()

    def map(self, function: Callable[[J], R], jobs: Iterable[J], *, cpus: float = 1, gpus: float = 0.0) -> Generator[R]:
        """Do every job; results in the order of the jobs, each as soon as it and those before it are there.

        A job whose process dies is done again. What ``function`` raises is raised here, and not tried again. Jobs that
        are not done when the iterator is closed, or fails, are ended.

        Args:
            function: of one job; it, jobs and results can be pickled, and a worker can import it.
            jobs: the arguments.
            cpus: that one job takes; Ray alone heeds it, as it does ``gpus``.
            gpus: that one job takes, parts of one too.

        Raises:
            ClusterError: a job ended its process every time.
        """
        results = self._results(function, list(jobs), cpus, gpus)
        self._under_way.add(results)
        return results

    @abstractmethod
    def describe(self) -> str:
        """Where jobs run, in words."""

    def close(self) -> None:
        """End what is under way."""
        for results in list(self._under_way):
            results.close()

    @abstractmethod
    def _results(self, function: Callable[[J], R], jobs: Sequence[J], cpus: float, gpus: float) -> Generator[R]: ...


@contextlib.contextmanager
def open_cluster(address: str | None, workers: int = 1) -> Iterator[Cluster]:
    """A place to run jobs, for as long as the block runs.

    Args:
        address: of a Ray cluster, whose machines have hilum installed: ``auto`` (the one this machine belongs to, or
            the one this program has joined already), ``ray://HOST:PORT`` or ``HOST:PORT``. None: this machine.
        workers: processes of this machine; with 1, jobs run in this process. Ray decides for itself.

    Raises:
        ClusterError: no cluster answers there.
        MissingExtra: Ray is not installed.
    """
    if workers < 1:
        raise InputError(f"{workers} workers cannot work; ask for 1 or more.")
    with contextlib.closing(_this_machine(workers) if address is None else _joined(address)) as cluster:
        yield cluster


def _this_machine(workers: int) -> Cluster:
    return _Here() if workers == 1 else _Processes(workers)


class _Here(Cluster):
    """This process."""

    def describe(self) -> str:
        return "this process"

    def _results(self, function: Callable[[J], R], jobs: Sequence[J], cpus: float, gpus: float) -> Generator[R]:
        yield from map(function, jobs)


class _Processes(Cluster):
    """Spawned processes of this machine, a thread of this one at the other end of each.

    Not concurrent.futures' pool: when one of its processes dies, all others are ended with it.
    """

    def __init__(self, workers: int) -> None:
        super().__init__()
        self._workers = [_Worker() for _ in range(workers)]
        self._free: LifoQueue[_Worker] = LifoQueue()
        for worker in self._workers:
            self._free.put(worker)

    def describe(self) -> str:
        return f"{len(self._workers)} processes of this machine"

    def close(self) -> None:
        super().close()
        for worker in self._workers:
            worker.end()

    def _results(self, function: Callable[[J], R], jobs: Sequence[J], cpus: float, gpus: float) -> Generator[R]:
        busy: set[_Worker] = set()
        ended = threading.Event()
        with ThreadPoolExecutor(len(self._workers)) as threads:
            try:
                yield from threads.map(partial(self._do, function, busy, ended), range(1, len(jobs) + 1), jobs)
            finally:
                ended.set()
                while busy:  # one may be about to start
                    for worker in list(busy):
                        worker.kill()
                    time.sleep(0.01)

    def _do(self, function: Callable[[J], R], busy: set[_Worker], ended: threading.Event, number: int, job: J) -> R:
        """One job, begun again while it ends its worker."""
        order = _order(function, job)
        worker = self._free.get()
        busy.add(worker)
        try:
            for _ in range(TRIES):
                if ended.is_set():
                    raise CancelledError
                answer = worker.do(order)
                if answer is not None:
                    result: R = _opened(answer)
                    return result
            raise _lost(number, job, f"its process died {TRIES} times")
        finally:
            busy.discard(worker)
            self._free.put(worker)


class _Worker:
    """A process that does one job at a time; it starts with its first, and again after it died."""

    def __init__(self) -> None:
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None

    def do(self, order: bytes) -> bytes | None:
        """The outcome of an order; None: the process died over it."""
        if self._pipe is None:
            self._pipe = self._start()
        try:
            self._pipe.send_bytes(order)
            return self._pipe.recv_bytes()
        except (EOFError, ConnectionError):
            self.end()
            return None

    def kill(self) -> None:
        """End the process, job or no job."""
        if self._process is not None:
            self._process.kill()

    def end(self) -> None:
        """Let the process go, and wait for it."""
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.join(GRACE_SECONDS)
            self._process.kill()
            self._process.join()
        self._process = self._pipe = None

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,))
        process.start()
        theirs.close()
        self._process = process
        return ours


def _serve(orders: Connection) -> None:
    """What a worker does: jobs, one after the other, until its driver lets go of it or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the driver decides
    threading.Thread(target=_follow_driver, daemon=True).start()
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            orders.send_bytes(_outcome(orders.recv_bytes()))


def _follow_driver() -> None:
    """End this process when the one that started it is gone: nobody waits for its job."""
    driver = multiprocessing.parent_process()
    if driver is not None:
        driver.join()
    os._exit(1)


def _order(function: Callable[[J], R], job: J) -> bytes:
    return pickle.dumps((function, job))


def _outcome(order: bytes) -> bytes:
    """What an order came to: true and the result, or false and the exception."""
    try:
        function, job = pickle.loads(order)  # noqa: S301 - of the driver
        return pickle.dumps((True, function(job)))
    except Exception as error:  # noqa: BLE001 - raised again in the driver
        error.add_note("".join(traceback.format_exception(error)))
        return _packed(error)


def _packed(error: Exception) -> bytes:
    """An exception, or its text where it cannot travel."""
    try:
        data = pickle.dumps((False, error))
        pickle.loads(data)  # noqa: S301 - just made
    except Exception:  # noqa: BLE001 - whatever an exception's own class does
        return pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))
    return data


def _opened(outcome: bytes) -> Any:
    """The result, or the exception raised."""
    good, value = pickle.loads(outcome)  # noqa: S301 - of a worker
    if not good:
        raise value
    return value


class _Ray(Cluster):
    """A Ray cluster that this process has joined.

    Args:
        ray: the module.
        address: of the cluster.
        leave: whether this object joined it, and leaves it when it is closed.
    """

    def __init__(self, ray: Any, address: str, leave: bool) -> None:
        super().__init__()
        self._ray = ray
        self._address = address
        self._leave = leave

    def describe(self) -> str:
        machines = sum(node["Alive"] for node in self._ray.nodes())
        all_of_it = self._ray.cluster_resources()
        cpus, gpus = (all_of_it.get(kind, 0.0) for kind in ("CPU", "GPU"))
        return f"Ray cluster {self._address} (machines: {machines}, CPUs: {cpus:g}, GPUs: {gpus:g})"

    def close(self) -> None:
        super().close()
        if self._leave:
            self._ray.shutdown()

    def _results(self, function: Callable[[J], R], jobs: Sequence[J], cpus: float, gpus: float) -> Generator[R]:
        self._warn_of_waiting(cpus, gpus)
        task = self._ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=TRIES)(_outcome)
        waiting = deque(task.remote(_order(function, job)) for job in jobs)
        try:
            for number, job in enumerate(jobs, 1):
                result = self._fetched(waiting[0], number, job)
                waiting.popleft()
                yield result
        finally:
            self._end(list(waiting))

    def _end(self, references: Sequence[Any]) -> None:
        """Cancel tasks, but none that is done: Ray may abort this process when a task is cancelled as it ends."""
        if references:
            _, running = self._ray.wait(references, num_returns=len(references), timeout=0)
            for reference in running:
                self._ray.cancel(reference, force=True)

    def _fetched(self, reference: Any, number: int, job: Any) -> Any:
        try:
            outcome = self._ray.get(reference)
        except (self._ray.exceptions.RayError, ConnectionError) as error:
            raise _lost(number, job, _last_line(str(error))) from error
        return _opened(outcome)

    def _warn_of_waiting(self, cpus: float, gpus: float) -> None:
        """Say so where no machine of the cluster can do such a job; one that can may still join."""
        for node in self._ray.nodes():
            has = node["Resources"]
            if node["Alive"] and has.get("CPU", 0.0) >= cpus and has.get("GPU", 0.0) >= gpus:
                return
        log.warning("No machine of the Ray cluster has %g CPUs and %g GPUs; waiting for one.", cpus, gpus)


def _joined(address: str) -> _Ray:
    """The Ray cluster at an address."""
    try:
        ray = importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise missing("--cluster", "cluster", error) from error
    if address == "auto":
        if ray.is_initialized():
            return _Ray(ray, address, leave=False)
        address = os.environ.get("RAY_ADDRESS") or address
    if address != "auto":
        _reach(address)
    _try_to_join(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError) as error:
        raise _absent(address, _last_line(str(error))) from error
    return _Ray(ray, address, leave=True)


def _try_to_join(address: str) -> None:
    """Join and leave in another process: where no Ray answers, joining may never end, or end the process.

    Raises:
        ClusterError: it failed.
    """
    code = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False); ray.shutdown()"
    try:
        subprocess.run(  # noqa: S603 - this Python; the address is an argument, not a command
            [sys.executable, "-c", code, address], capture_output=True, text=True, check=True, timeout=JOIN_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise _absent(address, f"no answer in {JOIN_SECONDS:g} s") from None
    except subprocess.CalledProcessError as error:
        causes = [line for line in error.stderr.splitlines() if line.startswith("ray.exceptions.")]
        raise _absent(address, _last_line("\n".join(causes) or error.stderr)) from None


def _reach(address: str) -> None:
    """Check that something listens at an address, which Ray itself waits long for.

    Raises:
        ClusterError: nothing does, or it is no address.
    """
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        place = parts.hostname, parts.port
    except ValueError:
        place = None, None
    if parts.scheme not in ("", "ray") or None in place:
        raise ClusterError(
            f"{address} is no address of a Ray cluster; give auto, ray://HOST:PORT or HOST:PORT.",
            code="bad_cluster_address",
        )
    try:
        socket.create_connection(place, CONNECT_SECONDS).close()
    except OSError as error:
        raise _absent(address, error.strerror or str(error)) from error


def _absent(address: str, why: str) -> ClusterError:
    return ClusterError(
        f"The Ray cluster {address} cannot be joined ({why}); start it, or give another address.", code="no_cluster"
    )


def _lost(number: int, job: Any, why: str) -> ClusterError:
    return ClusterError(
        f"Job {number} was lost ({why}): {shorten(repr(job), 120)}; if memory ran out, use fewer workers.",
        code="job_lost",
    )


def _last_line(text: str) -> str:
    return shorten(text.strip().rpartition("\n")[2].rstrip("."), 200)
