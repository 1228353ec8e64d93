"""The commands that images start with, run as they stand in the Dockerfiles, outside of any container."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from pynetdicom import AE
from pynetdicom.sop_class import Verification

from medvl.contracts.paths import data_folder
from medvl.pacs.dimse import StorageScp
from medvl.pacs.spool import Spool
from medvl.runtime.ports import free_ports
from medvl.runtime.triton_home import TritonHome

from .dockerfile import FOLDER, read, run

HEALTHCHECK = FOLDER / "healthcheck.py"
C_ECHO = FOLDER / "dicom_echo.py"


@contextmanager
def serving(status: int) -> Iterator[str]:
    """A gRPC server whose health service says so of ``a.Service``; yields its address."""
    server, servicer = grpc.server(ThreadPoolExecutor(1)), health.HealthServicer()
    servicer.set("a.Service", status)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize(("status", "expected"), [("SERVING", 0), ("NOT_SERVING", 1)])
def test_the_health_check_repeats_what_the_server_says(status: str, expected: int):
    with serving(health_pb2.HealthCheckResponse.ServingStatus.Value(status)) as address:
        done = run(sys.executable, HEALTHCHECK, address, "a.Service")
        assert (done.returncode, done.stdout.strip()) == (expected, status)
        assert run(sys.executable, HEALTHCHECK, address, "another.Service").returncode == 1


def test_the_health_check_fails_where_nobody_listens():
    done = run(sys.executable, HEALTHCHECK, "127.0.0.1:1")
    assert (done.returncode, done.stderr.strip()) == (1, "UNAVAILABLE")


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[str]:
    """Address of what the PACS gateway listens with, under the title TESTED."""
    spool = Spool(tmp_path / "spool")
    scp = StorageScp("TESTED", "127.0.0.1", 0, spool)
    yield f"127.0.0.1:{scp.port}"
    scp.stop()
    spool.close()


def test_the_gateway_is_well_when_it_answers_to_its_title(gateway: str):
    done = run(sys.executable, C_ECHO, gateway, "TESTED")
    assert (done.returncode, done.stdout.strip()) == (0, "SUCCESS")
    done = run(sys.executable, C_ECHO, gateway, "ANOTHER")
    assert (done.returncode, done.stderr.strip()) == (1, "REJECTED")


def test_a_gateway_that_is_busy_is_well(gateway: str):
    """Restarting it would abort what it is busy with."""
    entity = AE("SENDER")
    entity.add_requested_context(Verification)
    host, _, port = gateway.partition(":")
    associations = [entity.associate(host, int(port), ae_title="TESTED") for _ in range(entity.maximum_associations)]
    try:
        assert all(a.is_established for a in associations)
        done = run(sys.executable, C_ECHO, gateway, "TESTED")
        assert (done.returncode, done.stdout.strip()) == (0, "BUSY")
    finally:
        for association in associations:
            association.release()


def test_asking_leaves_no_association_behind(gateway: str):
    """Probes come for ever; the gateway has few associations to give."""
    for _ in range(12):
        assert run(sys.executable, C_ECHO, gateway, "TESTED").stdout.strip() == "SUCCESS"


def test_a_gateway_that_is_not_there_is_not_well():
    done = run(sys.executable, C_ECHO, "127.0.0.1:1", "TESTED")
    assert (done.returncode, done.stderr.strip()) == (1, "ConnectionRefusedError")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "ValueError"),
        (b"", "ConnectionError"),
        (bytes([7, 0, 0, 0, 0, 4, 0, 0, 2, 0]), "ABORTED"),
    ],
    ids=["http", "nothing", "abort"],
)
def test_what_speaks_no_dicom_is_no_gateway(answer: bytes, said: str):
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        served = pool.submit(serve)
        done = run(sys.executable, C_ECHO, f"127.0.0.1:{listener.getsockname()[1]}", "TESTED")
        served.result()
    assert (done.returncode, done.stderr.strip()) == (1, said)


def embedded_server() -> dict[str, str]:
    """Variables that stand for the CPU image's: where the server is, and this tree's packages."""
    assert "MEDVL_HOME=/opt/medvl" in read("triton-cpu").final.one("ENV").rest
    return {"MEDVL_HOME": str(data_folder()), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def test_the_server_knows_every_option_that_the_image_gives(triton_home: TritonHome):
    """``tritonserver`` of the CPU image, which finds the embedded server's folders by itself."""
    assert (FOLDER / "tritonserver.py").read_text("utf-8").startswith("#!/opt/medvl/bin/python\n")
    done = run(sys.executable, FOLDER / "tritonserver.py", "--help", **embedded_server())
    for name in ("triton-cpu", "triton-gpu"):
        final = read(name).final
        assert final.one("ENTRYPOINT").arguments == ["tritonserver"]
        for option in final.one("CMD").arguments:
            assert f"{option.split('=')[0]} <" in done.stderr


def test_a_server_that_cannot_be_written_is_told_in_a_line(tmp_path: Path):
    (tmp_path / "file").touch()
    done = run(sys.executable, FOLDER / "tritonserver.py", **embedded_server() | {"MEDVL_HOME": str(tmp_path / "file")})
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert line.startswith("The Triton server cannot be written")


@pytest.mark.e2e
@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_the_cpu_image_serves_a_repository(triton_home: TritonHome, phantom_repository: Path, tmp_path: Path):
    """Every model loads under the chart's flags; the health check sees it; SIGTERM ends it."""
    (port,), final = free_ports(1), read("triton-cpu").final
    options = [
        o.replace("/store/repository", str(phantom_repository)).replace("8001", str(port))
        for o in final.one("CMD").arguments
    ]
    environment = {"PATH": os.defpath, "HOME": str(tmp_path)} | embedded_server()
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, FOLDER / "tritonserver.py", *options]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd="/")
    try:
        channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        # Triton listens when every model is loaded.
        grpc.channel_ready_future(channel).result(timeout=500)
        channel.close()
        done = run(sys.executable, HEALTHCHECK, f"127.0.0.1:{port}")
        assert (done.returncode, done.stdout.strip()) == (0, "SERVING")
        process.terminate()
        assert process.wait(60) == 0
    except BaseException:
        print((tmp_path / "log").read_text()[-3000:])
        raise
    finally:
        process.kill()
        process.wait()
