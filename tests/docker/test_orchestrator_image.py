"""The orchestrator's image: its environment, made as the Dockerfile makes it, and nothing else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from .dockerfile import FOLDER, ROOT, Instruction, read, run

LOCKS = ROOT / "requirements"

pytestmark = [pytest.mark.e2e, pytest.mark.heavy, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the build has as ``/tools/venv``."""
    folder = tmp_path_factory.mktemp("tools")
    venv.create(folder, with_pip=False)
    install(folder, "--only-binary=:all:", "--require-hashes", "-r", LOCKS / "lock-image-tools.txt")
    return folder


@pytest.fixture(scope="module")
def environment(tools: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the image has as ``/opt/medvl``."""
    folder, wheels = tmp_path_factory.mktemp("medvl"), tmp_path_factory.mktemp("wheel")
    venv.create(folder, with_pip=False)
    install(folder, "--only-binary=:all:", "--require-hashes", "-r", LOCKS / "lock-orchestrator.txt")
    pip(tools, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, ROOT)
    install(folder, *wheels.glob("*.whl"))
    return folder


def pip(folder: Path, *arguments: str | Path) -> None:
    """Run pip on an environment that has none."""
    subprocess.run([sys.executable, "-m", "pip", "--python", folder / "bin" / "python", *arguments], check=True)


def install(folder: Path, *arguments: str | Path) -> None:
    pip(folder, "install", "--no-deps", *arguments)


def command(environment: Path, instruction: Instruction) -> list[str]:
    """A command of the Dockerfile, its files where they are here."""
    program, *arguments = instruction.arguments
    return [str(environment / "bin" / program), *(a.replace("/opt/medvl", str(FOLDER)) for a in arguments)]


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
    """The Dockerfile's own command, with versions."""
    (stage,) = [s for s in read("orchestrator").stages if s.name == "sbom"]
    places = {"/tools/venv": tools, "/opt/medvl": environment, "/sbom.cdx.json": tmp_path / "sbom.cdx.json"}
    words = stage.one("RUN").rest.split()
    for place, here in places.items():
        words = [word.replace(place, str(here)) for word in words]
    done = run(*words)
    assert done.returncode == 0, done.stderr
    components = json.loads((tmp_path / "sbom.cdx.json").read_text("utf-8"))["components"]
    found = {re.sub(r"[-_.]+", "-", c["name"]).lower(): c["version"] for c in components}
    pins = re.findall(r"^(\S+)==(\S+) ", (LOCKS / "lock-orchestrator.txt").read_text("utf-8"), re.MULTILINE)
    assert dict(pins).items() <= found.items()
    assert found.keys() - dict(pins).keys() == {"medvl-sam2"}
