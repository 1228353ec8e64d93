"""The orchestrator's image: its environment, made as the Dockerfile makes it, and nothing else."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from .dockerfile import read, run
from .environment import check_bill_of_materials, command, make_environment

pytestmark = [pytest.mark.e2e, pytest.mark.heavy, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the image has as ``/opt/medvl``."""
    return make_environment("orchestrator", wheel, tmp_path_factory.mktemp("medvl"))


def test_it_explains_itself(environment: Path):
    done = run(*command(environment, read("orchestrator").final.one("ENTRYPOINT")), "--help")
    assert done.returncode == 0
    assert "--config" in done.stdout


def test_it_serves_and_says_that_triton_is_missing(environment: Path, tmp_path: Path):
    """It listens without Triton, and its health check keeps calls away until there is one."""
    config = tmp_path / "orchestrator.json"
    config.write_text(json.dumps({"listen": "127.0.0.1:0", "triton": "127.0.0.1:1", "metrics_port": 0}))
    final = read("orchestrator").final
    entry = command(environment, final.one("ENTRYPOINT"))
    (option, _) = final.one("CMD").arguments
    process = subprocess.Popen([*entry, option, config], stderr=subprocess.PIPE, text=True, env={}, cwd="/")
    try:
        events = (json.loads(line) for line in process.stderr)
        port = next(e["port"] for e in events if e["event"] == "listening")
        python, script, _, service = command(environment, final.one("HEALTHCHECK"))
        done = run(python, script, f"127.0.0.1:{port}", service)
        assert (done.returncode, done.stdout.strip()) == (1, "NOT_SERVING")
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.stderr.close()


def test_nothing_can_be_installed_in_it(environment: Path):
    done = run(environment / "bin" / "python", "-m", "pip", "--version")
    assert "No module named pip" in done.stderr


def test_the_repository_can_be_proven_in_it(environment: Path, tmp_path: Path):
    """What the chart's init container runs in Triton's image, which holds these packages and more."""
    done = run(environment / "bin" / "medvl-export", "verify", tmp_path)
    assert done.returncode == 1
    assert "manifest" in done.stderr


def test_its_bill_of_materials_names_every_package(tools: Path, environment: Path, tmp_path: Path):
    check_bill_of_materials("orchestrator", tools, environment, tmp_path / "sbom.cdx.json")
