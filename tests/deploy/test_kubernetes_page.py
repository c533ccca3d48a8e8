"""The page about Kubernetes: its commands are what the other tests check, and its own overlay renders."""

from __future__ import annotations

import itertools
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.deploy.manifests import DEPLOY, OVERLAYS, Manifest, helm, kustomize, yaml

PAGE = (DEPLOY.parent / "docs" / "guides" / "kubernetes.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
KUBERNETES = "1.34"
CUSTOM = {"PodMonitor", "PrometheusRule", "ScaledObject"}


def commands(*begin: str) -> list[list[str]]:
    """The words of the page's commands that begin like this."""
    lines = [line for language, block in BLOCKS if language == "sh" for line in block.replace("\\\n", " ").splitlines()]
    found = [words for line in lines if (words := shlex.split(line, comments=True))[: len(begin)] == list(begin)]
    assert found
    return found


def check(manifests: list[Manifest]) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="needs the extra deploy-test")
    for manifest in manifests:
        if manifest["kind"] not in CUSTOM:
            validator.validate(manifest, KUBERNETES, strict=True)


def test_the_images_that_it_builds_are_stages_of_the_dockerfile() -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    for words in commands("docker", "build"):
        options = dict(itertools.pairwise(words))
        assert options["-f"] == "deploy/Dockerfile"
        assert re.search(rf"^FROM \S+ AS {options.get('--target', 'cpu')}$", text, re.MULTILINE)
        assert f"ARG {options.get('--build-arg', 'FLAVOUR').split('=')[0]}" in text
        assert f"COPY --from={options.get('--build-context', 'model').split('=')[0]} " in text


def test_the_overlays_that_it_applies_are_the_tested_ones() -> None:
    folders = [words[3] for words in commands("kubectl", "apply", "-k")]
    assert folders == [f"deploy/kubernetes/overlays/{overlay}" for overlay in OVERLAYS]


def test_the_secret_that_it_creates_is_the_one_of_the_pods() -> None:
    [words] = commands("kubectl", "create", "secret", "generic")
    pod = yaml.safe_load((DEPLOY / "kubernetes" / "base" / "deployment.yaml").read_text(encoding="utf-8"))
    volumes = pod["spec"]["template"]["spec"]["volumes"]
    assert [volume["secret"]["secretName"] for volume in volumes if "secret" in volume] == [words[4]]
    assert words[5:] == ["--from-file=keys"]


def test_its_own_overlay_renders(tmp_path: Path) -> None:
    [overlay] = [block for language, block in BLOCKS if language == "yaml"]
    shutil.copytree(DEPLOY / "kubernetes", tmp_path / "kubernetes")
    folder = tmp_path / "kubernetes" / "overlays" / "own"
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(overlay, encoding="utf-8")
    shutil.copy(DEPLOY / "kubernetes" / "overlays" / "cuda" / "gpu.yaml", folder)
    manifests = kustomize(str(folder))
    check(manifests)
    [pod] = [one["spec"]["template"]["spec"] for one in manifests if one["kind"] == "Deployment"]
    assert [one["image"] for one in pod["containers"]] == ["registry.example.org/slipstream:cuda"]


def test_helm_installs_with_the_values_that_it_sets() -> None:
    [words] = commands("helm", "install")
    assert words[3] == "deploy/helm/slipstream"
    defaults = yaml.safe_load((DEPLOY / "helm" / "slipstream" / "values.yaml").read_text(encoding="utf-8"))
    values: dict[str, Any] = {}
    for option, setting in zip(words[4::2], words[5::2], strict=True):
        name, _, text = setting.partition("=")
        value = "desk sha256:00\n" if option == "--set-file" else yaml.safe_load(text)
        *path, last = name.split(".")
        of, target = defaults, values
        for part in path:
            of, target = of[part], target.setdefault(part, {})
        assert isinstance(value, type(of[last])), setting
        target[last] = value
    manifests = helm(values)
    check(manifests)
    assert {"ScaledObject", "PodMonitor", "PrometheusRule", "Secret"} <= {one["kind"] for one in manifests}
