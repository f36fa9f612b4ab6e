"""What the gateway counts, as Prometheus text: plain numbers, prometheus-client is imported by the first scrape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client.core import Metric

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
"""Upper bounds of the request-time histogram, in seconds."""


class Metrics:
    """Counters of one gateway; labels never carry ids, names of files or anything of a patient."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, str]] = Counter()  # (method, route, status)
        self.buckets: Counter[float] = Counter()
        self.request_seconds = 0.0
        self.jobs: Counter[str] = Counter()
        self.stages: Counter[str] = Counter()
        self.windows = 0
        self.upload_bytes = 0

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self.requests[(method, route, str(status))] += 1
        self.request_seconds += seconds
        self.buckets[next((bound for bound in BOUNDS if seconds <= bound), float("inf"))] += 1

    def ended(self, status: str) -> None:
        """A job ended."""
        self.jobs[status] += 1

    def finished(self, report: Mapping[str, Any]) -> None:
        """A job ended well: take its stages and windows from its report."""
        for stage, seconds in report.get("timings", {}).items():
            self.stages[stage] += seconds
        self.windows += int(report.get("windows", 0))

    def render(self, waiting: Mapping[str, int], ready: bool, restarts: int) -> bytes:
        """Prometheus text; ``waiting`` is the number of unfinished jobs by status."""
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.registry import Collector

        families = list(self._families(waiting, ready, restarts))

        class Once(Collector):
            def collect(self) -> Iterable[Metric]:
                return families

        registry = CollectorRegistry(auto_describe=False)
        registry.register(Once())
        return generate_latest(registry)

    def _families(self, waiting: Mapping[str, int], ready: bool, restarts: int) -> Iterable[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        requests = CounterMetricFamily("hilum_requests", "Requests answered", labels=["method", "route", "status"])
        for labels, count in self.requests.items():
            requests.add_metric(labels, count)
        yield requests
        times = HistogramMetricFamily("hilum_request_seconds", "Time to answer a request")
        below, steps = 0, []
        for bound in (*BOUNDS, float("inf")):
            below += self.buckets[bound]
            steps.append((f"{bound:g}" if bound != float("inf") else "+Inf", float(below)))
        times.add_metric([], steps, self.request_seconds)
        yield times
        states = GaugeMetricFamily("hilum_jobs_unfinished", "Jobs by state", labels=["status"])
        for status, count in waiting.items():
            states.add_metric([status], count)
        yield states
        yield GaugeMetricFamily("hilum_queue_length", "Jobs that wait", value=waiting.get("queued", 0))
        ended = CounterMetricFamily("hilum_jobs", "Jobs that ended since the start", labels=["status"])
        for status, count in self.jobs.items():
            ended.add_metric([status], count)
        yield ended
        stages = CounterMetricFamily("hilum_stage_seconds", "Seconds spent in each stage of jobs", labels=["stage"])
        for stage, seconds in self.stages.items():
            stages.add_metric([stage], seconds)
        yield stages
        yield CounterMetricFamily("hilum_windows", "Windows run", value=self.windows)
        yield CounterMetricFamily("hilum_upload_bytes", "Bytes of volumes received", value=self.upload_bytes)
        yield GaugeMetricFamily("hilum_worker_ready", "Whether the worker is up", value=float(ready))
        yield CounterMetricFamily("hilum_worker_restarts", "Times the worker was started again", value=restarts)
