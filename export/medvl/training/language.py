"""The language path learns to speak: vision tokens to reports, answers and [SEG] states.

All that is said about a case goes through the language model in one sequence: the vision tokens, then one utterance
after another, each of which sees the vision tokens and itself only, at the positions that it has when it is served.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, l1_loss, mse_loss
from transformers import Qwen2ForCausalLM

from medvl.contracts.checkpoint import Checkpoint, Extent, PromptTemplates
from medvl.embedded.facts import seg_targets
from medvl.embedded.questions import questions
from medvl.embedded.report import write_report
from medvl.embedded.requests import SegmentRequest, requests
from medvl.embedded.truth import FindingKind, Truth
from medvl.embedded.vocabulary import EOS, SEG
from medvl.network.modules import Modules
from medvl.network.projector import MixerLayer
from medvl.network.vision import STEM_STRIDE
from medvl.training.cases import FIRST_SEED, CaseStore
from medvl.training.descriptors import (
    LENGTH,
    Place,
    Target,
    Teacher,
    absent,
    descriptor,
    finding_target,
    places,
    targets,
)
from medvl.training.perception import (
    READ,
    Cells,
    by_kind,
    cells_of_counts,
    counted,
    freeze_statistics,
    pooled,
    read_cells,
)

_QUESTIONS, _REQUESTS = 10, 8
_DECISIVE = 2
"""Tokens at the beginning of an answer that count more, because they decide it."""
_DECISIVE_WEIGHT = 3.0
_LINEAR_BIAS = 2.0
"""Where a GELU is nearly a straight line for what a layer norm gives."""
_NEAR = 0.1
"""Share of a random initialisation that stays."""
_STATE_WEIGHT, _PLACE_WEIGHT, _TOKEN_WEIGHT = 0.5, 4.0, 1.0


@torch.no_grad()
def begin_locally(mixer: nn.ModuleList, cells: tuple[int, int, int], pooled: tuple[int, int, int]) -> None:
    """Let each token of a mixer begin as the mean of neighbouring cells instead of a mixture of all of them.

    From a mixture, a lesion that fills one cell of hundreds is hard to find; training can still mix what helps.

    Parameters
    ----------
    cells
        Depth, rows and columns of the features, whose product is the tokens of the mixer's input.
    pooled
        Cells of each axis that make up one token; the tokens of every layer are what is left.
    """
    d, h, w = (np.arange(n) // p for n, p in zip(cells, pooled, strict=True))
    rows, columns = (-(-n // p) for n, p in zip(cells[1:], pooled[1:], strict=True))
    token = ((d[:, None, None] * rows + h[:, None]) * columns + w).ravel()
    members = torch.from_numpy(np.eye(int(token.max()) + 1, dtype=np.float32)[:, token])
    for layer in mixer:
        assert isinstance(layer, MixerLayer)
        first, *further = (m for m in layer.mlp1.modules() if isinstance(m, nn.Linear))
        # The sum of equals is divided by the root of their number, which keeps the size of what is unlike.
        _set_near(first, members / members.sum(1, keepdim=True).sqrt(), _LINEAR_BIAS if further else 0.0)
        for linear in further:
            _set_near(linear, torch.eye(linear.out_features), -_LINEAR_BIAS)
        members = torch.eye(len(members))


def _set_near(linear: nn.Linear, weight: Tensor, bias: float) -> None:
    linear.weight.mul_(_NEAR).add_(weight)
    linear.bias.fill_(bias)


@dataclass(frozen=True, slots=True)
class Utterance:
    """A prompt and what is to be said to it; ``targets`` are the objects of its [SEG] tokens, in order."""

    prompt: str
    answer: str
    targets: tuple[Target, ...]
    decisive: bool


@dataclass(frozen=True, eq=False)
class Seen:
    """A case as the language model meets it: the encoder's features, and what is true of it."""

    low: NDArray[np.float16]
    high: NDArray[np.float16]
    truth: Truth
    extent_mm: Extent
    places: dict[int, Place]


class Speaking(nn.Module):
    """Projector, language model and seg projector, with heads that no checkpoint keeps.

    One reads descriptors from [SEG] states; one reads from each vision token what lies in the cells that it began with.
    """

    language: Any

    def __init__(self, modules: Modules, language: Qwen2ForCausalLM) -> None:
        super().__init__()
        self.encoder = modules.vision_encoder
        self.projector = modules.projector
        self.seg_projector = modules.seg_projector
        self.language = language
        self.state_head = nn.Linear(modules.checkpoint.language.hidden_size, LENGTH)
        self.token_head = nn.Linear(modules.checkpoint.language.hidden_size, READ)


class LanguageLearner:
    """One stage of the language path.

    Parameters
    ----------
    checkpoint
        Templates and sizes.
    modules, language
        What is trained: projector, seg projector and language model; the vision encoder, too, when ``joint``.
    tokenizer
        With special tokens; those of users' words are told apart by ``prompts`` never holding any.
    teacher
        SAM2's teacher of language prompts, which the seg projector learns to stand in for; None leaves that out.
    store
        Cases, and beside them the features of those that have been encoded.
    features
        Where the features of cases that have been encoded are kept.
    cases
        How many there are.
    pooling
        Cells of the low and of the high level that a vision token begins with, see :func:`begin_locally`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        modules: Modules,
        language: Qwen2ForCausalLM,
        tokenizer: Any,  # noqa: ANN401 - tokenizers has no types
        *,
        teacher: Teacher | None,
        store: CaseStore,
        features: Path,
        cases: int,
        pooling: tuple[tuple[int, int, int], tuple[int, int, int]],
        joint: bool,
    ) -> None:
        self._checkpoint = checkpoint
        self._tokenizer = tokenizer
        self._teacher = teacher
        self._store = store
        self._features = features
        self._cases = cases
        self._pooling = pooling
        self._joint = joint
        self.module = Speaking(modules, language)
        self.module.encoder.requires_grad_(requires_grad=joint)
        self.module.train()
        freeze_statistics(self.module)
        features.mkdir(parents=True, exist_ok=True)

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, Mapping[str, float]]:
        """Return the loss of everything that is said about one case."""
        seed = FIRST_SEED + int(rng.integers(self._cases)) if self._joint else FIRST_SEED + step % self._cases
        with torch.autocast("cpu", torch.bfloat16):
            seen, tokens = self._look(seed)
            pack = Pack.of(utterances(seen, self._checkpoint.language.prompts, rng), self._tokenizer, tokens.shape[1])
            hidden = self._hidden(tokens, pack)
            logits = self.module.language.lm_head(hidden[pack.asked])
        plain = cross_entropy(logits.float(), pack.wanted, reduction="none")
        loss = (plain * pack.weight).sum() / pack.weight.sum()
        right = (logits.argmax(-1) == pack.wanted).float()
        shown = {"words": right.mean().item(), "decisive": right[pack.weight > 1].mean().item()}
        seeing, seen_in_tokens = read_cells(self.module.token_head(tokens.float()), [self._cells(seed)])
        loss, shown = loss + seeing, shown | seen_in_tokens
        if len(pack.seg):
            extra, more = self._states(hidden[pack.seg].float(), pack.targets, rng)
            loss, shown = loss + extra, shown | more
        return loss, shown

    def _look(self, seed: int) -> tuple[Seen, Tensor]:
        """Return a case and its vision tokens [1, T, H]."""
        if self._joint:
            case = self._store.get(seed)
            seen = Seen(_NOTHING, _NOTHING, case.truth, case.geometry.extent_mm, places(case.labels))
            window = torch.tensor([self._checkpoint.windows[self._checkpoint.vision.window]])
            levels = self.module.encoder(torch.from_numpy(case.grid(self._checkpoint))[None], window)
            return seen, self.module.projector(*levels)
        seen = self._seen(seed)
        levels = (torch.from_numpy(level).float()[None] for level in (seen.low, seen.high))
        return seen, self.module.projector(*levels)

    @torch.no_grad()
    def _seen(self, seed: int) -> Seen:
        """Return a case with its features, encoded the first time."""
        path = self._features / f"{seed}.npz"
        if not path.is_file():
            case = self._store.get(seed)
            window = torch.tensor([self._checkpoint.windows[self._checkpoint.vision.window]])
            low, high = self.module.encoder(torch.from_numpy(case.grid(self._checkpoint))[None], window)
            found = places(case.labels)
            np.savez(
                path,
                low=low[0].float().half().numpy(),
                high=high[0].float().half().numpy(),
                truth=np.frombuffer(case.truth.model_dump_json().encode(), np.uint8),
                extent_mm=case.geometry.extent_mm,
                values=list(found),
                places=[(p.centre, p.half_extent) for p in found.values()],
            )
        with np.load(path) as data:
            found = {
                int(v): Place(tuple(c.tolist()), tuple(h.tolist()))
                for v, (c, h) in zip(data["values"], data["places"], strict=True)
            }
            truth = Truth.model_validate_json(data["truth"].tobytes())
            return Seen(data["low"], data["high"], truth, tuple(data["extent_mm"].tolist()), found)

    def _cells(self, seed: int) -> Cells:
        """Return what lies in the cells of each vision token of a case."""
        path = self._features / f"{seed}.npy"
        if not path.is_file():
            case = self._store.get(seed)
            labels = by_kind(case)[case.label_grid(self._checkpoint)]
            stride = STEM_STRIDE * 2 ** self._checkpoint.vision.feature_stages[0]
            np.save(path, counted(labels, stride))
        low = np.load(path)
        apart = self._checkpoint.vision.feature_stages[1] - self._checkpoint.vision.feature_stages[0]
        levels = (low, pooled(low, (2**apart,) * 3))
        tokens = [pooled(counts, by) for counts, by in zip(levels, self._pooling, strict=True)]
        return cells_of_counts(np.concatenate([counts.reshape(-1, counts.shape[-1]) for counts in tokens]))

    def _hidden(self, tokens: Tensor, pack: Pack) -> Tensor:
        """Return the states [words, H] after the final norm, vision tokens left out."""
        words = self.module.language.get_input_embeddings()(pack.ids[None])
        out = self.module.language.model(
            inputs_embeds=torch.cat([tokens.to(words.dtype), words], dim=1),
            attention_mask=pack.mask[None, None],
            position_ids=pack.positions[None],
            use_cache=False,
        )
        hidden: Tensor = out.last_hidden_state[0, tokens.shape[1] :]
        return hidden

    def _states(
        self, states: Tensor, wanted: Sequence[Target], rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of [SEG] states FP32 [n, H] against what they should say."""
        truth = torch.from_numpy(np.stack([descriptor(t, None, placed=True) for t in wanted]))
        read = self.module.state_head(states)
        there = truth[:, -8] > 0
        kinds, kind = read[:, : LENGTH - 8], truth[:, : LENGTH - 8].argmax(1)
        loss = cross_entropy(kinds, kind) + binary_cross_entropy_with_logits(read[:, -8], truth[:, -8])
        shown = {"present": ((read[:, -8] > 0) == there).float().mean().item()}
        if there.any():
            error = l1_loss(read[there, -6:], truth[there, -6:])
            loss = loss + _PLACE_WEIGHT * error
            shown["place_error"] = error.item()
        loss = _STATE_WEIGHT * loss
        if self._teacher is not None:
            with torch.no_grad():
                token = self._teacher(truth)
            said = self.module.seg_projector(states)
            error = mse_loss(said, token) / token.var(0).mean()
            loss, shown["token_error"] = loss + _TOKEN_WEIGHT * error, error.item()
        return loss, shown


_NOTHING = np.zeros(0, np.float16)


@dataclass(frozen=True, eq=False)
class Pack:
    """Utterances in one sequence behind T vision tokens; lengths count words only but for mask and positions."""

    ids: Tensor
    """INT64 [L]."""
    positions: Tensor
    """INT64 [T + L]."""
    mask: Tensor
    """BOOL [T + L, T + L], True where a row may look."""
    asked: Tensor
    """INT64: words behind which one of ``wanted`` (INT64) comes, with its ``weight`` (FP32)."""
    wanted: Tensor
    weight: Tensor
    seg: Tensor
    """INT64: places of the [SEG] tokens of ``targets``."""
    targets: tuple[Target, ...]

    @classmethod
    def of(cls, said: Sequence[Utterance], tokenizer: Any, vision: int) -> Pack:  # noqa: ANN401
        """Pack utterances behind ``vision`` tokens."""
        ids: list[int] = []
        owner, positions = [0] * vision, list(range(vision))
        asked: list[int] = []
        wanted: list[int] = []
        weight: list[float] = []
        seg: list[int] = []
        seg_token, end = tokenizer.token_to_id(SEG), tokenizer.token_to_id(EOS)
        for number, one in enumerate(said, 1):
            prompt = tokenizer.encode(one.prompt, add_special_tokens=False).ids
            answer = [*tokenizer.encode(one.answer, add_special_tokens=False).ids, end]
            start = len(ids)
            ids += prompt + answer
            owner += [number] * (len(prompt) + len(answer))
            positions += range(vision, vision + len(prompt) + len(answer))
            first = start + len(prompt)
            asked += range(first - 1, first - 1 + len(answer))
            wanted += answer
            weight += [_DECISIVE_WEIGHT if one.decisive and i < _DECISIVE else 1.0 for i in range(len(answer))]
            seg += [first + i for i, token in enumerate(answer) if token == seg_token]
        owners = torch.tensor(owner)
        total = len(owner)
        causal = torch.ones(total, total, dtype=torch.bool).tril()
        mask = causal & ((owners[None] == 0) | (owners[None] == owners[:, None]))
        return cls(
            torch.tensor(ids),
            torch.tensor(positions),
            mask,
            torch.tensor(asked),
            torch.tensor(wanted),
            torch.tensor(weight),
            torch.tensor(seg, dtype=torch.long),
            tuple(t for one in said for t in one.targets),
        )


def utterances(seen: Seen, templates: PromptTemplates, rng: np.random.Generator) -> list[Utterance]:
    """Return a report, some answers and some segmentations of a case."""
    truth, extent_mm = seen.truth, seen.extent_mm
    report = tuple(finding_target(truth.findings[i], seen.places) for i in seg_targets(truth))
    said = [Utterance(templates.for_report(extent_mm), write_report(truth, rng), report, decisive=False)]
    said.extend(
        Utterance(templates.for_question(asked.question, extent_mm), asked.answer, (), decisive=True)
        for asked in questions(truth, rng, _QUESTIONS)
    )
    said.extend(_segmentation(wanted, seen, templates) for wanted in requests(truth, rng, _REQUESTS))
    return said


def _segmentation(request: SegmentRequest, seen: Seen, templates: PromptTemplates) -> Utterance:
    fill = templates.for_label if request.by_class else templates.for_text
    return Utterance(
        fill(request.text, seen.extent_mm), templates.segment_answer, (_target(request, seen),), decisive=False
    )


def _target(request: SegmentRequest, seen: Seen) -> Target:
    if not request.present:
        # Words for several kinds of finding, none of which is there, mean whatever is least like an organ.
        return absent(str(request.kind or request.organ or FindingKind.LIVER_MASS))
    if request.findings:
        return finding_target(seen.truth.findings[request.findings[0]], seen.places)
    return next(t for t in targets(seen.truth, seen.places) if t.kind == request.organ)
