"""Publishes a choice of the metrics to CloudWatch, by its API or as lines on standard output, beside Prometheus.

Whoever counts does so once, in `metrics.py`; this task reads the same registry every interval. A failure is logged once
an outage and counted, what it held back is sent with the next success, and nothing else of the service notices. A
sending whose answer was lost is sent again, so such an interval may count twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn, Protocol, TextIO

import structlog
import trio

from ingestor.core.datums import DatumSource, emf_lines
from ingestor.core.errors import SinkError
from ingestor.core.stopping import OBSERVERS_S

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ingestor.core.datums import Datum, Dimensions
    from ingestor.metrics import Metrics
    from ingestor.threads import RunBlocking

log = structlog.get_logger()

OUTPUT_LIMIT_S: Final = 10.0  # a log driver that is short of breath takes its time


class MetricsOutlet(Protocol):
    """Where datums go: `aws.CloudWatchSink`, or `EmfOutlet`."""

    async def publish(self, datums: Sequence[Datum], at_ms: int) -> None:
        """Send `datums` as of `at_ms`; raises `SinkError`."""
        ...


class EmfOutlet:
    """Writes the embedded metric format to `out`, which the log driver takes to CloudWatch: no call, no permission.

    Logs go to standard error, so `out` holds nothing but these lines. A pipe that nobody reads blocks, hence the
    thread, which is left to itself then: `run_blocking` has to allow for that.
    """

    def __init__(self, out: TextIO, namespace: str, run_blocking: RunBlocking) -> None:
        self._out = out
        self._namespace = namespace
        self._run_blocking = run_blocking

    async def publish(self, datums: Sequence[Datum], at_ms: int) -> None:
        """Write a line for each set of dimensions; raises `SinkError` when nobody reads any more."""
        text = "".join(f"{line}\n" for line in emf_lines(datums, self._namespace, at_ms))
        try:
            with trio.fail_after(OUTPUT_LIMIT_S):
                await self._run_blocking(lambda: self._write(text))
        except OSError as error:
            raise SinkError("transient", "OutputFailed", str(error)) from error
        except trio.TooSlowError as error:
            text = f"nobody has read standard output for {OUTPUT_LIMIT_S:g} s"
            raise SinkError("transient", "OutputStuck", text, may_have_landed=True) from error

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


class Publisher:
    """Publishes every `interval_s`, and a last time when it is cancelled."""

    def __init__(
        self,
        metrics: Metrics,
        outlet: MetricsOutlet,
        *,
        dimensions: Dimensions,
        interval_s: float,
        wall_ns: Callable[[], int],
    ) -> None:
        self._metrics = metrics
        self._outlet = outlet
        self._source = DatumSource(dimensions)
        self._interval_s = interval_s
        self._wall_ns = wall_ns
        self._failures = 0

    async def run(self) -> NoReturn:
        """Publish until cancelled; what came since the last time is published then."""
        try:
            while True:
                await trio.sleep(self._interval_s)
                await self.publish()
        finally:
            with trio.move_on_after(OBSERVERS_S, shield=True):
                await self.publish()

    async def publish(self) -> None:
        """Send what is new; a failure stays in here."""
        samples = (sample for family in self._metrics.registry.collect() for sample in family.samples)
        datums = self._source.read(samples)
        try:
            await self._outlet.publish(datums, self._wall_ns() // 1_000_000)
        except SinkError as error:
            self._failures += 1
            self._metrics.publications.labels("failed").inc()
            if self._failures == 1:
                log.warning("metrics_not_published", error=str(error), retry_in_s=self._interval_s)
            return
        self._source.settle()
        self._metrics.publications.labels("accepted").inc()
        if self._failures:
            log.info("metrics_published_again", failures=self._failures)
            self._failures = 0
