"""The task that segments objects: words go through the language model first, what is shown goes to the segmenter."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvl.contracts.errors import InternalError
from medvl.contracts.messages import GivenMask, LanguageOptions, ObjectPrompts
from medvl.imaging.cleanup import NO_CLEANUP, Cleanup
from medvl.orchestrator.language import generate
from medvl.orchestrator.masks import Caption, emit_masks
from medvl.orchestrator.prompts import AskedObject, check_masks
from medvl.orchestrator.segmentation import PromptedObjects
from medvl.orchestrator.vision import VisionEncoder
from medvl.orchestrator.work import Work


@dataclass(frozen=True, slots=True)
class SegmentOptions:
    """How objects are segmented.

    Attributes
    ----------
    previews
        Whether the 2D mask of each prompted slice is sent, too.
    local
        Whether tracking may stay around the last correction.
    cleanup
        What masks are cleaned of.
    """

    previews: bool = False
    local: bool = False
    cleanup: Cleanup = NO_CLEANUP


async def segment_objects(
    work: Work, vision: VisionEncoder, objects: Sequence[AskedObject], options: SegmentOptions
) -> None:
    """Emit one mask for each object; its ``object`` is the place in ``objects``.

    What nobody describes in words does not wait for the language model. Objects of one kind that look through one
    window are segmented together, so that the segmenter batches them.

    Raises
    ------
    InvalidRequest
        As :func:`medvl.orchestrator.prompts.check_masks`, before a model is asked.
    MedvlError
        What failed first; the rest has been cancelled.
    """
    if any(o.mask for o in objects):
        await asyncio.to_thread(check_masks, objects, work.series.volume.geometry)
    together: dict[tuple[str, bool], dict[int, AskedObject]] = defaultdict(dict)
    for i, o in enumerate(objects):
        together[o.window, o.prompt is not None][i] = o
    async with asyncio.TaskGroup() as group:
        for (window, described), members in together.items():
            group.create_task(_segment(work, vision, window, members, options, described=described))


async def _segment(
    work: Work,
    vision: VisionEncoder,
    window: str,
    objects: dict[int, AskedObject],
    options: SegmentOptions,
    *,
    described: bool,
) -> None:
    questions = [o.prompt for o in objects.values() if o.prompt is not None]
    encoded = await vision.encode(work) if described else None
    hidden = await _hidden_states(work, encoded.tokens, questions) if encoded else None
    prompts, masks = [], b""
    for row, (i, o) in enumerate(objects.items()):
        given = GivenMask(start=len(masks), length=len(o.mask)) if o.mask else None
        masks += o.mask
        seg_row = row if described else None
        prompts.append(
            ObjectPrompts(
                object_id=i,
                points=o.points,
                boxes=o.boxes,
                mask=given,
                seg_row=seg_row,
                earlier_sha256=o.earlier_sha256,
            )
        )
    regions = encoded.regions if encoded else None
    prompted = PromptedObjects(window, tuple(prompts), hidden, regions, masks, options.local)
    captions = {i: Caption(o.label, o.words) for i, o in objects.items()}
    await emit_masks(work, prompted, captions, previews=options.previews, cleanup=options.cleanup)


async def _hidden_states(work: Work, tokens: NDArray[Any], prompts: Sequence[str]) -> NDArray[Any]:
    """Return float32 [n, H]: the [SEG] state that the language model gives each prompt."""
    with work.call.stages.measure("generate"):
        async with asyncio.TaskGroup() as group:
            states = [group.create_task(_hidden_state(work, tokens, prompt)) for prompt in prompts]
    return np.stack([state.result() for state in states])


async def _hidden_state(work: Work, tokens: NDArray[Any], prompt: str) -> NDArray[Any]:
    language = work.checkpoint.language
    options = LanguageOptions(max_tokens=language.max_answer_tokens, answer_template=language.prompts.segment_answer)
    states: list[NDArray[Any]] = []
    async with work.parts, aclosing(generate(work, tokens, prompt, options)) as deltas:
        async for delta in deltas:
            states.extend(seg.hidden for seg in delta.segs)
            if delta.usage is not None:
                work.call.spent(delta.usage)
    if len(states) != 1:
        raise InternalError("The language model gave its forced answer without the one [SEG] state.")
    return states[0]
