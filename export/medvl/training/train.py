"""``medvl-export train-phantom``: the stages of the phantom checkpoint, one after another or side by side.

::

    cases       nothing: the phantoms are made that most others draw from
    perception  vision encoder                          cases, cell by cell
    coarse      SAM2 without memory, teacher            single slices of half the side, a quarter of the work
    slices      the same                                single slices
    clips       SAM2                                    slices in a row, through the memory
    language    projector, language model, seg projector   what an encoder that has learnt to see makes of cases
    joint       the same, and the vision encoder        cases
    looks       what looks closer at voxels, what regions tell    new cases, with and without their lesions
    reports     language model                          what the encoder finds in new cases
    words       SAM2                                    as clips, with what the language model really says
    proposals   which of several things a [SEG] state means    what all others have come to

``perception`` and ``language`` on one side and the stages of SAM2 on the other do not need each other: two
processes can run them on two cores, or on one GPU. ``language`` teaches the seg projector once SAM2 has begun.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medvl.contracts.checkpoint import Checkpoint
from medvl.contracts.errors import InvalidRequest, SetupError
from medvl.embedded.findings import SMALL_LESIONS
from medvl.embedded.preset import WINDOW, enliven, phantom_checkpoint, phantom_language_model, write_checkpoint
from medvl.embedded.vocabulary import train_tokenizer
from medvl.export.folders import locked, replacement
from medvl.imaging.windows import Window
from medvl.network.modules import Modules
from medvl.network.vision import cells_of
from medvl.training.cases import FIRST_SEED, CaseStore
from medvl.training.descriptors import Teacher
from medvl.training.language import LanguageLearner, begin_locally
from medvl.training.looks import Looking, LookLearner
from medvl.training.loop import Learner, Loop, Stage, averaged, origin, steps_done, version
from medvl.training.perception import PerceptionLearner
from medvl.training.proposals import ProposalLearner
from medvl.training.reports import ReportLearner
from medvl.training.segmentation import SegmentationLearner
from medvl.training.words import Listening

CASES = {"cpu": range(3600), "cuda": range(15_000)}
"""Phantoms that training draws from, unless it is told others: a GPU comes to all of them again and again."""
MAKE_CASES = "cases"
"""The stage that makes them; without it each is made when it is first drawn."""
_PROPOSALS = Stage("proposals", 1500, 1e-2, batch=16, more_cases=1)
"""The same on both devices: looking at a case takes longer than all that is learnt from it."""
RECIPES = {
    "cpu": (
        Stage("perception", 8000, 1.5e-3, batch=2, more_cases=1),
        Stage("coarse", 5000, 5e-4, batch=1, more_cases=1),
        Stage("slices", 6500, 4e-4, batch=1),
        Stage("clips", 6000, 3e-4, batch=1),
        Stage("language", 5000, 8e-4, batch=1),
        Stage("joint", 3000, 2e-4, batch=1),
        Stage("looks", 3000, 2e-3, batch=2, more_cases=1),
        Stage("reports", 2400, 2e-4, batch=2, more_cases=1),
        Stage("words", 2400, 6e-5, batch=2, more_cases=1),
        _PROPOSALS,
    ),
    "cuda": (
        Stage("perception", 2080, 2e-3, batch=16, more_cases=2),
        Stage("slices", 1880, 1e-3, batch=32, more_cases=2),
        Stage("clips", 3000, 6e-4, batch=48, first_cases=4000, more_cases=4),
        Stage("joint", 7200, 8e-4, batch=32, first_cases=4000, more_cases=4),
        Stage("looks", 2000, 3e-3, batch=8, more_cases=2),
        Stage("reports", 1500, 3e-4, batch=16, more_cases=4),
        Stage("words", 1000, 2e-4, batch=48),
        _PROPOSALS,
    ),
}
"""Stages by the device that they run on."""
_AFTER = {
    "slices": ("coarse",),
    "clips": ("slices",),
    "language": ("perception", "coarse"),
    "joint": ("language", "slices"),
    "looks": ("joint",),
    "reports": ("looks",),
    "words": ("clips", "reports"),
    _PROPOSALS.name: ("words",),
}
"""What each stage goes on from, which has to be done; in place of what a device leaves out, what that goes on from."""
_ON_UNSEEN_CASES = ("looks", "reports", _PROPOSALS.name)
"""Stages that learn from what others find in phantoms that none of these has learnt from: there they would be surer."""
_SEGMENTATION = ("coarse", "slices", "clips", "words")
"""Stages of SAM2, each of which goes on from the one before."""
_UNSEEN = 1_000_000
"""How much further on the phantoms of each stage lie that draws from its own."""
SEED = 2601
_REFERENCE = "checkpoint"
"""Folder of what the stages before have come to, beside what was seen with it."""
_LOW_POOLED, _HIGH_POOLED = (1, 2, 2), (1, 1, 1)
"""Cells of the two levels that a vision token begins with."""


def stages_on(device: str) -> dict[str, Stage]:
    """Return the stages on ``cpu`` or ``cuda`` by name, in the order in which they can be done."""
    return {stage.name: stage for stage in RECIPES[device]}


def train(  # noqa: PLR0917 - the options of the command
    out: Path,
    names: list[str],
    minutes: float,
    tell: Callable[[str], None],
    device: str = "cpu",
    workers: int = 0,
    cases: range | None = None,
) -> bool:
    """Go on with stages for so long; return whether all of them are done.

    Parameters
    ----------
    out
        Folder of state, curves and cases; what is there is taken up again.
    names
        Of :data:`MAKE_CASES` and :func:`stages_on`, in the order in which they are to be done.
    minutes
        For all of them together.
    tell
        Takes a line for every few steps.
    device
        Where the networks learn, ``cpu`` or ``cuda``.
    workers
        Processes that draw what steps need; with none, this one does.
    cases
        Numbers of the phantoms to draw from; :data:`CASES` by default.

    Raises
    ------
    InvalidRequest
        When a stage needs one that is not done, or was begun from other weights than are there now, when numbers of
        phantoms are those of other stages, or the device is not there.
    """
    if cases is not None and cases.stop > _UNSEEN:
        raise InvalidRequest(f"Phantoms have numbers below {_UNSEEN:,}: those behind are kept for other stages.")
    if device == "cuda" and not torch.cuda.is_available():
        raise InvalidRequest("There is no GPU that torch can use: leave --device out to train on the CPU.")
    if MAKE_CASES in names:
        minutes -= _make_cases(_store(out, _numbers(device, cases)), workers, minutes, tell)
        if minutes <= 0:
            return False
    with torch.device(device):
        torch.set_float32_matmul_precision("high")
        for name in (n for n in names if n != MAKE_CASES):
            stage = stages_on(device)[name]
            _check(out, name, device)
            if _done(out, stage):
                continue
            if minutes <= 0:
                return False
            torch.manual_seed(SEED)
            begun_from = _versions(out, name, device)
            loop = Loop(stage, learner(name, out, device, cases), out, SEED, workers, begun_from)
            tell(f"{name}:")
            minutes -= loop.run(minutes, tell)
            if not loop.finished:
                return False
    return True


def _make_cases(store: CaseStore, workers: int, minutes: float, tell: Callable[[str], None]) -> float:
    """Make cases for so long, or all; return the minutes that it took."""
    begun_s = time.monotonic()
    # What others wait for comes before what they will draw later.
    with multiprocessing.get_context("spawn").Pool(max(1, workers), os.nice, (10,)) as pool:
        for done, _ in enumerate(pool.imap(store.make, store.seeds, chunksize=4), 1):
            if done % 100 == 0:
                tell(f"{done} of {len(store.seeds)} cases")
            if time.monotonic() - begun_s > 60 * minutes:
                break
    return (time.monotonic() - begun_s) / 60


def _before(name: str, device: str) -> tuple[str, ...]:
    """Return the stages on a device that one goes on from."""
    found: list[str] = []
    for before in _AFTER.get(name, ()):
        found.extend([before] if before in stages_on(device) else _before(before, device))
    return tuple(found)


def _done(out: Path, stage: Stage) -> bool:
    return _begun(out, stage.name) and steps_done(out, stage.name) >= stage.steps


def _versions(out: Path, name: str, device: str) -> dict[str, str]:
    """Return what a stage would be begun from now."""
    return {"device": device, **{before: _version(out, before) for before in _before(name, device)}}


def _check(out: Path, name: str, device: str) -> None:
    """Refuse a stage whose weights do not fit those that it goes on from, and one of which these are not done."""
    for before in _before(name, device):
        if not _done(out, stages_on(device)[before]):
            raise InvalidRequest(f"The stage {before} is not done in {out}: {name} goes on from it, run it first.")
        _check(out, before, device)
    if _begun(out, name) and origin(out, name) != _versions(out, name, device):
        raise InvalidRequest(
            f"The stage {name} was begun in {out} from other weights than are there now, or for another device: "
            f"remove {name}.pt to begin it again."
        )


def finish(out: Path, folder: Path, device: str = "cpu") -> None:
    """Write the checkpoint that the stages have come to, as a folder that keeps the contract.

    Raises
    ------
    InvalidRequest
        When a stage has not begun, or one was begun from other weights than are there now.
    """
    for name in (n for n in stages_on(device) if _begun(out, n)):
        _check(out, name, device)
    _write(out, folder, proposals=_begun(out, _PROPOSALS.name))


def _write(out: Path, folder: Path, *, proposals: bool) -> None:
    modules = Modules.build(phantom_checkpoint({}, proposals=proposals))
    language = phantom_language_model(train_tokenizer())
    if modules.proposals:
        modules.proposals.load_state_dict(_averaged(out, _PROPOSALS.name))
    _take(modules.sam2, _averaged(out, _segmenter_stage(out)), "sam.")
    speaker = "language" if _begun(out, "language") and not _begun(out, "joint") else "joint"
    weights = _averaged(out, speaker)
    for name, module in (("encoder", modules.vision_encoder), ("projector", modules.projector)):
        _take(module, weights, f"{name}.")
    _take(modules.seg_projector, weights, "seg_projector.")
    if _begun(out, "looks"):
        looks = _averaged(out, "looks")
        for name, own in Looking.of(modules).named_children():
            _take(own, looks, f"{name}.")
    if _begun(out, "reports"):
        weights = _averaged(out, "reports")
    _take(language, weights, "language.")
    write_checkpoint(folder, modules, language, _provenance(out))


def _store(out: Path, numbers: range) -> CaseStore:
    """Return the cases of phantoms by number."""
    seeds = range(FIRST_SEED + numbers.start, FIRST_SEED + numbers.stop)
    return CaseStore(out / "cases", seeds, Window(*phantom_checkpoint({}).windows[WINDOW]))


def _numbers(device: str, cases: range | None) -> range:
    """Return the numbers of the phantoms to draw from."""
    return CASES[device] if cases is None else cases


def _unseen(name: str, numbers: range) -> range:
    """Return the numbers of as many phantoms that only one of :data:`_ON_UNSEEN_CASES` draws from."""
    further = _UNSEEN * (1 + _ON_UNSEEN_CASES.index(name))
    return range(numbers.start + further, numbers.stop + further)


def _provenance(out: Path) -> str:
    names = dict.fromkeys(stage.name for recipe in RECIPES.values() for stage in recipe)
    done = (f"{name} {steps_done(out, name)}" for name in names if _begun(out, name))
    return (
        "Trained by medvl-export train-phantom on procedural phantoms; no patient's data. "
        f"Seed {SEED}; steps: {', '.join(done)}."
    )


def learner(name: str, out: Path, device: str, cases: range | None = None) -> Learner:
    """Return what learns in a stage, with the weights that the stage before has come to.

    Raises
    ------
    InvalidRequest
        When that one has not begun.
    """
    stage = stages_on(device)[name]
    checkpoint, numbers = phantom_checkpoint({}), _numbers(device, cases)
    if name in _ON_UNSEEN_CASES:
        store = replace(_store(out, _unseen(name, numbers)), first=stage.first_cases, more=stage.more_cases, once=True)
        return _learner_on_unseen_cases(stage, store, _reference(out, name, device))
    store = replace(_store(out, numbers), first=stage.first_cases, more=stage.more_cases)
    if name in _SEGMENTATION:
        return _segmentation_learner(stage, out, checkpoint, store, device)
    modules = Modules.build(checkpoint)
    enliven(modules)
    if name == "perception":
        return PerceptionLearner(checkpoint, modules, store, stage.batch)
    before = None if _begun(out, name) else _before(name, device)[0]
    return _language_learner(stage, out, checkpoint, modules, store, before)


def _learner_on_unseen_cases(stage: Stage, store: CaseStore, folder: Path) -> Learner:
    """Return what learns from what a reference in a folder finds; that is kept beside it."""
    if stage.name == "looks":
        lesions = replace(store, illness=SMALL_LESIONS)
        return LookLearner(folder / _REFERENCE, lesions, folder / "seen", stage.batch)
    if stage.name == "reports":
        return ReportLearner(folder / _REFERENCE, store, folder / "seen", stage.batch)
    return ProposalLearner(folder / _REFERENCE, store, folder / "choices", stage.batch)


def _segmentation_learner(
    stage: Stage, out: Path, checkpoint: Checkpoint, store: CaseStore, device: str
) -> SegmentationLearner:
    spec = checkpoint.segmentation
    if stage.name == "coarse":
        spec = spec.model_copy(update={"side": spec.side // 2})
    sized = checkpoint.model_copy(update={"segmentation": spec})
    modules, speaker = Modules.build(sized), None
    if stage.name == "words":
        _take(modules.seg_projector, _averaged(out, "joint"), "seg_projector.")
        folder = _reference(out, stage.name, device)
        speaker = Listening(folder / _REFERENCE, folder / "said")
    clips = stage.name in {"clips", "words"}
    own = SegmentationLearner(sized, modules, store, stage.batch, clips=clips, speaker=speaker)
    if before := _before(stage.name, device):
        # Nothing that is learnt depends on the side.
        own.module.load_state_dict(_averaged(out, before[0]))
    # The language stage may be learning to stand in for the teacher of the slices by now: it must not move away.
    own.module.teacher.requires_grad_(requires_grad=not clips)
    return own


def _reference(out: Path, name: str, device: str) -> Path:
    """Return the folder of what a stage sees of a checkpoint, with that: what the stages before have come to."""
    said = json.dumps(_versions(out, name, device), sort_keys=True).encode()
    folder = out / f"{name}-{hashlib.sha256(said).hexdigest()[:8]}"
    with locked(folder / _REFERENCE):
        if not (folder / _REFERENCE).is_dir():
            with torch.device("cpu"), replacement(folder / _REFERENCE) as staging:
                _write(out, staging, proposals=False)
    return folder


def _language_learner(  # noqa: PLR0917 - what it is made of
    stage: Stage, out: Path, checkpoint: Checkpoint, modules: Modules, store: CaseStore, before: str | None
) -> LanguageLearner:
    tokenizer: Any = train_tokenizer()
    own = LanguageLearner(
        checkpoint,
        modules,
        phantom_language_model(tokenizer),
        tokenizer,
        teacher=_teacher(out, modules, stage.name),
        store=store,
        batch=stage.batch,
        pooling=(_LOW_POOLED, _HIGH_POOLED),
        joint=stage.name == "joint",
    )
    if before == "language":
        own.module.load_state_dict(_averaged(out, before))
    elif before:
        _take(modules.vision_encoder, _averaged(out, before), "encoder.")
        _take(own.module.heads, _averaged(out, before), "heads.")
        low, high = (cells_of(checkpoint.vision, number) for number in checkpoint.vision.feature_stages)
        begin_locally(modules.projector.low_mixer, low, _LOW_POOLED)
        begin_locally(modules.projector.high_mixer, high, _HIGH_POOLED)
    return own


def _teacher(out: Path, modules: Modules, name: str) -> Teacher:
    """Return the teacher as the last of the stages of SAM2 left it that a stage waits for."""
    last = [before for before in _AFTER[name] if before in _SEGMENTATION][-1]
    teacher = Teacher(modules.sam2.hidden_dim)
    _take(teacher, _averaged(out, last), "teacher.")
    return teacher.requires_grad_(requires_grad=False)


def _segmenter_stage(out: Path) -> str:
    """Return the last stage of SAM2 that has begun; where none has, the one to begin with on any device."""
    begun = (name for name in reversed(_SEGMENTATION) if _begun(out, name))
    return next(begun, "slices")


def _begun(out: Path, name: str) -> bool:
    return (out / f"{name}.pt").is_file()


def _averaged(out: Path, name: str) -> dict[str, Tensor]:
    _need(out, name)
    return averaged(out, name)


def _version(out: Path, name: str) -> str:
    _need(out, name)
    return version(out, name)


def _need(out: Path, name: str) -> None:
    if not _begun(out, name):
        raise InvalidRequest(f"The stage {name} has not begun in {out}: run it first.")


def _take(module: nn.Module, weights: dict[str, Tensor], prefix: str) -> None:
    own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    try:
        module.load_state_dict(own)
    except RuntimeError as error:
        raise SetupError(
            "What the stages before have learnt does not fit the networks that are there now: name another folder "
            "with --out."
        ) from error
