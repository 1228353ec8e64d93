"""The language path learns to speak: vision tokens to reports, answers and [SEG] states.

All that is said about a case goes through the language model in one sequence: the vision tokens, then one utterance
after another, each of which sees the vision tokens and itself only, at the positions that it has when it is served.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from transformers import Qwen2ForCausalLM

from medvl.contracts.checkpoint import Checkpoint, PromptTemplates
from medvl.embedded.facts import seg_targets
from medvl.embedded.questions import questions
from medvl.embedded.report import write_report
from medvl.embedded.requests import SegmentRequest, requests
from medvl.embedded.truth import FindingKind, Truth
from medvl.embedded.vocabulary import EOS, SEG
from medvl.network.modules import Modules
from medvl.network.projector import MixerLayer
from medvl.network.vision import scaled_to
from medvl.training.cases import Case, CaseStore
from medvl.training.descriptors import (
    KINDS,
    LENGTH,
    PLACE,
    PRESENT,
    Target,
    Teacher,
    absent,
    descriptor,
    finding_target,
    targets,
)
from medvl.training.perception import (
    REGION_WEIGHT,
    Grids,
    Parts,
    cells_of_counts,
    counts_of,
    freeze_statistics,
    heads,
    jittered,
    lay_out,
    pooled,
    read_cells,
    read_levels,
    window_of,
)
from medvl.training.regions import region_loss

_QUESTIONS, _REQUESTS = 10, 8
_MULTIPLE = 64
"""Of words, that sequences are filled up to: few lengths make few plans."""
_DECISIVE = 2
"""Tokens at the beginning of an answer that count more, because they decide it."""
_DECISIVE_WEIGHT = 3.0
_LINEAR_BIAS = 2.0
"""Where a GELU is nearly a straight line for what a layer norm gives."""
_RANDOM_SHARE = 0.1
"""Share of a random initialisation that stays."""
_STATE_WEIGHT, _PLACE_WEIGHT, _TOKEN_WEIGHT, _LEVELS_WEIGHT = 0.5, 4.0, 1.0, 0.3


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
    members = torch.tensor(np.eye(int(token.max()) + 1, dtype=np.float32)[:, token])
    for layer in mixer:
        assert isinstance(layer, MixerLayer)
        first, *further = (m for m in layer.mlp1.modules() if isinstance(m, nn.Linear))
        # The sum of equals is divided by the root of their number, which keeps the size of what is unlike.
        _set_near(first, members / members.sum(1, keepdim=True).sqrt(), _LINEAR_BIAS if further else 0.0)
        for linear in further:
            _set_near(linear, torch.eye(linear.out_features), -_LINEAR_BIAS)
        members = torch.eye(len(members))


def _set_near(linear: nn.Linear, weight: Tensor, bias: float) -> None:
    linear.weight.mul_(_RANDOM_SHARE).add_(weight)
    linear.bias.fill_(bias)


@dataclass(frozen=True, slots=True)
class Utterance:
    """A prompt and what is to be said to it; ``targets`` are the objects of its [SEG] tokens, in order."""

    prompt: str
    answer: str
    targets: tuple[Target, ...]
    decisive: bool


class Speaking(nn.Module):
    """Encoder, projector, language model and seg projector, with heads that no checkpoint keeps.

    One reads descriptors from [SEG] states; one reads from each vision token what lies in the cells that it began with;
    those of :class:`medvl.training.perception.Seeing` go on teaching the encoder.
    """

    language: Any

    def __init__(self, modules: Modules, language: Qwen2ForCausalLM) -> None:
        super().__init__()
        self.encoder = modules.vision_encoder
        self.projector = modules.projector
        self.seg_projector = modules.seg_projector
        self.language = language
        self.state_head = nn.Linear(modules.checkpoint.language.hidden_size, LENGTH)
        (self.token_head,) = heads([modules.checkpoint.language.hidden_size])
        vision = modules.checkpoint.vision
        self.heads = heads(vision.dims[: max(vision.feature_stages) + 1])


@dataclass(frozen=True, eq=False)
class Spoken:
    """B cases, and all that is said about each of them in one sequence of at most L words behind T vision tokens."""

    seeds: tuple[int, ...]
    edges: Tensor
    lesions: Tensor
    """As of :class:`medvl.training.perception.Parts`."""
    ids: Tensor
    """INT64 [B, L]."""
    owner: Tensor
    """INT64 [B, L], number of the utterance of a word, from 1; 0 behind the last one."""
    positions: Tensor
    """INT64 [B, L], behind the vision tokens."""
    asked: Tensor
    """INT64: words, counted through the batch, behind which one of ``wanted`` (INT64) comes."""
    wanted: Tensor
    weight: Tensor
    """FP32, of each of ``wanted``."""
    seg: Tensor
    """INT64: places of [SEG] tokens, counted through the batch."""
    truth: Tensor
    """FP32 [len(seg), LENGTH], descriptors of what they stand for."""


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
        SAM2's teacher of language prompts, which the seg projector learns to stand in for.
    store
        Cases; they come again and again.
    batch
        Cases of a step.
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
        teacher: Teacher,
        store: CaseStore,
        batch: int,
        pooling: tuple[tuple[int, int, int], tuple[int, int, int]],
        joint: bool,
    ) -> None:
        self._checkpoint = checkpoint
        self._tokenizer = tokenizer
        self._teacher = teacher
        self._store = store
        self._batch = batch
        self._pooling = pooling
        self.module = Speaking(modules, language)
        self._joint = joint
        self._grids = Grids(checkpoint, store)
        self.module.encoder.requires_grad_(requires_grad=joint)
        self.module.heads.requires_grad_(requires_grad=joint)
        self.module.train()
        lay_out(self.module.encoder)
        freeze_statistics(self.module)

    def draw(self, step: int, rng: np.random.Generator) -> Spoken:
        """Return cases and what is said about them."""
        cases = [self._store.draw(rng, step) for _ in range(self._batch)]
        prompts = self._checkpoint.language.prompts
        packs = [Pack.of(utterances(case, prompts, rng), self._tokenizer) for case in cases]
        return spoken(Parts.of(cases), packs)

    def loss(self, step: int, drawn: Spoken) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the loss of everything that is said about the cases of a batch."""
        views = self._grids.views(drawn.seeds, drawn.edges)
        with torch.autocast(views.hu.device.type, torch.bfloat16):
            scaled = scaled_to(jittered(views.hu), window_of(self._checkpoint, len(views.hu)))
            levels = self.module.encoder.levels(scaled)
            # What regions tell is added to tokens once they have been learnt.
            tokens = self.module.projector.seen(*(levels[n] for n in self._checkpoint.vision.feature_stages))
            hidden = hidden_of(self.module.language, tokens, drawn.ids, drawn.owner, drawn.positions)
            logits = self.module.language.lm_head(hidden[drawn.asked])
        plain = cross_entropy(logits.float(), drawn.wanted, reduction="none")
        loss = (plain * drawn.weight).sum() / drawn.weight.sum()
        right = (logits.argmax(-1) == drawn.wanted).float()
        decisive = (drawn.weight > 1).float()
        shown = {"words": right.mean(), "decisive": (right * decisive).sum() / decisive.sum()}
        counts = counts_of(views.kinds, len(levels))
        held = self._of_tokens(counts)
        seeing, seen = read_cells(self.module.token_head(tokens.float()), cells_of_counts(held))
        loss, shown = loss + seeing, shown | seen
        if self._joint:
            read = [head(level.float()) for head, level in zip(self.module.heads, levels, strict=True)]
            seeing, seen = read_levels(read, counts)
            loss, shown = loss + _LEVELS_WEIGHT * seeing, shown | seen
            with torch.autocast(views.hu.device.type, torch.bfloat16):
                scores, outlines = self.module.encoder.read_regions(levels)
            scores, outlines = scores.float(), outlines.float()
            finding, found = region_loss(scores, outlines, drawn.lesions, self.module.encoder.fine_cells)
            loss, shown = loss + REGION_WEIGHT * finding, shown | found
        if len(drawn.seg):
            extra, more = self._states(hidden[drawn.seg].float(), drawn.truth)
            loss, shown = loss + extra, shown | more
        return loss, shown

    def _of_tokens(self, counts: Sequence[Tensor]) -> Tensor:
        """Return what lies in the cells of each vision token, [B, tokens, kinds]."""
        levels = (counts[stage] for stage in self._checkpoint.vision.feature_stages)
        tokens = [pooled(level, by) for level, by in zip(levels, self._pooling, strict=True)]
        return torch.cat([held.flatten(1, 3) for held in tokens], 1)

    def _states(self, states: Tensor, truth: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of [SEG] states FP32 [n, H] against the descriptors [n, LENGTH] that they should say."""
        read = self.module.state_head(states)
        there = truth[:, PRESENT] > 0
        kinds, kind = read[:, KINDS], truth[:, KINDS].argmax(1)
        apart = ((read[:, PLACE] - truth[:, PLACE]).abs().mean(1) * there).sum() / there.sum().clamp(min=1)
        loss = cross_entropy(kinds, kind) + binary_cross_entropy_with_logits(read[:, PRESENT], truth[:, PRESENT])
        loss = _STATE_WEIGHT * (loss + _PLACE_WEIGHT * apart)
        shown = {"present": ((read[:, PRESENT] > 0) == there).float().mean(), "place_error": apart}
        with torch.no_grad():
            token = self._teacher(truth)
        said = self.module.seg_projector(states)
        error = mse_loss(said, token) / token.var(0).mean()
        return loss + _TOKEN_WEIGHT * error, {**shown, "token_error": error}


@dataclass(frozen=True, eq=False)
class Pack:
    """Utterances in one sequence of L words."""

    ids: list[int]
    owner: list[int]
    """Number of the utterance of each word, from 1."""
    positions: list[int]
    """Of each word behind the vision tokens, as when its utterance stands alone."""
    asked: list[int]
    """Words behind which one of ``wanted`` comes, with its ``weight``."""
    wanted: list[int]
    weight: list[float]
    seg: list[int]
    """Places of the [SEG] tokens of ``targets``."""
    targets: tuple[Target, ...]

    @classmethod
    def of(cls, said: Sequence[Utterance], tokenizer: Any) -> Pack:  # noqa: ANN401
        """Pack utterances."""
        pack = cls([], [], [], [], [], [], [], tuple(t for one in said for t in one.targets))
        seg_token, end = tokenizer.token_to_id(SEG), tokenizer.token_to_id(EOS)
        for number, one in enumerate(said, 1):
            prompt = tokenizer.encode(one.prompt, add_special_tokens=False).ids
            answer = [*tokenizer.encode(one.answer, add_special_tokens=False).ids, end]
            first = len(pack.ids) + len(prompt)
            pack.ids.extend(prompt + answer)
            pack.owner.extend([number] * (len(prompt) + len(answer)))
            pack.positions.extend(range(len(prompt) + len(answer)))
            pack.asked.extend(range(first - 1, first - 1 + len(answer)))
            pack.wanted.extend(answer)
            pack.weight.extend(_DECISIVE_WEIGHT if one.decisive and i < _DECISIVE else 1.0 for i in range(len(answer)))
            pack.seg.extend(first + i for i, token in enumerate(answer) if token == seg_token)
        return pack


def seen_by(owner: Tensor, vision: int) -> Tensor:
    """Return where each row of a sequence may look, BOOL [B, 1, T + L, T + L], rows first.

    Parameters
    ----------
    owner
        INT64 [B, L], number of the utterance of each word.
    vision
        T, vision tokens before the words; everybody sees them.
    """
    owners = torch.cat([torch.full((len(owner), vision), -1), owner], dim=1)
    causal = torch.ones(owners.shape[1], owners.shape[1], dtype=torch.bool).tril()
    mask = causal & ((owners[:, None] == -1) | (owners[:, None] == owners[..., None]))
    return mask[:, None]


def hidden_of(language: Any, tokens: Tensor, ids: Tensor, owner: Tensor, positions: Tensor) -> Tensor:  # noqa: ANN401
    """Return the states [B * L, H] after the final norm of :class:`Spoken` words behind vision tokens [B, T, H]."""
    words = language.get_input_embeddings()(ids)
    vision = tokens.shape[1]
    before = torch.arange(vision).expand(len(tokens), -1)
    out = language.model(
        inputs_embeds=torch.cat([tokens.to(words.dtype), words], dim=1),
        attention_mask=seen_by(owner, vision),
        position_ids=torch.cat([before, vision + positions], dim=1),
        use_cache=False,
    )
    hidden: Tensor = out.last_hidden_state[:, vision:].flatten(0, 1)
    return hidden


@torch.inference_mode()
def states_of(language: Qwen2ForCausalLM, tokens: Tensor, pack: Pack) -> NDArray[np.float32]:
    """Return the states FP32 [n, H] of the [SEG] tokens of a pack behind vision tokens FP32 [T, H]."""
    ids, owner, positions = (torch.tensor([each]) for each in (pack.ids, pack.owner, pack.positions))
    return np.asarray(hidden_of(language, tokens[None], ids, owner, positions)[pack.seg].float().numpy())


def spoken(parts: Parts, packs: Sequence[Pack]) -> Spoken:
    """Return what is said about several cases as one batch; shorter sequences are filled up with words of nobody."""
    longest = max(len(p.ids) for p in packs)
    length = -(-longest // _MULTIPLE) * _MULTIPLE

    def rows(name: str) -> Tensor:
        filled = [getattr(p, name) + [0] * (length - len(p.ids)) for p in packs]
        return torch.tensor(filled, dtype=torch.long)

    def words(name: str) -> Tensor:
        return torch.tensor([at + i * length for i, p in enumerate(packs) for at in getattr(p, name)], dtype=torch.long)

    truth = [descriptor(t, None, placed=True) for p in packs for t in p.targets]
    return Spoken(
        seeds=parts.seeds,
        edges=parts.edges,
        lesions=parts.lesions,
        ids=rows("ids"),
        owner=rows("owner"),
        positions=rows("positions"),
        asked=words("asked"),
        wanted=torch.tensor([token for p in packs for token in p.wanted]),
        weight=torch.tensor([weight for p in packs for weight in p.weight]),
        seg=words("seg"),
        truth=torch.from_numpy(np.array(truth, np.float32).reshape(-1, LENGTH)),
    )


def utterances(
    case: Case, templates: PromptTemplates, rng: np.random.Generator, reported: Truth | None = None
) -> list[Utterance]:
    """Return a report, some answers and some segmentations of a case.

    Parameters
    ----------
    reported
        What the report tells, if not all that is there.
    """
    truth, extent_mm = case.truth, case.geometry.extent_mm
    reported = truth if reported is None else reported
    report = tuple(finding_target(reported.findings[i], case.places) for i in seg_targets(reported))
    said = [Utterance(templates.for_report(extent_mm), write_report(reported, rng), report, decisive=False)]
    said.extend(
        Utterance(templates.for_question(asked.question, extent_mm), asked.answer, (), decisive=True)
        for asked in questions(truth, rng, _QUESTIONS)
    )
    said.extend(segmentation(wanted, case, templates) for wanted in requests(truth, rng, _REQUESTS))
    return said


def segmentation(request: SegmentRequest, case: Case, templates: PromptTemplates) -> Utterance:
    """Return a request for one mask, and the answer to it."""
    fill = templates.for_label if request.by_class else templates.for_text
    return Utterance(
        fill(request.text, case.geometry.extent_mm),
        templates.segment_answer,
        (target_of(request, case),),
        decisive=False,
    )


def target_of(request: SegmentRequest, case: Case) -> Target:
    """Return what a request means in a case."""
    if not request.present:
        # Words for several kinds of finding, none of which is there, mean whatever is least like an organ.
        return absent(str(request.kind or request.organ or FindingKind.LIVER_MASS))
    if request.findings:
        return finding_target(case.truth.findings[request.findings[0]], case.places)
    return next(t for t in targets(case.truth, case.places) if t.kind == request.organ)
