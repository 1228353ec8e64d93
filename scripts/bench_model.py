"""The networks of the phantom checkpoint in one process, without any server: the other side of ``bench.py``.

Prints JSON: samples in milliseconds by step, each over a fresh encoding, threads as the machine has them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from medvl.export.presets import PHANTOM, resolve_checkpoint
from medvl.imaging.geometry import Geometry
from medvl.imaging.volume import Volume
from medvl.network.model import ReferenceModel
from medvl.network.prompts import POSITIVE, ObjectPrompt


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volume", type=Path, required=True, help="int16 HU as .npy, canonical axes")
    parser.add_argument("--spacing-mm", required=True, help="slice, row, column")
    parser.add_argument("--question", required=True)
    parser.add_argument("--click", required=True, help="slice, row, column")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    hu = np.load(arguments.volume)
    dz, dy, dx = map(float, arguments.spacing_mm.split(","))
    depth, rows, columns = hu.shape
    grid = Geometry((depth, rows, columns), (dz, dy, dx), (0.0, 0.0, 0.0), ((0, 0, 1), (0, 1, 0), (1, 0, 0)))
    volume = Volume(hu, grid)
    number, row, column = map(int, arguments.click.split(","))
    model = ReferenceModel.load(resolve_checkpoint(PHANTOM))
    samples: dict[str, list[float]] = defaultdict(list)
    for index in range(-1, arguments.rounds):
        for name, ms in one_round(model, volume, arguments.question, (number, row, column)).items():
            if index >= 0:
                samples[name].append(ms)
    json.dump(samples, sys.stdout)
    return 0


def one_round(model: ReferenceModel, volume: Volume, question: str, click: tuple[int, int, int]) -> dict[str, float]:
    """Return one sample of every step, in milliseconds."""
    language = model.checkpoint.language
    prompt = language.prompts.for_question(question, volume.geometry.extent_mm)
    begun_s = time.perf_counter()
    tokens = model.encode(volume).tokens
    encode_ms = (time.perf_counter() - begun_s) * 1000
    begun_s = time.perf_counter()
    model.language.answer(tokens, prompt, 1)
    first_ms = (time.perf_counter() - begun_s) * 1000
    begun_s = time.perf_counter()
    answer = model.language.answer(tokens, prompt, language.max_answer_tokens)
    token_ms = ((time.perf_counter() - begun_s) * 1000 - first_ms) / max(len(answer.token_ids) - 1, 1)
    number, row, column = click
    points = {number: (model.point(volume, row, column, POSITIVE),)}
    begun_s = time.perf_counter()
    model.segment(volume, ObjectPrompt(0, points))
    mask_ms = (time.perf_counter() - begun_s) * 1000
    return {"encode": encode_ms, "first_token": first_ms, "token": token_ms, "whole_mask": mask_ms}


if __name__ == "__main__":
    sys.exit(main())
