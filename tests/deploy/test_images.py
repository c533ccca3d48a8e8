"""The Dockerfile: linted, and against the package that it installs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from slipstream.connections.limits import Limits

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
TEXT = DOCKERFILE.read_text(encoding="utf-8")


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("needs hadolint: the extra deploy-test")
    run = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "")


def test_the_images_install_extras_that_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    installed = {extra for group in re.findall(r'"\.\[([\w,]+)\]"', TEXT) for extra in group.split(",")}
    assert {"server", "torch"} < installed <= set(project["optional-dependencies"])


def test_the_build_copies_files_that_exist() -> None:
    for line in re.findall(r"^COPY (?!--from)(.*) \S+$", TEXT, re.MULTILINE):
        assert all((ROOT / name).exists() for name in line.split())


def test_every_stage_exists_before_it_is_used() -> None:
    known = {"${PYTHON}", "${FLAVOUR}", "model"}  # arguments, and the build context of the stage `baked`
    for line in TEXT.splitlines():
        if match := re.match(r"FROM (\S+)(?: AS (\S+))?|COPY --from=(\S+)", line):
            assert (match[1] or match[3]) in known
            known.add(match[2] or "")
    assert {"cpu", "cuda", "baked"} < known


def test_no_image_runs_as_root() -> None:
    """Each stage that can be run ends as a user, by number, or takes over the stage before it."""
    stages = re.split(r"^FROM ", TEXT, flags=re.MULTILINE)[1:]
    users = {
        stage.split("\n", 1)[0].split(" AS ")[-1]: re.findall(r"^USER (\S+)", stage, re.MULTILINE) for stage in stages
    }
    assert users["runtime"][-1] == users["cuda"][-1] == "10001"
    assert not users["cpu"] + users["baked"]


def test_stopping_a_container_leaves_time_to_drain() -> None:
    (seconds,) = re.findall(r"`docker stop --time (\d+)`", TEXT)
    assert int(seconds) > Limits().drain_seconds
