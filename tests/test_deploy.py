"""Tests that the image and the manifest for a cluster agree with the project: versions, packages and commands."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from pipeline.cli.main import app

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()


@pytest.fixture(scope="module")
def job() -> Any:
    return yaml.safe_load((ROOT / "deploy/rayjob.yaml").read_text())["spec"]


def test_the_manifest_names_the_tested_version_of_ray(job: Any) -> None:
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert job["rayClusterSpec"]["rayVersion"] == pinned[1]


def test_all_nodes_run_one_image_with_one_set_of_secrets(job: Any) -> None:
    groups = [job["rayClusterSpec"]["headGroupSpec"], *job["rayClusterSpec"]["workerGroupSpecs"]]
    pods = [group["template"]["spec"] for group in groups]
    containers = [container for pod in pods for container in pod["containers"]]
    assert len(containers) == len(groups) == 2
    assert len({container["image"] for container in containers}) == 1
    assert containers[0]["envFrom"] == containers[1]["envFrom"]
    # Workers fetch what the driver names, and neither is root: the user that the image makes.
    user = re.search(r"useradd .*--uid (\d+)", DOCKERFILE)
    assert user is not None
    assert {pod["securityContext"]["runAsUser"] for pod in pods} == {int(user[1])}


def test_the_manifests_command_is_one_that_the_program_takes(job: Any) -> None:
    program, name, *arguments = shlex.split(job["entrypoint"])
    command = typer.main.get_group(app).commands[name]
    values = command.make_context(name, arguments).params
    assert program == "vdot-data"
    assert values["address"] == "auto"


def test_the_image_has_what_kuberays_probes_run() -> None:
    """KubeRay up to 1.5 checks containers with `wget ... | grep success`. Without wget, which slim images leave out, no
    node becomes ready."""
    installed = re.findall(r"apt-get install (?:-\S+ )*(\S+)", DOCKERFILE)
    assert "wget" in installed


def test_the_image_holds_every_package() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
        "packages"
    ]
    copied = {
        words[1] for line in DOCKERFILE.splitlines() if (words := line.split())[:1] == ["COPY"] and len(words) == 3
    }
    assert copied == {*packages}
    ignored = (ROOT / "deploy/Dockerfile.dockerignore").read_text().splitlines()
    assert {f"!{package}" for package in packages} <= {*ignored}
