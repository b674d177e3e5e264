"""`/metrics`: what the engine counts, the answers by route and status, and the process's memory and time, for Prometheus."""

from collections.abc import Iterator

import numpy as np
from prometheus_client import CollectorRegistry, Counter, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .engine import Engine

_QUANTILES = (0.5, 0.95, 0.99)


class Metrics:
    def __init__(self, engine: Engine):
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(engine))
        ProcessCollector(registry=self._registry)
        self.answers = Counter(
            "evoxtral_http_answers", "HTTP answers.", ["method", "route", "status"], registry=self._registry
        )

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    def __init__(self, engine: Engine):
        self._engine = engine

    def describe(self) -> list[Metric]:
        """Nothing is read before the engine has started."""
        return []

    def collect(self) -> Iterator[Metric]:
        is_ready = self._engine.is_ready
        yield GaugeMetricFamily("evoxtral_ready", "1 if the engine takes work.", int(is_ready))
        if not is_ready:
            return
        stats = self._engine.stats()
        yield GaugeMetricFamily("evoxtral_slots", "Most streams at a time.", stats.slots)
        yield GaugeMetricFamily("evoxtral_streams_open", "Streams now.", stats.streams)
        yield GaugeMetricFamily("evoxtral_files_open", "Files that wait or are being decoded.", stats.files)
        yield CounterMetricFamily("evoxtral_streams", "Streams since the start.", stats.streams_total)
        yield CounterMetricFamily("evoxtral_utterances", "Utterances of streams since the start.", stats.utterances_total)
        yield CounterMetricFamily("evoxtral_blank_ruts", "Utterances that were ended in a blank rut.", stats.blank_ruts_total)
        yield CounterMetricFamily("evoxtral_audio_seconds", "Audio decoded, of streams and files.", stats.audio_s_total)
        yield CounterMetricFamily("evoxtral_refused", "Streams and files that found the server full.", stats.refused_total)
        yield CounterMetricFamily("evoxtral_failures", "Streams and segments of files lost to a fault.", stats.failures_total)
        tags = CounterMetricFamily("evoxtral_tags", "Kept tags of streams since the start.", labels=["tag"])
        for tag, count in sorted(stats.tags_total.items()):
            tags.add_metric([tag], count)
        yield tags
        yield _quantiles("evoxtral_step_seconds", "Time of a live step, of the last 1,000.", stats.step_s)
        yield _quantiles("evoxtral_lag_seconds", "From a frame's arrival to its tokens, last 1,000 live steps.", stats.lag_s)


def _quantiles(name: str, description: str, seconds: list[float]) -> Metric:
    family = GaugeMetricFamily(name, description, labels=["quantile"])
    if seconds:
        for quantile, value in zip(_QUANTILES, np.quantile(seconds, _QUANTILES), strict=True):
            family.add_metric([str(quantile)], float(value))
    return family
