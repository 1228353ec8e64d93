"""Reports learn to tell what regions show: lesions that no region shows are left out of them.

The language model goes on; all that it reads stands still, and so do [SEG] states, which SAM2 has learnt or will
learn from. A case is looked at once, and what was seen is kept; it has to be new to the encoder, which is surer of what
it has learnt from.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from transformers import Qwen2ForCausalLM

from medvl.contracts.checkpoint import LANGUAGE_FOLDER, load_checkpoint
from medvl.contracts.errors import CheckpointError
from medvl.embedded.truth import Truth
from medvl.embedded.vocabulary import train_tokenizer
from medvl.imaging.resample import to_grid
from medvl.imaging.windows import Window
from medvl.network.modules import Modules
from medvl.network.region_choice import OUTLINE
from medvl.network.vision import cells_of
from medvl.training.cases import Case, CaseStore, keep_arrays
from medvl.training.language import Pack, Spoken, hidden_of, spoken, utterances
from medvl.training.perception import Parts
from medvl.training.regions import LESIONS

_SHOWN = 0.45
"""Score of a region from which on it shows a lesion of its kind."""
_STATE_WEIGHT = 1.0


class Telling(nn.Module):
    """The language model."""

    language: Any

    def __init__(self, language: Qwen2ForCausalLM) -> None:
        super().__init__()
        self.language = language

    def hidden(self, drawn: Reported) -> Tensor:
        """Return the states [B * L, H] after the final norm of all that is said."""
        said = drawn.spoken
        return hidden_of(self.language, drawn.tokens, said.ids, said.owner, said.positions)


@dataclass(frozen=True, eq=False)
class Reported:
    """B cases and what is said about them."""

    spoken: Spoken
    tokens: Tensor
    """FP32 [B, T, H], vision tokens with what regions tell in them, as they are served."""


@dataclass(frozen=True, eq=False)
class _Looked:
    """What was seen of a case: as :class:`Reported` has it, and regions FP32 [G, n_region]."""

    tokens: NDArray[np.float16]
    regions: NDArray[np.float32]


class ReportLearner:
    """The stage ``reports``.

    Parameters
    ----------
    reference
        A checkpoint folder whose language path has been trained.
    store
        Cases that the encoder has not learnt from.
    folder
        Where what was seen is kept, by seed.
    batch
        Cases of a step.

    Raises
    ------
    CheckpointError
        When its encoder finds no regions.
    """

    def __init__(self, reference: Path, store: CaseStore, folder: Path, batch: int) -> None:
        self._store = store
        self._folder = folder
        self._batch = batch
        self._tokenizer: Any = train_tokenizer()
        self._checkpoint = load_checkpoint(reference)
        with torch.device("cpu"):
            modules = Modules.load(reference, self._checkpoint)
            language = Qwen2ForCausalLM.from_pretrained(reference / LANGUAGE_FOLDER, dtype=torch.float32)
        if modules.vision_encoder.regions is None:
            raise CheckpointError("vision.regions: reports learn from what regions show, and there are none.")
        self._encoder, self._projector = modules.vision_encoder, modules.projector
        self._before = Telling(deepcopy(language)).eval().requires_grad_(False)
        # Weights that were loaded are mapped from their file and cannot be changed.
        self.module = deepcopy(self._before).train().requires_grad_(True)
        for telling in (self._before, self.module):
            telling.to(torch.get_default_device())

    def draw(self, step: int, rng: np.random.Generator) -> Reported:
        """Return cases and what is said about them; reports leave out what no region shows."""
        cases = [self._store.shown(self._store.seed(rng, step)) for _ in range(self._batch)]
        looked = [self._look(case) for case in cases]
        prompts = self._checkpoint.language.prompts
        said = [
            utterances(case, prompts, rng, shown_by(own.regions, case, self._cells))
            for case, own in zip(cases, looked, strict=True)
        ]
        return Reported(
            spoken(Parts.of(cases), [Pack.of(each, self._tokenizer) for each in said]),
            torch.from_numpy(np.stack([own.tokens for own in looked])).float(),
        )

    def loss(self, step: int, drawn: Reported) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the loss of all that is said, and how far [SEG] states have moved."""
        said = drawn.spoken
        hidden = self.module.hidden(drawn)
        logits = self.module.language.lm_head(hidden[said.asked])
        plain = cross_entropy(logits.float(), said.wanted, reduction="none")
        loss = (plain * said.weight).sum() / said.weight.sum()
        shown = {"words": (logits.argmax(-1) == said.wanted).float().mean()}
        if len(said.seg) > 1:
            with torch.no_grad():
                before = self._before.hidden(drawn)[said.seg]
            moved = mse_loss(hidden[said.seg], before) / before.var(0).mean()
            loss, shown["moved"] = loss + _STATE_WEIGHT * moved, moved
        return loss, shown

    @property
    def _cells(self) -> tuple[int, int, int]:
        vision = self._checkpoint.vision
        return cells_of(vision, vision.feature_stages[0] - 1)

    def _look(self, case: Case) -> _Looked:
        path = self._folder / f"{case.seed}.npz"
        if not path.is_file():
            keep_arrays(path, vars(self._seen(case)))
        with np.load(path) as kept:
            return _Looked(kept["tokens"], kept["regions"])

    @torch.inference_mode()
    def _seen(self, case: Case) -> _Looked:
        checkpoint = self._checkpoint
        volume = case.volume(Window(*checkpoint.windows[checkpoint.segmentation.window]))
        grid = torch.from_numpy(to_grid(volume.hu, checkpoint.vision.grid))[None]
        low, high, regions = self._encoder(grid, torch.tensor([checkpoint.windows[checkpoint.vision.window]]))
        return _Looked(self._projector(low, high, regions)[0].half().numpy(), regions[0].numpy())


def shown_by(regions: NDArray[np.float32], case: Case, cells: tuple[int, int, int]) -> Truth:
    """Return the truth of a case without the lesions that none of its regions FP32 [G, n_region] shows.

    A region shows a lesion of its kind that reaches to within a cell of its middle; ``cells`` are along d, h, w.
    """
    likely = regions[:, OUTLINE:] >= np.log(_SHOWN / (1 - _SHOWN))
    findings = []
    for finding in case.truth.findings:
        kind, place = (finding.kind, finding.organ), case.places.get(finding.value or 0)
        if kind in LESIONS:
            if place is None:
                continue
            reach = np.array(place.half_extent) + 1.0 / np.array(cells)
            near = (np.abs(regions[:, :3] - np.array(place.centre)) <= reach).all(1)
            if not (near & likely[:, LESIONS.index(kind)]).any():
                continue
        findings.append(finding)
    return case.truth.model_copy(update={"findings": tuple(findings)})
