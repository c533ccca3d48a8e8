"""Alerts, dashboard and autoscaling: their queries parse, and the server has every metric and label in them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.deploy.manifests import DEPLOY, MONITORING, VARIANTS, alerts, rendered, yaml

from slipstream.dialects.protocol import CloseCode
from slipstream.server.metrics import Metrics

ADAPTER = DEPLOY / "kubernetes" / "components" / "prometheus-adapter" / "adapter-values.yaml"
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))
OF_PROMETHEUS = {"namespace", "job", "pod", "instance", "container", "le"}
"""Labels that Prometheus and its operator add, and that of buckets."""


def series() -> dict[str, set[str]]:
    """The names of the server's time series, with their labels."""
    metrics, found = Metrics(), {}
    for family in metrics.registry.collect():
        suffixes = {"histogram": ("_bucket", "_count", "_sum"), "counter": ("_total",)}.get(family.type, ("",))
        labels: set[str] = set()
        for metric in vars(metrics).values():
            if getattr(metric, "_name", None) == family.name:
                labels = set(metric._labelnames)
        found |= {family.name + suffix: labels for suffix in suffixes}
    # `connects` and `open_channels` keep a child, whose labels are those of their parent.
    return found | {"asr_connect": {"handler"}, "asr_open_channels": {"handler"}}


def queries() -> Iterator[str]:
    for group in alerts()["spec"]["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    for panel in DASHBOARD["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    yield from (variable["definition"] for variable in DASHBOARD["templating"]["list"] if "definition" in variable)
    for rule in yaml.safe_load(ADAPTER.read_text(encoding="utf-8"))["rules"]["custom"]:
        yield rule["seriesQuery"]
        yield rule["metricsQuery"]


def scaled_objects() -> Iterator[str]:
    for variant in VARIANTS:
        for manifest in rendered(variant):
            if manifest["kind"] == "ScaledObject":
                yield from (trigger["metadata"]["query"] for trigger in manifest["spec"]["triggers"])


def check(query: str) -> None:
    known, recorded = series(), {rule.get("record") for group in alerts()["spec"]["groups"] for rule in group["rules"]}
    names = re.findall(r"\b(?:asr|slipstream|process)[_:][\w:]+", re.sub(r'"[^"]*"', '""', query))
    assert names
    for name in names:
        assert name in known or name in recorded, f"{name} in {query}"
    labels = {label for name in names for label in known.get(name, set())} | OF_PROMETHEUS
    used = re.findall(r"(\w+) *(?:=~|!=|=)\s*\"", query)
    for group in re.findall(r"\b(?:by|on) \(([\w, ]+)\)", query):
        used += group.split(", ")
    assert set(used) <= labels, query


@pytest.mark.parametrize("query", sorted(set(queries())))
def test_the_server_has_the_metrics_of_a_query(query: str) -> None:
    check(query)


def test_the_server_has_the_metrics_of_the_autoscaler() -> None:
    found = list(scaled_objects())
    assert len(found) == 2
    for query in found:
        check(query)


def test_a_query_of_an_unknown_metric_is_found() -> None:
    for query in (
        "rate(slipstream_word_total[5m])",
        'slipstream_words_total{code="1"}',
        "sum by (status) (asr_connect)",
    ):
        with pytest.raises(AssertionError):
            check(query)


@pytest.mark.parametrize("query", sorted(set(queries())))
def test_queries_parse(query: str) -> None:
    parser = pytest.importorskip("promql_parser", reason="needs the extra deploy-test")
    if query.startswith("label_values("):
        query = query.removeprefix("label_values(").rpartition(",")[0]
    query = query.replace("<<.LabelMatchers>>", 'pod="a"').replace("<<.GroupBy>>", "pod")
    parser.parse(query.replace("$__rate_interval", "1m"))


def test_codes_in_queries_exist() -> None:
    text = " ".join(queries())
    codes = set(re.findall(r'\bcode="(\d+)"', text))
    assert codes
    assert codes <= {str(int(code)) for code in CloseCode}


def test_every_alert_has_a_severity_and_a_summary() -> None:
    (group,) = alerts()["spec"]["groups"]
    for rule in (rule for rule in group["rules"] if "alert" in rule):
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert rule["annotations"]["summary"]


def test_panels_do_not_overlap() -> None:
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_promtool_accepts_the_alerts_and_they_fire(tmp_path: Path) -> None:
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("needs promtool: Debian's package prometheus")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(alerts()["spec"]))
    cases = Path(__file__).with_name("alerts.yaml").read_text(encoding="utf-8")
    (tmp_path / "cases.yaml").write_text(cases)
    for command in (["check", "rules", "rules.yaml"], ["test", "rules", "cases.yaml"]):
        run = subprocess.run([promtool, *command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout + run.stderr
