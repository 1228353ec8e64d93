"""Which tensor of which file becomes which tensor of the checkpoint, before anything is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch

from medvl.contracts.checkpoint import LANGUAGE_FOLDER, Checkpoint
from medvl.contracts.errors import CheckpointError
from medvl.export.check_tensors import language_shapes, tied_weights
from medvl.export.importing.language_folder import read_config
from medvl.export.importing.layouts import GIVEN_BY, LORA_A, LORA_B, SAM_2_1_ONLY, Option, place
from medvl.export.importing.lora import Scale, merge, pair_lines
from medvl.export.importing.options import Sources
from medvl.export.importing.sources import StoredTensor, read_source
from medvl.export.tensor_files import TensorHeader, tensor_lines
from medvl.network.modules import Modules

_EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True)
class Plan:
    """Everything that a checkpoint needs, still in its files."""

    parts: Mapping[str, Mapping[str, StoredTensor]]
    """Tensors by part and by the contract's names; the language model's under the name of its folder."""
    config: Any
    """The language model's configuration."""
    left: tuple[StoredTensor, ...]
    """Tensors that the user left out."""
    notes: tuple[str, ...]
    """What was done to the weights, a sentence each."""


def make_plan(sources: Sources, spec: Checkpoint) -> Plan:
    """Find a place for every tensor, and a tensor for every place.

    Raises
    ------
    CheckpointError
        With one line for every tensor that is missing, not expected, found twice, or of a wrong type or shape; or when
        the spec wants proposals, whose weights no public code has.
    InvalidRequest
        When adapters lack their alpha.
    """
    if spec.segmentation.proposals:
        raise CheckpointError(
            "segmentation.proposals: expected none, as no source holds their weights: leave it out of the spec"
        )
    found = _Found.read(sources)
    config = read_config(sources.language_folder, spec.language)
    language = found.parts.setdefault(LANGUAGE_FOLDER, {})
    if (sources.language or sources.lora) and _EMBEDDING in language:
        # A folder that is not the weights' own knows nothing of the tokens that were added to them.
        config.vocab_size = language[_EMBEDDING].header.shape[0]
    notes = [*found.notes, *_merge_adapters(found, language, sources), *_fill(found, spec, config)]
    if found.lines:
        raise CheckpointError("\n".join(found.lines))
    dtype = getattr(torch, spec.language.dtype)
    parts = found.parts | {LANGUAGE_FOLDER: {name: tensor.to(dtype) for name, tensor in language.items()}}
    return Plan(parts, config, tuple(found.left), tuple(notes))


def _merge_adapters(found: _Found, language: dict[str, StoredTensor], sources: Sources) -> Iterator[str]:
    """Put merged weights in the place of those that adapters change; yield what was done."""
    a, b = found.parts.pop(LORA_A, {}), found.parts.pop(LORA_B, {})
    lines = list(pair_lines(language, a, b))
    if sources.lora:
        others = (t for t in (*a.values(), *b.values()) if sources.lora not in t.file.parents)
        lines += [f"{t}: found, but --lora gives adapters, too: merge these first, or --leave them" for t in others]
    found.lines.extend(lines)
    if a and not lines:
        scale = Scale(sources.lora, sources.lora_alpha)
        language |= {name: merge(language[name], a[name], b[name], scale) for name in a}
        yield f"{len(a)} LoRA adapters were merged in FP32."


def _fill(found: _Found, spec: Checkpoint, config: Any) -> Iterator[str]:  # noqa: ANN401
    """Compare what was found with what every part needs, SAM2 completed to SAM2.1; yield what was done."""
    model = language_shapes(config)
    expected = {name: module.state_dict() for name, module in Modules.shapes(spec).parts.items()}
    if _fill_sam_2_0(found.parts.get("sam2", {}), expected["sam2"]):
        yield f"The weights are those of SAM2: what SAM2.1 has beside it is zero ({', '.join(SAM_2_1_ONLY)})."
    for part, tensors in expected.items():
        found.lines.extend(_part_lines(part, tensors, found.parts.get(part, {})))
    language = found.parts[LANGUAGE_FOLDER]
    found.lines.extend(_part_lines(LANGUAGE_FOLDER, model.state_dict(), language, tied_weights(model)))


@dataclass(frozen=True)
class _Found:
    parts: dict[str, dict[str, StoredTensor]]
    left: list[StoredTensor]
    lines: list[str]
    notes: list[str]

    @classmethod
    def read(cls, sources: Sources) -> _Found:
        found = cls({}, [], [], [])
        for option, path in sources.weights.items():
            for tensor in read_source(path):
                found.add(option, tensor, sources.leave)
        return found

    def add(self, option: Option, tensor: StoredTensor, leave: tuple[str, ...]) -> None:
        where = place(option, tensor.name)
        if any(fnmatchcase(tensor.name, pattern) for pattern in leave):
            self.left.append(tensor)
        elif where is None:
            self.lines.append(f"{tensor}: found, but {option} expects no tensor of that name")
        elif (other := self.parts.setdefault(where.part, {}).setdefault(where.name, tensor)) is not tensor:
            if option == "--lora" and other.file != tensor.file and where.part not in {LORA_A, LORA_B}:
                # PEFT keeps layers that were trained whole, such as grown embeddings, beside its adapters.
                self.parts[where.part][where.name] = tensor
                self.notes.append(f"The adapter's own {where.name} takes the place of the model's.")
            else:
                self.lines.append(f"{tensor}: found, but {other} is the {where.part}'s {where.name} already")


def _part_lines(
    part: str, expected: Mapping[str, torch.Tensor], found: Mapping[str, StoredTensor], optional: tuple[str, ...] = ()
) -> Iterator[str]:
    if not found:
        yield f"{part}: expected {len(expected)} tensors, found none: give {GIVEN_BY[part]}"
        return
    for name, wrong in tensor_lines(expected, {key: t.header for key, t in found.items()}, optional):
        yield f"{found.get(name, f'{part}: {name}')}: {wrong}"


def _fill_sam_2_0(found: dict[str, StoredTensor], expected: Mapping[str, torch.Tensor]) -> bool:
    """Add the tensors that SAM2 lacks where none of them is there; see :data:`SAM_2_1_ONLY`."""
    if not found or any(name in found for name in SAM_2_1_ONLY):
        return False
    file: Path = next(iter(found.values())).file
    for name in SAM_2_1_ONLY:
        header = TensorHeader("F32", tuple(expected[name].shape))
        found[name] = StoredTensor(file, name, header, partial(torch.zeros, header.shape), verbatim=False)
    return True
