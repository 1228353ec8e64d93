"""The PACS gateway's image: its environment, made as the Dockerfile makes it, and nothing else."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from .dockerfile import read, run
from .environment import check_bill_of_materials, command, make_environment

pytestmark = [pytest.mark.e2e, pytest.mark.heavy, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the image has as ``/opt/medvl``."""
    return make_environment("gateway", wheel, tmp_path_factory.mktemp("medvl"))


def test_it_explains_itself(environment: Path):
    done = run(*command(environment, read("gateway").final.one("ENTRYPOINT")), "--help")
    assert done.returncode == 0
    assert "--destination" in done.stdout


def test_it_answers_c_echo_until_it_is_told_to_stop(environment: Path, tmp_path: Path):
    """Without a service and a PACS; decoders of every compression that the documents name are there."""
    final, spool = read("gateway").final, tmp_path / "spool"
    entry = [word.replace("/spool", str(spool)) for word in command(environment, final.one("ENTRYPOINT"))]
    options = ["--host", "127.0.0.1", "--port", "0", "--endpoint", "127.0.0.1:1", "--destination", "PACS@127.0.0.1:1"]
    process = subprocess.Popen([*entry, *options], stderr=subprocess.PIPE, text=True, env={}, cwd="/")
    try:
        port = process.stderr.readline().split()[-1]
        python, script, _, title = command(environment, final.one("HEALTHCHECK"))
        done = run(python, script, f"127.0.0.1:{port}", title)
        assert (done.returncode, done.stdout.strip()) == (0, "SUCCESS")
        assert run(python, script, f"127.0.0.1:{port}", "ANOTHER").returncode == 1
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.stderr.close()


def test_it_takes_what_the_tested_gateway_takes(environment: Path):
    """Decoders decide which transfer syntaxes are taken."""
    script = "from medvl.pacs.dimse import _transfer_syntaxes; print(*sorted(_transfer_syntaxes()))"
    from medvl.pacs.dimse import _transfer_syntaxes

    assert run(environment / "bin" / "python", "-c", script).stdout.split() == sorted(_transfer_syntaxes())


def test_nothing_can_be_installed_in_it(environment: Path):
    done = run(environment / "bin" / "python", "-m", "pip", "--version")
    assert "No module named pip" in done.stderr


def test_its_bill_of_materials_names_every_package(tools: Path, environment: Path, tmp_path: Path):
    check_bill_of_materials("gateway", tools, environment, tmp_path / "sbom.cdx.json")
