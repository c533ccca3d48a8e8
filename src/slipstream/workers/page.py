"""The metrics of all processes on one page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

from prometheus_client import CollectorRegistry
from prometheus_client.core import Exemplar, Metric
from prometheus_client.registry import Collector

from slipstream.server.metrics import choose_format

Family: TypeAlias = list[Any]
"""Name, help, type, and samples (name, labels, value, exemplar) of a metric, as JSON has them."""

_LARGEST = (
    "slipstream_slots",
    "slipstream_slots_used",
    "slipstream_queued",
    "slipstream_step_running_seconds",
    "process_open_fds",
)
"""Not summed: every process reports the value of all, or has its own limit."""
_SMALLEST = ("process_start_time_seconds", "process_max_fds")


def snapshot(registry: CollectorRegistry) -> list[Family]:
    """Return the present metrics of this process."""
    return [
        [
            metric.name,
            metric.documentation,
            metric.type,
            [[one.name, one.labels, one.value, one.exemplar] for one in metric.samples],
        ]
        for metric in registry.collect()
    ]


def counts_of(families: Iterable[Family]) -> list[Family]:
    """Return the metrics that a process leaves behind when it ends: counters and histograms."""
    return [family for family in families if family[2] in ("counter", "histogram") or family[0] == "asr_connect"]


def joined(processes: Iterable[Iterable[Family]]) -> list[Family]:
    """Join the metrics of several processes: sums, except where every process reports the value of all."""
    result: dict[str, Family] = {}
    values: dict[tuple[str, str], list[Any]] = {}
    for families in processes:
        for name, documentation, kind, samples in families:
            family = result.setdefault(name, [name, documentation, kind, []])
            for sample, labels, value, exemplar in samples:
                key = sample, repr(sorted(labels.items()))
                if (known := values.get(key)) is None:
                    values[key] = entry = [sample, labels, value, exemplar]
                    family[3].append(entry)
                    continue
                known[3] = known[3] or exemplar
                if name in _LARGEST:
                    known[2] = max(known[2], value)
                elif name in _SMALLEST or sample.endswith("_created"):
                    known[2] = min(known[2], value)
                else:
                    known[2] += value
    return list(result.values())


def text_of(families: Iterable[Family], accept: str = "") -> tuple[bytes, str]:
    """Return the text of metrics in the format that the header `Accept` requests, and its media type."""
    registry = CollectorRegistry()
    registry.register(_Families(families))
    encode, media_type = choose_format(accept)
    return encode(registry), media_type


class _Families(Collector):
    def __init__(self, families: Iterable[Family]) -> None:
        self._families = list(families)

    def collect(self) -> Iterator[Metric]:
        for name, documentation, kind, samples in self._families:
            metric = Metric(name, documentation, kind)
            for sample, labels, value, exemplar in samples:
                metric.add_sample(sample, labels, value, exemplar=Exemplar(*exemplar) if exemplar else None)
            yield metric
