"""A run's figures as OpenMetrics text, in a file that a collector of textfiles picks up."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from wsi.publish import appear_file

from .follow import AT_WORK, ENDED, LOST

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from .status import Status

# OpenMetrics; nothing in it is read otherwise by those who know Prometheus' older text only, as node_exporter does
_STATES = ("done", "empty", "failed", "running", "queued")


def metrics_text(status: "Status") -> str:
    """OpenMetrics text of a status."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.openmetrics.exposition import generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(status))
    return generate_latest(registry).decode()


def write_metrics(status: "Status", path: Path) -> None:
    """Replace the file at `path`, in one step. Raises OSError where nothing can be written."""
    text = metrics_text(status)
    with appear_file(path, flush=False) as draft:
        draft.write_text(text, encoding="utf-8")


class _Figures:
    """What prometheus_client asks of a collector."""

    def __init__(self, status: "Status"):
        self._status = status

    def collect(self) -> "Iterator[Metric]":
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        def gauge(name: str, words: str, *labels: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"slidestream_{name}", words, labels=labels)

        status = self._status
        slides = gauge("slides", "Slides at a stage, by what became of them", "stage", "state")
        tiles = CounterMetricFamily("slidestream_tiles", "Tiles done by the sessions of the run", labels=["stage"])
        rate = gauge("tiles_per_second", "Tiles done per second in the last ten minutes", "stage")
        busy = gauge("busy_ratio", "Share of the workers' time that was work", "stage")
        room = gauge("room", "Units that the sessions can have at work at a time", "stage")
        for stage in status.stages:
            for state in _STATES:
                slides.add_metric([stage.stage, state], getattr(stage, state))
            tiles.add_metric([stage.stage], stage.tiles)
            rate.add_metric([stage.stage], stage.tiles_per_s or 0.0)
            room.add_metric([stage.stage], stage.room)
            if stage.busy is not None:
                busy.add_metric([stage.stage], stage.busy)
        sessions = gauge("sessions", "Commands that are or were at work on the run", "state")
        for state in (AT_WORK, ENDED, LOST):
            sessions.add_metric([state.replace(" ", "_")], sum(one.state == state for one in status.sessions))
        missing = gauge("slides_missing", "Slides without a result")
        missing.add_metric([], status.slides.get("missing", 0))
        halted = gauge("halted", "1 where a session at work was halted")
        halted.add_metric([], float(any(one.halted and one.state == AT_WORK for one in status.sessions)))
        eta = gauge("eta_seconds", "Seconds until all is done; not there while that is not known")
        if status.eta_s is not None:
            eta.add_metric([], status.eta_s)
        yield from (slides, tiles, rate, busy, room, sessions, missing, halted, eta)
