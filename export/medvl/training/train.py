"""``medvl-export train-phantom``: the stages of the phantom checkpoint, one after another or side by side.

::

    perception  vision encoder                          cases, cell by cell
    coarse      SAM2 without memory, teacher            single slices of half the side, a quarter of the work
    slices      the same                                single slices
    clips       SAM2                                    slices in a row, through the memory
    language    projector, language model, seg projector   features of the encoder that has learnt to see
    joint       the same, and the vision encoder        cases

``perception`` and ``language`` on one side and the stages of SAM2 on the other do not need each other: two
processes can run them on two cores. ``language`` teaches the seg projector once SAM2 has begun.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medvl.contracts.checkpoint import Checkpoint
from medvl.contracts.errors import InvalidRequest
from medvl.embedded.preset import enliven, phantom_checkpoint, phantom_language_model, write_checkpoint
from medvl.embedded.vocabulary import train_tokenizer
from medvl.network.modules import Modules
from medvl.network.vision import cells_of
from medvl.training.cases import CaseStore
from medvl.training.descriptors import Teacher
from medvl.training.language import LanguageLearner, begin_locally
from medvl.training.loop import Learner, Loop, Stage, averaged, steps_done
from medvl.training.perception import PerceptionLearner
from medvl.training.segmentation import SegmentationLearner

STAGES = {
    stage.name: stage
    for stage in (
        Stage("perception", 3500, 1.5e-3),
        Stage("coarse", 5000, 5e-4),
        Stage("slices", 6500, 4e-4),
        Stage("clips", 2500, 3e-4),
        Stage("language", 5000, 8e-4),
        Stage("joint", 3000, 2e-4),
    )
}
CASES = 2400
"""Phantoms that training draws from."""
_SEGMENTATION = ("coarse", "slices", "clips")
"""Stages of SAM2, each of which goes on from the one before."""
SEED = 2601
_LOW_POOLED, _HIGH_POOLED = (1, 2, 2), (1, 1, 1)
"""Cells of the two levels that a vision token begins with."""


def train(out: Path, names: list[str], minutes: float, tell: Callable[[str], None]) -> bool:
    """Go on with stages for so long; return whether all of them are done.

    Parameters
    ----------
    out
        Folder of state, curves and cases; what is there is taken up again.
    names
        Of :data:`STAGES`, in the order in which they are to be done.
    minutes
        For all of them together.
    tell
        Takes a line for every few steps.

    Raises
    ------
    InvalidRequest
        When a stage needs one that has not begun.
    """
    torch.manual_seed(SEED)
    for name in names:
        loop = Loop(STAGES[name], _learner(name, out), out, SEED)
        if not loop.finished:
            tell(f"{name}:")
            minutes -= loop.run(minutes, tell)
        if not loop.finished:
            return False
    return True


def finish(out: Path, folder: Path) -> None:
    """Write the checkpoint that the stages have come to, as a folder that keeps the contract.

    Raises
    ------
    InvalidRequest
        When a stage has not begun.
    """
    checkpoint = phantom_checkpoint({})
    modules = Modules.build(checkpoint)
    language = phantom_language_model(train_tokenizer())
    _take(modules.sam2, _averaged(out, _segmenter_stage(out)), "sam.")
    speaker = "joint" if _begun(out, "joint") else "language"
    weights = _averaged(out, speaker)
    for name, module in (("encoder", modules.vision_encoder), ("projector", modules.projector)):
        _take(module, weights, f"{name}.")
    _take(modules.seg_projector, weights, "seg_projector.")
    _take(language, weights, "language.")
    write_checkpoint(folder, modules, language, _provenance(out))


def _provenance(out: Path) -> str:
    done = (f"{name} {steps_done(out, name)} of {stage.steps}" for name, stage in STAGES.items() if _begun(out, name))
    return (
        "Trained by medvl-export train-phantom on procedural phantoms; no patient's data. "
        f"Seed {SEED}; steps: {', '.join(done)}."
    )


def _learner(name: str, out: Path) -> Learner:
    checkpoint, store = phantom_checkpoint({}), CaseStore(out / "cases")
    if name in _SEGMENTATION:
        return _segmentation_learner(name, out, checkpoint, store)
    modules = Modules.build(checkpoint)
    enliven(modules)
    if name == "perception":
        return PerceptionLearner(checkpoint, modules, store, CASES)
    return _language_learner(name, out, checkpoint, modules, store)


def _segmentation_learner(name: str, out: Path, checkpoint: Checkpoint, store: CaseStore) -> SegmentationLearner:
    spec = checkpoint.segmentation
    if name == "coarse":
        spec = spec.model_copy(update={"side": spec.side // 2})
    sized = checkpoint.model_copy(update={"segmentation": spec})
    modules = Modules.build(sized)
    learner = SegmentationLearner(sized, modules, store, CASES, clips=name == "clips")
    before = _SEGMENTATION[: _SEGMENTATION.index(name)]
    if before:
        # Nothing that is learnt depends on the side.
        learner.module.load_state_dict(_averaged(out, before[-1]))
    # The language stage may be learning to stand in for the teacher of the slices by now: it must not move away.
    learner.module.teacher.requires_grad_(requires_grad=name != "clips")
    return learner


def _language_learner(
    name: str, out: Path, checkpoint: Checkpoint, modules: Modules, store: CaseStore
) -> LanguageLearner:
    before = _averaged(out, "language" if name == "joint" else "perception")
    tokenizer: Any = train_tokenizer()
    learner = LanguageLearner(
        checkpoint,
        modules,
        phantom_language_model(tokenizer),
        tokenizer,
        teacher=_teacher(out, modules),
        store=store,
        features=_features_folder(out),
        cases=CASES,
        pooling=(_LOW_POOLED, _HIGH_POOLED),
        joint=name == "joint",
    )
    if name == "joint":
        learner.module.load_state_dict(before)
    else:
        _take(modules.vision_encoder, before, "encoder.")
        low, high = (cells_of(checkpoint.vision, stage) for stage in checkpoint.vision.feature_stages)
        begin_locally(modules.projector.low_mixer, low, _LOW_POOLED)
        begin_locally(modules.projector.high_mixer, high, _HIGH_POOLED)
    return learner


def _features_folder(out: Path) -> Path:
    """Return where features are kept: an encoder that has learnt more gives others."""
    steps = steps_done(out, "perception") if _begun(out, "perception") else 0
    return out / f"features-{steps}"


def _teacher(out: Path, modules: Modules) -> Teacher | None:
    if not any(_begun(out, name) for name in _SEGMENTATION):
        return None
    teacher = Teacher(modules.sam2.hidden_dim)
    _take(teacher, _averaged(out, _segmenter_stage(out)), "teacher.")
    return teacher.requires_grad_(requires_grad=False)


def _segmenter_stage(out: Path) -> str:
    begun = (name for name in reversed(_SEGMENTATION) if _begun(out, name))
    return next(begun, _SEGMENTATION[0])


def _begun(out: Path, name: str) -> bool:
    return (out / f"{name}.pt").is_file()


def _averaged(out: Path, name: str) -> dict[str, Tensor]:
    if not _begun(out, name):
        raise InvalidRequest(f"The stage {name} has not begun in {out}: run it first.")
    return averaged(out, name)


def _take(module: nn.Module, weights: dict[str, Tensor], prefix: str) -> None:
    own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    module.load_state_dict(own)
