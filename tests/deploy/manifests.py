"""Renders the manifests of Kubernetes, with kubectl's kustomize and Helm's library, offline."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")

DEPLOY = Path(__file__).parents[2] / "deploy"
MONITORING = DEPLOY / "kubernetes" / "components" / "monitoring"
Manifest = dict[str, Any]

OVERLAYS = ("cpu", "cuda")
VALUES: dict[str, dict[str, Any]] = {
    "smallest": {"apiKeys": {"lines": "desk sha256:00"}},
    "cpu": {"apiKeys": {"existingSecret": "keys"}, "autoscaling": {"kind": "prometheus-adapter"}},
    "cuda": {
        "apiKeys": {"existingSecret": "keys"},
        "autoscaling": {"kind": "keda"},
        "gpu": {"enabled": True},
        "models": {"persistent": True},
        "ingress": {"enabled": True, "tlsSecret": "certificate"},
        "monitoring": {"podMonitor": True, "alerts": True, "dashboard": True},
        "networkPolicy": {"clients": [{"podSelector": {}}]},
        "server": {"drainSeconds": 60, "extraArgs": ["--any-model"], "env": [{"name": "HF_HUB_OFFLINE", "value": "1"}]},
        "traces": {"enabled": True},
    },
}
VARIANTS = [f"kustomize {name}" for name in OVERLAYS] + [f"helm {name}" for name in VALUES]


@functools.cache
def rendered(variant: str) -> list[Manifest]:
    """The manifests of a variant. Skips the test if its tool is not installed."""
    tool, name = variant.split()
    return kustomize(name) if tool == "kustomize" else helm(VALUES[name])


def kustomize(overlay: str) -> list[Manifest]:
    kubectl = shutil.which("kubectl", path=str(Path(sys.executable).parent)) or shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("needs kubectl: the extra deploy-test")
    command = [kubectl, "kustomize", str(DEPLOY / "kubernetes" / "overlays" / overlay)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(run.stdout))


def helm(values: dict[str, Any]) -> list[Manifest]:
    library = pytest.importorskip("helm_python", reason="needs the extra deploy-test")
    with library.Chart.load(str(DEPLOY / "helm" / "slipstream")) as chart:
        files = chart.render(values, name="asr", namespace="speech")
    texts = [text for name, text in files.items() if name.endswith(".yaml")]
    return [manifest for text in texts for manifest in yaml.safe_load_all(text) if manifest]


def of_kind(variant: str, kind: str) -> Manifest:
    (manifest,) = [manifest for manifest in rendered(variant) if manifest["kind"] == kind]
    return manifest


def container(variant: str) -> Manifest:
    (found,) = of_kind(variant, "Deployment")["spec"]["template"]["spec"]["containers"]
    return dict(found)


def alerts() -> Manifest:
    return dict(yaml.safe_load((MONITORING / "alerts.yaml").read_text(encoding="utf-8")))
