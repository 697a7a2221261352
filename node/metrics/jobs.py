"""Jobs in worker processes: training, verifying, custody, by the name of the function that runs."""

from collections import Counter as Tally

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500)
"""From a decryption of one sum to an evaluation that takes most of an hour."""


class JobMetrics:
    """The `JobObserver` of all of a node's worker pools."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "bmif_job_seconds",
            "Seconds of a job in its worker process",
            ["pool", "job"],
            buckets=SECONDS,
            registry=registry,
        )
        self._cpu = Counter(
            "bmif_job_cpu_seconds",
            "Processor seconds of jobs in this machine's worker processes",
            ["pool", "job"],
            registry=registry,
        )
        self._failed = Counter(
            "bmif_jobs_failed", "Jobs that failed or were given up", ["pool"], registry=registry
        )
        self._workers = Gauge("bmif_pool_workers", "Most workers of a pool", ["pool"], registry=registry)
        self._running = Gauge("bmif_pool_jobs", "Jobs that run or wait", ["pool"], registry=registry)
        self._waiting = Gauge(
            "bmif_pool_waiting_jobs", "Jobs beyond the pool's workers", ["pool"], registry=registry
        )
        self._deaths = Counter(
            "bmif_worker_deaths", "Worker processes that died", ["pool"], registry=registry
        )
        self._sizes: Tally[str] = Tally()
        self._jobs: Tally[str] = Tally()

    def on_pool(self, pool: str, workers: int) -> None:
        self._sizes[pool] += workers
        self._workers.labels(pool).set(self._sizes[pool])
        # A series that begins with its first event has no increase to alarm about.
        self._failed.labels(pool)
        self._deaths.labels(pool)
        self._show(pool, 0)

    def on_begun(self, pool: str) -> None:
        self._show(pool, 1)

    def on_ended(self, pool: str, job: str, seconds: float | None, cpu: float | None = None) -> None:
        self._show(pool, -1)
        if seconds is None:
            self._failed.labels(pool).inc()
        else:
            self._seconds.labels(pool, job).observe(seconds)
        if cpu is not None:
            self._cpu.labels(pool, job).inc(cpu)

    def on_death(self, pool: str) -> None:
        self._deaths.labels(pool).inc()

    def _show(self, pool: str, change: int) -> None:
        self._jobs[pool] += change
        self._running.labels(pool).set(self._jobs[pool])
        self._waiting.labels(pool).set(max(0, self._jobs[pool] - self._sizes[pool]))
