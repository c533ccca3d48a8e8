"""One page of metrics for several processes."""

from __future__ import annotations

import pytest
from tests.server.harness import metric_samples

from slipstream.server.metrics import Metrics
from slipstream.workers.page import Family, counts_of, joined, snapshot, text_of


def metrics_of(words: int, code: int, slots: int) -> Metrics:
    metrics = Metrics()
    metrics.words.inc(words)
    metrics.closes.labels(code).inc()
    metrics.flush_seconds.observe(0.03 * words)
    metrics.slots.set(slots)
    metrics.open_channels.set(words)
    return metrics


def test_counts_add_up_and_the_values_of_the_whole_server_do_not() -> None:
    processes = [snapshot(metrics_of(words, code, 8).registry) for words, code in ((1, 1000), (4, 1000), (2, 1011))]
    samples = metric_samples(text_of(joined(processes))[0].decode())
    assert samples["slipstream_words_total"] == 7
    assert samples['slipstream_closes_total{code="1000"}'] == 2
    assert samples['slipstream_closes_total{code="1011"}'] == 1
    assert samples["slipstream_flush_seconds_count"] == 3
    assert samples['slipstream_flush_seconds_bucket{le="0.05"}'] == 1
    assert samples["slipstream_slots"] == 8
    assert samples['asr_open_channels{handler="all"}'] == 7


def test_the_counts_of_a_process_that_has_ended_remain_but_not_what_it_had_open() -> None:
    ended = counts_of(snapshot(metrics_of(5, 1000, 8).registry))
    samples = metric_samples(text_of(joined([snapshot(metrics_of(1, 1000, 8).registry), ended]))[0].decode())
    assert samples["slipstream_words_total"] == 6
    assert samples["slipstream_flush_seconds_sum"] == 0.18
    assert samples['asr_open_channels{handler="all"}'] == 1


def test_open_descriptors_are_those_of_the_process_that_has_most() -> None:
    def descriptors(number: float) -> list[Family]:
        return [["process_open_fds", "", "gauge", [["process_open_fds", {}, number, None]]]]

    samples = metric_samples(text_of(joined([descriptors(40), descriptors(90), descriptors(20)]))[0].decode())
    assert samples["process_open_fds"] == 90


@pytest.mark.parametrize("kind", ["text/plain", "application/openmetrics-text"])
def test_a_version_that_is_not_a_number_gets_plain_text(kind: str) -> None:
    page, media_type = text_of(snapshot(metrics_of(3, 1000, 8).registry), f"{kind};version=new")
    assert metric_samples(page.decode())["slipstream_words_total"] == 3
    assert media_type == text_of([])[1]


def test_the_page_of_one_process_is_its_own() -> None:
    metrics = metrics_of(3, 1000, 8)
    own = metric_samples(text_of(snapshot(metrics.registry))[0].decode())
    assert own["slipstream_words_total"] == 3
    assert 'asr_model_step_duration_bucket{le="0.08"}' in own
