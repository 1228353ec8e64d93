"""An import holds tensors, not files."""

from __future__ import annotations

import json
import subprocess
import sys

import torch

from . import public_files, public_layouts

MEASURED = """
import json, re, sys
from pathlib import Path
from medvl.contracts.checkpoint import parse_checkpoint
from medvl.export.importing.importer import import_checkpoint
from medvl.export.importing.options import Sources
import medvl.export.importing.plan, medvl.export.importing.writing, medvl.export.check_tensors
import torch._dynamo  # transformers imports it when a model is first built

def status(field):
    return int(re.search(field + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

spec = parse_checkpoint(Path(sys.argv[1]).read_text())
medvl.export.importing.plan.Modules.shapes(spec)
Path("/proc/self/clear_refs").write_text("5")  # begin a new peak
before = status("VmRSS")
import_checkpoint(Sources(*(Path(a) for a in sys.argv[2:5])), spec, Path(sys.argv[5]), lambda _: None)
print(json.dumps(status("VmHWM") - before))
"""


def test_memory_stays_below_the_largest_part(tmp_path):
    """Measured above the imports, with a language model of 0.3 GB in one file and SAM2.1 tiny as a pickle."""
    sources = public_files.write_all(tmp_path / "disk")
    qwen = public_layouts.Qwen(public_files.WORDS + 3, 1024, 4096, 5, 8, 4)
    model = {n: t for n, t in public_files.MODEL.items() if "vision_tower" in n} | qwen.layout()
    projector = public_layouts.mixer((8, 16), (1, 16), ((6, 4), (3, 4)), 1024)
    model |= public_layouts.under("model.mm_projector.", projector)
    for file in sources.med3dvlm.glob("model*"):
        file.unlink()
    public_layouts.write_sparse(sources.med3dvlm / "model.safetensors", model)
    (sources.med3dvlm / "config.json").write_text(json.dumps(qwen.config() | {"eos_token_id": public_files.WORDS}))
    sam2 = public_layouts.HIERA["sam2.1_hiera_t"].layout()
    torch.save({"model": public_layouts.values(sam2, 0)}, sources.sam2)
    torch.save(public_layouts.values(public_layouts.seg_projector(1024, 256), 0), sources.seg_projector)
    fields = public_files.spec().model_dump()
    fields["language"] |= {"hidden_size": 1024}
    fields["segmentation"] |= {"overrides": {}, "side": 512}
    (tmp_path / "spec.json").write_text(json.dumps(fields))
    arguments = [tmp_path / "spec.json", sources.med3dvlm, sources.sam2, sources.seg_projector, tmp_path / "out"]
    command = [sys.executable, "-c", MEASURED, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    largest = (tmp_path / "out" / "llm" / "model.safetensors").stat().st_size
    assert largest > 300e6
    assert 0 < json.loads(done.stdout) < largest
