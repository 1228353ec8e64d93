"""A real PACS on both sides: Orthanc sends the series and stores the results."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Iterator

import pytest

from medvl.pacs.config import Destination

ORTHANC = shutil.which("Orthanc")
pytestmark = pytest.mark.skipif(ORTHANC is None, reason="Orthanc is not installed: apt-get install orthanc")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Orthanc:
    """A running server; ``dicom`` is where it takes C-STORE."""

    def __init__(self, folder):
        self._http, dicom = free_port(), free_port()
        self.dicom = Destination("ORTHANC", "127.0.0.1", dicom)
        configuration = {
            "StorageDirectory": str(folder),
            "IndexDirectory": str(folder),
            "HttpPort": self._http,
            "DicomPort": dicom,
            "DicomAet": "ORTHANC",
            "AuthenticationEnabled": False,
            "RemoteAccessAllowed": False,
            "DicomAlwaysAllowStore": True,
            "OverwriteInstances": False,
        }
        path = folder / "orthanc.json"
        path.write_text(json.dumps(configuration))
        self._process = subprocess.Popen([ORTHANC, path], stderr=subprocess.PIPE, text=True, env={"TCP_NODELAY": "1"})
        for line in self._process.stderr:
            if "Orthanc has started" in line:
                return
        raise RuntimeError("Orthanc did not start")

    def call(self, path, body=None, method=None):
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self._http}{path}", data, method=method)
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.loads(response.read() or "null")

    def stop(self):
        self._process.terminate()
        self._process.communicate(timeout=30)


@pytest.fixture
def orthanc(tmp_path) -> Iterator[Orthanc]:
    folder = tmp_path / "orthanc"
    folder.mkdir()
    server = Orthanc(folder)
    yield server
    server.stop()


async def test_orthanc_sends_a_series_and_stores_its_results_once(site, series, orthanc, tmp_path):
    """Series to gateway and back, twice from empty spools: three documents more in the same study."""
    for number, ds in enumerate(series):
        path = tmp_path / f"{number}.dcm"
        ds.save_as(path, enforce_file_format=True)
        await asyncio.to_thread(orthanc.call, "/instances", path.read_bytes())
    [stored] = orthanc.call("/series")
    for attempt in ("first", "second"):
        async with site.gateway(destination=orthanc.dicom, spool=tmp_path / attempt) as gateway:
            modality = {"AET": "MEDVL", "Host": "127.0.0.1", "Port": gateway.port}
            await asyncio.to_thread(orthanc.call, "/modalities/medvl", modality, "PUT")
            with site.sending:
                await asyncio.to_thread(orthanc.call, "/modalities/medvl/store", stored.encode())
            assert await site.outcomes.get()
    [study] = orthanc.call("/studies")
    stored = {}
    for one in (orthanc.call(f"/series/{s}") for s in orthanc.call(f"/studies/{study}")["Series"]):
        stored[one["MainDicomTags"]["SeriesNumber"]] = one["Instances"]
    numbers = {"2": len(series), "9000": 1, "9001": 1, "9002": 1}
    assert {number: len(instances) for number, instances in stored.items()} == numbers
    seg, sr, measurements = (
        orthanc.call(f"/instances/{stored[number][0]}/simplified-tags") for number in ("9000", "9001", "9002")
    )
    named = ["Finding 1: The liver shows a 25 mm mass", "Finding 2: The spleen shows a 5 mm cyst", "liver"]
    assert [segment["SegmentLabel"] for segment in seg["SegmentSequence"]] == named
    said = json.dumps(sr["ContentSequence"])
    assert "The spleen shows a 5 mm cyst (segment 2)." in said
    assert "[SEG]" not in said
    [group, *_] = [i["ContentSequence"] for i in measurements["ContentSequence"] if i["ValueType"] == "CONTAINER"]
    identified = [item["TextValue"] for one in group if "ContentSequence" in one for item in one["ContentSequence"][:1]]
    assert identified == named
