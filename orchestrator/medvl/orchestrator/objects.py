"""The task that segments objects: by class and by text through the language model, by points and boxes directly."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvl.contracts.errors import InternalError
from medvl.contracts.messages import LanguageOptions, ObjectPrompts
from medvl.orchestrator.language import generate
from medvl.orchestrator.masks import Caption, emit_masks
from medvl.orchestrator.prompts import SpatialObject, TextObject
from medvl.orchestrator.segmentation import PromptedObjects
from medvl.orchestrator.vision import VisionEncoder
from medvl.orchestrator.work import Work


async def segment_objects(
    work: Work, vision: VisionEncoder, objects: Sequence[TextObject | SpatialObject], *, previews: bool
) -> None:
    """Emit one mask for each object; its ``object`` is the place in ``objects``.

    Points and boxes do not wait for the language model. Objects of one kind that look through one window are segmented
    together, so that the segmenter batches them.

    Raises
    ------
    MedvlError
        What failed first; the rest has been cancelled.
    """
    spatial = {i: o for i, o in enumerate(objects) if isinstance(o, SpatialObject)}
    by_window: dict[str, dict[int, TextObject]] = {}
    for i, o in enumerate(objects):
        if isinstance(o, TextObject):
            by_window.setdefault(o.window, {})[i] = o
    async with asyncio.TaskGroup() as group:
        if spatial:
            group.create_task(_spatial(work, spatial, previews=previews))
        for window, texts in by_window.items():
            group.create_task(_described(work, vision, window, texts, previews=previews))


async def _spatial(work: Work, objects: dict[int, SpatialObject], *, previews: bool) -> None:
    prompted = PromptedObjects(
        window=work.checkpoint.segmentation.window,
        objects=tuple(ObjectPrompts(object_id=i, points=o.points, boxes=o.boxes) for i, o in objects.items()),
    )
    await emit_masks(work, prompted, {i: Caption(words=o.words) for i, o in objects.items()}, previews=previews)


async def _described(
    work: Work, vision: VisionEncoder, window: str, objects: dict[int, TextObject], *, previews: bool
) -> None:
    hidden = await _hidden_states(work, vision, [o.prompt for o in objects.values()])
    prompted = PromptedObjects(
        window=window,
        objects=tuple(ObjectPrompts(object_id=i, seg_row=row) for row, i in enumerate(objects)),
        seg_hidden=hidden,
    )
    captions = {i: Caption(o.label, o.words) for i, o in objects.items()}
    await emit_masks(work, prompted, captions, previews=previews)


async def _hidden_states(work: Work, vision: VisionEncoder, prompts: Sequence[str]) -> NDArray[Any]:
    """Return float32 [n, H]: the [SEG] state that the language model gives each prompt."""
    tokens = await vision.tokens(work)
    with work.call.stages.measure("generate"):
        async with asyncio.TaskGroup() as group:
            states = [group.create_task(_hidden_state(work, tokens, prompt)) for prompt in prompts]
    return np.stack([state.result() for state in states])


async def _hidden_state(work: Work, tokens: NDArray[Any], prompt: str) -> NDArray[Any]:
    language = work.checkpoint.language
    options = LanguageOptions(max_tokens=language.max_answer_tokens, answer_template=language.prompts.segment_answer)
    states: list[NDArray[Any]] = []
    async with aclosing(generate(work.triton, tokens, prompt, options, work.call)) as deltas:
        async for delta in deltas:
            states.extend(seg.hidden for seg in delta.segs)
            if delta.usage is not None:
                work.call.spent(delta.usage)
    if len(states) != 1:
        raise InternalError("The language model gave its forced answer without the one [SEG] state.")
    return states[0]
