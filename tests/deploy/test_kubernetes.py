"""The manifests against Kubernetes' schemas, and against the server: options, ports, paths, limits and metrics."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import typer
from tests.deploy.manifests import DEPLOY, MONITORING, OVERLAYS, VARIANTS, container, helm, of_kind, rendered, yaml
from tests.fakes import ScriptRunner, tiny_tokenizer

from slipstream.cli.app import app
from slipstream.connections.access import Access
from slipstream.connections.limits import Limits
from slipstream.connections.paced import CLOSE_SECONDS
from slipstream.dialects.models import Models
from slipstream.engine.engine import Engine
from slipstream.server.http.app import Service, _operations
from slipstream.server.streams.registry import StreamRegistry

KUBERNETES = "1.34"
CUSTOM = {"PodMonitor", "PrometheusRule", "ScaledObject"}
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")


def pod(variant: str) -> dict[str, Any]:
    return dict(of_kind(variant, "Deployment")["spec"]["template"]["spec"])


def options(variant: str) -> dict[str, Any]:
    """What `slipstream serve` reads from the image's entry point and the container's arguments."""
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.MULTILINE)
    words = [*json.loads(entry), *container(variant)["args"]]
    assert words[:2] == ["slipstream", "serve"]
    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    return dict(command.make_context("serve", words[2:]).params)


def limits(variant: str) -> Limits:
    from slipstream.cli.serve import _limits

    return _limits(list(options(variant)["limit"]))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_schemas_accept_every_manifest(variant: str) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="needs the extra deploy-test")
    for manifest in rendered(variant):
        if manifest["kind"] not in CUSTOM:
            validator.validate(manifest, KUBERNETES, strict=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_server_has_the_options_ports_and_paths(variant: str) -> None:
    found, ports = options(variant), {port["name"]: port["containerPort"] for port in container(variant)["ports"]}
    assert ports == {"http": found["port"], "metrics": found["metrics_port"]}
    assert (found["host"], found["metrics_host"]) == ("0.0.0.0", "0.0.0.0")  # probes and clients come from other hosts
    with Engine(ScriptRunner(slots=1), tiny_tokenizer()) as engine:
        service = Service(engines=Models({"script": engine}), access=Access("127.0.0.1"))
        routes = _operations(service, StreamRegistry(service.limits), None, with_metrics=True)
    paths = {route.path for route in routes}  # type: ignore[attr-defined]
    probes = {name: container(variant)[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert {probe["port"] for probe in probes.values()} == {"metrics"}
    assert [probes[name]["path"] for name in probes] == ["/healthz", "/readyz", "/healthz"]
    assert {"/healthz", "/readyz", "/metrics"} <= paths


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_stopping_pod_has_time_to_drain(variant: str) -> None:
    command = container(variant)["lifecycle"]["preStop"]["exec"]["command"]
    assert command[0] == "sleep"
    needed = float(command[1]) + limits(variant).drain_seconds + CLOSE_SECONDS
    assert needed < pod(variant)["terminationGracePeriodSeconds"] <= needed + 30
    readiness = container(variant)["readinessProbe"]
    assert readiness["periodSeconds"] * readiness["failureThreshold"] < float(command[1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_liveness_tolerates_a_step_that_the_server_tolerates(variant: str) -> None:
    liveness = container(variant)["livenessProbe"]
    assert liveness["periodSeconds"] * (liveness["failureThreshold"] - 1) > Limits().step_seconds


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_keys_come_from_a_secret(variant: str) -> None:
    (volume,) = [volume for volume in pod(variant)["volumes"] if volume["name"] == "keys"]
    (mount,) = [mount for mount in container(variant)["volumeMounts"] if mount["name"] == "keys"]
    assert options(variant)["api_keys"].as_posix() == f"{mount['mountPath']}/keys"
    for secret in (manifest for manifest in rendered(variant) if manifest["kind"] == "Secret"):
        assert volume["secret"]["secretName"] == secret["metadata"]["name"]
        assert list(secret["stringData"]) == ["keys"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_pod_has_no_rights(variant: str) -> None:
    (user,) = set(re.findall(r"^USER ([1-9]\d*)$", DOCKERFILE, re.MULTILINE))
    context, own = pod(variant)["securityContext"], container(variant)["securityContext"]
    assert (context["runAsNonRoot"], context["runAsUser"]) == (True, int(user))
    assert own == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod(variant)["automountServiceAccountToken"] is False


@pytest.mark.parametrize("variant", VARIANTS)
def test_writable_folders_are_volumes(variant: str) -> None:
    """The file system of the image is read-only: caches and temporary files need a mount."""
    mounts = {mount["mountPath"] for mount in container(variant)["volumeMounts"] if not mount.get("readOnly")}
    named = re.findall(r"(?:HF_HOME|SLIPSTREAM_CACHE|TRITON_CACHE_DIR)=(\S+)", DOCKERFILE)
    assert len(named) == 3
    assert {f"/{path.split('/')[1]}" for path in named} | {"/tmp"} == mounts


@pytest.mark.parametrize("variant", VARIANTS)
def test_pods_on_any_node_can_mount_the_models(variant: str) -> None:
    claims = {one["metadata"]["name"]: one for one in rendered(variant) if one["kind"] == "PersistentVolumeClaim"}
    used = [
        one["persistentVolumeClaim"]["claimName"] for one in pod(variant)["volumes"] if "persistentVolumeClaim" in one
    ]
    assert used == list(claims) == (["asr-models"] if variant == "helm cuda" else [])
    assert all(claim["spec"]["accessModes"] == ["ReadWriteMany"] for claim in claims.values())


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_pod_with_cuda_has_one_gpu(variant: str) -> None:
    cuda = "cuda" in variant
    assert container(variant)["resources"]["limits"].get("nvidia.com/gpu") == (1 if cuda else None)
    assert (options(variant)["device"] == "cuda") is cuda
    assert container(variant)["image"].endswith(":cuda") is cuda


@pytest.mark.parametrize("variant", VARIANTS)
def test_selectors_select_the_pods(variant: str) -> None:
    deployment = of_kind(variant, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        of_kind(variant, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        of_kind(variant, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        of_kind(variant, "Service")["spec"]["selector"],
        *(one["spec"]["selector"]["matchLabels"] for one in rendered(variant) if one["kind"] == "PodMonitor"),
    ]
    for selector in selectors:
        assert selector.items() <= labels
        assert selector


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_autoscaler_owns_the_number_of_pods(variant: str) -> None:
    scalers = [one for one in rendered(variant) if one["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")]
    deployment = of_kind(variant, "Deployment")
    assert ("replicas" in deployment["spec"]) == (not scalers)
    for scaler in scalers:
        assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]


def test_the_autoscaler_reads_the_metric_of_the_adapter() -> None:
    values = yaml.safe_load(
        (DEPLOY / "kubernetes" / "components" / "prometheus-adapter" / "adapter-values.yaml").read_text()
    )
    (rule,) = values["rules"]["custom"]
    for variant in ("kustomize cpu", "helm cpu"):
        (metric,) = of_kind(variant, "HorizontalPodAutoscaler")["spec"]["metrics"]
        assert metric["pods"]["metric"]["name"] == rule["name"]["as"]


def test_both_ways_to_install_have_the_same_container() -> None:
    """Except for what the values and the namespace decide."""
    parts = ["ports", "startupProbe", "readinessProbe", "livenessProbe", "lifecycle", "volumeMounts", "resources"]
    for overlay in OVERLAYS:
        ours, theirs = container(f"kustomize {overlay}"), container(f"helm {overlay}")
        for part in parts:
            assert ours[part] == theirs[part]


def test_helm_has_the_alerts_and_the_dashboard() -> None:
    ours = {one["kind"]: one for one in rendered("kustomize cuda")}
    theirs = {one["kind"]: one for one in rendered("helm cuda")}
    assert ours["PrometheusRule"]["spec"] == theirs["PrometheusRule"]["spec"]
    assert ours["ConfigMap"]["data"] == theirs["ConfigMap"]["data"]
    assert (MONITORING / "dashboard.json").read_text(encoding="utf-8") == ours["ConfigMap"]["data"]["slipstream.json"]


@pytest.mark.parametrize(
    ("values", "message"),
    [({}, "apiKeys.existingSecret"), ({"apiKeys": {"lines": "a"}, "autoscaling": {"kind": "hpa"}}, "keda")],
)
def test_helm_names_what_is_missing(values: dict[str, Any], message: str) -> None:
    library = pytest.importorskip("helm_python", reason="needs the extra deploy-test")
    with pytest.raises(library.HelmError, match=message):
        helm(values)


def test_helm_lint_has_no_errors() -> None:
    library = pytest.importorskip("helm_python", reason="needs the extra deploy-test")
    assert not library.lint(str(DEPLOY / "helm" / "slipstream"))["errors"]
