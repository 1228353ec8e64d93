"""The tasks that end in text: a report or an answer, with a mask for every [SEG] that the text holds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing

import numpy as np

from medvl.contracts.messages import LanguageOptions, ObjectPrompts
from medvl.orchestrator.language import GeneratedText, LanguageDelta, generate
from medvl.orchestrator.masks import Caption, emit_masks
from medvl.orchestrator.segmentation import PromptedObjects
from medvl.orchestrator.transcript import ResolvedSeg, Transcript
from medvl.orchestrator.vision import Encoded, VisionEncoder
from medvl.orchestrator.work import Work
from medvl.wire.v1 import medvl_pb2 as pb


async def write_text(work: Work, vision: VisionEncoder, prompt: str, options: LanguageOptions) -> GeneratedText:
    """Emit text as it is generated, and a mask for each [SEG] as soon as its hidden state is there.

    Masks are worked on while the text goes on; the call returns when both are complete.

    Parameters
    ----------
    prompt
        What the language model reads, vision tokens aside.

    Raises
    ------
    MedvlError
        What failed first; the rest has been cancelled.
    """
    encoded = await vision.encode(work)
    async with (
        asyncio.TaskGroup() as segmenting,
        aclosing(generate(work, encoded.tokens, prompt, options)) as deltas,
    ):
        with work.call.stages.measure("generate"):
            return await _follow(work, encoded, deltas, segmenting)


async def _follow(
    work: Work, encoded: Encoded, deltas: AsyncIterator[LanguageDelta], segmenting: asyncio.TaskGroup
) -> GeneratedText:
    transcript = Transcript(work.checkpoint.language.seg_token)
    start_s, usage = time.monotonic(), None
    async for delta in deltas:
        if delta.text and not transcript.text:
            work.call.stages.add("first_token", (time.monotonic() - start_s) * 1e3)
        resolved = transcript.add(delta.text, delta.segs)
        if delta.text:
            await work.emitter.emit(pb.Event(text=pb.TextDelta(text=delta.text)))
        for seg in resolved:
            segmenting.create_task(_segment(work, encoded, seg))
        usage = delta.usage or usage
    assert usage is not None, "an answer without its end has raised"
    work.call.spent(usage)
    return GeneratedText(transcript.text, transcript.resolved, usage)


async def _segment(work: Work, encoded: Encoded, seg: ResolvedSeg) -> None:
    prompted = PromptedObjects(
        window=work.checkpoint.segmentation.window,
        objects=(ObjectPrompts(object_id=seg.index, seg_row=0),),
        seg_hidden=seg.hidden[np.newaxis],
        regions=encoded.regions,
    )
    await emit_masks(work, prompted, {seg.index: Caption(span=seg.span)}, previews=False)
