"""``GET /metrics``: a few counters as Prometheus text.

What rounds did is a gauge for each run and not a counter: it is what the status says, and that falls where a round that
had late updates is abandoned, and while split steps are taken again from the journal.
"""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from schemas.status import DownloadStates, Role, RunSummary, ServerStatus
from server_app.handlers_people import allow, server_status


class Traffic(Collector):
    """What only ever grows."""

    def __init__(self, status: ServerStatus) -> None:
        self._status = status

    def collect(self) -> list[CounterMetricFamily]:
        """Return bytes by direction and refusals by reason."""
        carried = CounterMetricFamily("fedge_device_bytes", "Bytes on device sockets", labels=["direction"])
        carried.add_metric(["up"], self._status.traffic.up)
        carried.add_metric(["down"], self._status.traffic.down)
        refused = CounterMetricFamily("fedge_requests_refused", "Requests refused", labels=["reason"])
        for reason, count in self._status.rejected.items():
            refused.add_metric([reason], count)
        kept = self._status.download_states or DownloadStates()
        evicted = CounterMetricFamily("fedge_download_states_evicted", "Download states deleted for want of room")
        evicted.add_metric([], kept.evicted)
        resyncs = CounterMetricFamily("fedge_download_resyncs", "Whole models sent to devices that had one")
        resyncs.add_metric([], kept.resyncs)
        return [carried, refused, evicted, resyncs]


class Rounds(Collector):
    """What each run's rounds did, where they did it: split steps, and late updates that counted."""

    def __init__(self, runs: Sequence[RunSummary]) -> None:
        self._runs = runs

    def collect(self) -> list[GaugeMetricFamily]:
        """Return split steps, their bytes by direction, and late updates, by run."""
        steps = GaugeMetricFamily("fedge_split_steps", "Steps of the back half", labels=["run"])
        carried = GaugeMetricFamily("fedge_split_bytes", "Bytes of split exchanges", labels=["run", "direction"])
        late = GaugeMetricFamily("fedge_late_updates", "Updates that counted in a later round", labels=["run"])
        for run in self._runs:
            if run.split is not None:
                steps.add_metric([run.run], run.split.steps)
                carried.add_metric([run.run, "up"], run.split.bytes.up)
                carried.add_metric([run.run, "down"], run.split.bytes.down)
            if run.late_updates:
                late.add_metric([run.run], run.late_updates)
        return [steps, carried, late]


async def show(request: web.Request) -> web.Response:
    """Counters for Prometheus."""
    context = allow(request, Role.VIEWER)
    status = await server_status(context)
    registry = CollectorRegistry()
    registry.register(Traffic(status))
    registry.register(Rounds(await context.federation.summaries()))
    Gauge("fedge_devices", "Enrolled devices", registry=registry).set(status.devices)
    Gauge("fedge_devices_online", "Devices online", registry=registry).set(status.devices_online)
    Gauge("fedge_runs", "Runs", registry=registry).set(status.runs)
    kept = status.download_states or DownloadStates()
    Gauge("fedge_download_states", "Devices whose download state is kept", registry=registry).set(kept.count)
    Gauge("fedge_download_state_bytes", "Bytes of disk they take", registry=registry).set(kept.bytes)
    Gauge("fedge_download_state_max_bytes", "Bytes they may take", registry=registry).set(kept.max_bytes)
    return web.Response(body=generate_latest(registry), headers={"Content-Type": "text/plain; version=0.0.4"})
