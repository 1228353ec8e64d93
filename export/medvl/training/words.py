"""What words say of an object when they prompt SAM2: a descriptor for the teacher, or the language model's [SEG] state.

While the language model still learns, the teacher stands in for it (:mod:`medvl.training.descriptors`). Once it has
learnt, SAM2 is shown what is really said, errors and all. A case is looked at once, as it is shown in a field of view
that follows from its seed, and what was said is kept.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from medvl.contracts.checkpoint import load_checkpoint
from medvl.embedded.requests import request_pool
from medvl.embedded.vocabulary import train_tokenizer
from medvl.imaging.windows import Window
from medvl.network.model import ReferenceModel
from medvl.training.cases import Case, CaseStore, keep_arrays
from medvl.training.descriptors import LENGTH, Target, descriptor
from medvl.training.language import Pack, segmentation, states_of

_PLACED = 0.8
"""Share of descriptors that tell the place."""
_DESCRIBED, _SAID = 0.3, 0.5
"""Share of prompts that are words of the teacher, and of the language model."""
_PHRASINGS = 2
"""In which what is there is asked for."""

Meant = tuple[str, tuple[int, ...]]
"""Kind and values of a target."""


class Words(Protocol):
    """What can be said of the objects of a case, as the network takes it that makes a token of SAM2 of it."""

    @property
    def width(self) -> int:
        """W, numbers of what is said."""

    @property
    def share(self) -> float:
        """Of prompts that are words."""

    def can_say(self, target: Target) -> bool:
        """Whether there are words for a target."""

    def say(self, target: Target, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return what is said of a target, FP32 [W]."""


class Speaker(Protocol):
    """Draws cases together with what can be said of them; other processes may do so."""

    def draw(self, store: CaseStore, rng: np.random.Generator, step: int) -> tuple[Case, Words]:
        """Return one of the cases that a step knows."""


class Descriptions:
    """Descriptors of the truth, with the errors of one who guesses it, for every case."""

    width = LENGTH
    share = _DESCRIBED

    def draw(self, store: CaseStore, rng: np.random.Generator, step: int) -> tuple[Case, Words]:
        """Return one of the cases that a step knows."""
        return store.draw(rng, step), self

    def can_say(self, target: Target) -> bool:
        """Return True."""
        return True

    def say(self, target: Target, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return a descriptor, most of them with a place."""
        return descriptor(target, rng, placed=rng.random() < _PLACED)


@dataclass(frozen=True, eq=False)
class States:
    """[SEG] states of requests for what is in a case, and for what is not.

    Attributes
    ----------
    said
        FP32 [n, W] of what is meant, one for each request.
    """

    said: Mapping[Meant, NDArray[np.float32]]
    width: int
    share: float = _SAID

    def can_say(self, target: Target) -> bool:
        """Whether it was asked for: words single out only some of several."""
        return (target.kind, target.values) in self.said

    def say(self, target: Target, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return the state of one of the requests for it."""
        states = self.said[target.kind, target.values]
        state: NDArray[np.float32] = states[int(rng.integers(len(states)))]
        return state


class Listening:
    """Draws cases with the [SEG] states of a checkpoint.

    Parameters
    ----------
    reference
        A checkpoint folder whose language path has been trained.
    folder
        Where what was said is kept, by seed.
    """

    def __init__(self, reference: Path, folder: Path) -> None:
        self._reference = reference
        self._folder = folder
        self._loaded: tuple[ReferenceModel, Any] | None = None
        self._width = load_checkpoint(reference).language.hidden_size

    def draw(self, store: CaseStore, rng: np.random.Generator, step: int) -> tuple[Case, Words]:
        """Return one of the cases that a step knows, in its field of view."""
        case = store.shown(store.seed(rng, step))
        path = self._folder / f"{case.seed}.npz"
        if not path.is_file():
            self._keep(path, self._said(case))
        with np.load(path) as kept:
            meant = json.loads(str(kept["meant"]))
            said = {(kind, tuple(values)): kept[f"states_{i}"] for i, (kind, values) in enumerate(meant)}
        return case, States(said, self._width)

    def _keep(self, path: Path, said: Mapping[Meant, Sequence[NDArray[np.float32]]]) -> None:
        states = {f"states_{i}": np.stack(each) for i, each in enumerate(said.values())}
        keep_arrays(path, {"meant": np.array(json.dumps(list(said))), **states})

    def _said(self, case: Case) -> Mapping[Meant, Sequence[NDArray[np.float32]]]:
        """Ask for everything in a case that can be asked for."""
        if self._loaded is None:
            self._loaded = ReferenceModel.load(self._reference), train_tokenizer()
        reference, tokenizer = self._loaded
        checkpoint, rng = reference.checkpoint, np.random.default_rng(case.seed)
        pool = [w for w in request_pool(case.truth) for _ in range(_PHRASINGS if w.present else 1)]
        asked = [segmentation(w.phrased(rng), case, checkpoint.language.prompts) for w in pool]
        window = Window(*checkpoint.windows[checkpoint.segmentation.window])
        tokens = reference.encode(case.volume(window)).tokens
        said: dict[Meant, list[NDArray[np.float32]]] = defaultdict(list)
        states = states_of(reference.language.model, tokens, Pack.of(asked, tokenizer))
        for one, state in zip(asked, states, strict=True):
            (target,) = one.targets
            said[target.kind, target.values].append(state)
        return said
