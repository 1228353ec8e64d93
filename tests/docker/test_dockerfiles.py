"""What the images promise, read from their Dockerfiles; none was built here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import helm_python as helm
import pytest
import yaml

from .dockerfile import FOLDER, NAMES, ROOT, Dockerfile, read

PROFILES = {"triton-cpu": "none", "triton-gpu": "whole"}
"""Which of the chart's GPU profiles an image of Triton is for."""

PACS = {"enabled": True, "destination": "PACS@10.0.0.7:104", "senders": [{"ipBlock": {"cidr": "10.0.0.7/32"}}]}


@pytest.fixture(params=NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture
def dockerfile(name: str) -> Dockerfile:
    return read(name)


@pytest.fixture(scope="module")
def chart() -> Iterator[helm.Chart]:
    with helm.Chart.load(ROOT / "helm" / "medvl") as chart:
        yield chart


@pytest.fixture
def pod(name: str, chart: helm.Chart) -> dict[str, Any]:
    """The pod in which the chart runs an image, under the profile that the image is for."""
    component = {"gateway": "pacs"}.get(name, name.partition("-")[0])
    values = {"gpu": {"profile": PROFILES.get(name, "none")}, "pacs": PACS}
    (text,) = [t for n, t in chart.render(values, name="demo").items() if n.endswith(f"/{component}.yaml")]
    (workload,) = [d for d in yaml.safe_load_all(text) if d["kind"] in {"Deployment", "StatefulSet"}]
    return workload["spec"]["template"]["spec"]


def test_every_dockerfile_is_one_of_these():
    assert {p.name for p in FOLDER.glob("*Dockerfile*")} == {f"{name}.Dockerfile" for name in NAMES}


def test_hadolint_finds_nothing(name: str):
    """At its lowest threshold; the exceptions stand with their reasons in the files."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    hadolint = shutil.which("hadolint", path=path)
    assert hadolint, "hadolint is part of the dev extra: run make setup"
    command = [hadolint, "--failure-threshold", "style", FOLDER / f"{name}.Dockerfile"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_bases_are_named_by_tag_and_digest(dockerfile: Dockerfile):
    """The tag says what it is, the digest which; without a digest nothing is built."""
    (image,) = [a for a in dockerfile.arguments if a.endswith("_IMAGE")]
    digest = image.replace("_IMAGE", "_DIGEST")
    assert re.fullmatch(r"[a-z0-9.]+/[a-z0-9/-]+:[a-z0-9.-]+", dockerfile.arguments[image])
    assert dockerfile.arguments[digest] is None
    own = {stage.name for stage in dockerfile.stages if stage.name}
    assert {stage.base for stage in dockerfile.stages} - own == {f"${{{image}}}@${{{digest}}}"}


def test_it_runs_as_nobody_in_particular(dockerfile: Dockerfile, pod: dict[str, Any]):
    """By number, as Kubernetes can check it, and by the chart's number; nothing belongs to that user."""
    context = pod["securityContext"]
    assert dockerfile.final.one("USER").rest == f"{context['runAsUser']}:{context['runAsGroup']}"
    assert not [i for i in dockerfile.final.all("COPY") if "--chown" in i.rest]


def test_it_starts_as_the_chart_starts_it(name: str, dockerfile: Dockerfile, pod: dict[str, Any]):
    """So that an image that is tried alone behaves as it will in a cluster."""
    (container,) = pod["containers"]
    final = dockerfile.final
    if name == "gateway":
        # Its other options are a site's own.
        started, options = container["command"], final.all("CMD")
        assert not options
    else:
        started, options = [*container["command"], *container.get("args", [])], final.one("CMD").arguments
    assert final.one("ENTRYPOINT").arguments + options == started
    assert final.one("EXPOSE").rest.split() == [str(p["containerPort"]) for p in container["ports"]]


def test_health_is_asked_as_the_chart_asks(dockerfile: Dockerfile, pod: dict[str, Any]):
    probe = pod["containers"][0]["readinessProbe"]
    command = dockerfile.final.one("HEALTHCHECK").arguments
    assert f"docker/{Path(command[1]).name} {command[1]}" in [i.rest for i in dockerfile.final.all("COPY")]
    if grpc := probe.get("grpc"):
        assert Path(command[1]).name == "healthcheck.py"
        assert command[2:] == [f"127.0.0.1:{grpc['port']}", *filter(None, [grpc.get("service")])]
    else:
        assert command == probe["exec"]["command"]


def test_nothing_can_be_installed_where_it_runs(dockerfile: Dockerfile):
    """The last thing that the final stage runs removes pip, its bundled copy, and the system's package manager."""
    last = dockerfile.final.all("RUN")[-1].rest
    for removed in ("pip", "ensurepip", "'apt*' -delete", "'dpkg*' -delete"):
        assert removed in last
    (environment,) = [s for s in dockerfile.stages if s.name == "environment"]
    runs = [i.rest for i in environment.all("RUN")]
    assert "--without-pip" in runs[0] or runs[-1].endswith("-m pip uninstall --yes --no-cache-dir pip")


def test_every_package_comes_from_a_lock_with_its_hash(dockerfile: Dockerfile):
    runs = [i.rest for stage in dockerfile.stages for i in stage.all("RUN")]
    installs = [part for run in runs for part in run.split("&&") if " install " in part and "apt-get" not in part]
    assert installs
    for install in installs:
        assert "--no-deps" in install
        assert "--require-hashes" in install or install.strip().endswith("/wheel/*.whl")


def test_it_carries_its_bill_of_materials(dockerfile: Dockerfile):
    """Made of the environment that the image gets."""
    (sbom,) = [s for s in dockerfile.stages if s.name == "sbom"]
    assert "--from=environment /opt/medvl /opt/medvl" in sbom.one("COPY").rest
    assert "cyclonedx-py environment" in sbom.one("RUN").rest
    assert "--from=sbom /sbom.cdx.json /opt/medvl/sbom.cdx.json" in [i.rest for i in dockerfile.final.all("COPY")]


def test_what_is_copied_reaches_the_builder(dockerfile: Dockerfile):
    """It exists, and .dockerignore lets it through; the folder of this repository holds much else."""
    rules = [line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if not line.startswith("#")]
    assert rules[0] == "*"
    allowed = [rule[1:] for rule in rules if rule.startswith("!")]
    copies = [i.rest.split() for s in dockerfile.stages for i in s.all("COPY") if "--from=" not in i.rest]
    for source in (word for *words, _ in copies for word in words if not word.startswith("--")):
        assert (ROOT / source).exists()
        assert any(fnmatch(source.split("/")[0], rule) for rule in allowed)
