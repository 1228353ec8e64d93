"""What earlier requests left for the objects of a request, and what it leaves itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from medvl.contracts.messages import ObjectMask, ObjectPrompts, SegmenterRequest, VoxelBox
from medvl.imaging.masks import changed_box
from medvl.network.memory_bank import Known
from medvl.serving.feature_store import SeriesKey
from medvl.serving.result_store import BoundedStore, Key, Result, result_key


@dataclass
class Stores:
    """What is kept between requests: answers, and what corrections can go on from."""

    results: BoundedStore[Result]
    known: BoundedStore[Known[np.ndarray]]


@dataclass
class Past:
    """What the stores hold for one request.

    Attributes
    ----------
    states, masks, regions
        As for :func:`medvl.serving.result_store.result_key`.
    """

    stores: Stores
    series: SeriesKey
    request: SegmenterRequest
    states: np.ndarray | None
    masks: np.ndarray
    regions: np.ndarray | None = None
    local: set[int] = field(default_factory=set)
    """Objects that are tracked around their last correction only."""

    def answer(self, prompts: ObjectPrompts) -> Result | None:
        """Return the answer that an object has had already, None where there is none; an exact one is preferred."""
        exact = self.stores.results.get(self._key(prompts))
        if exact is not None or not self.request.local:
            return exact
        return self.stores.results.get(self._key(prompts, local=True))

    def known(self, asked: Sequence[ObjectPrompts]) -> Mapping[int, Known[np.ndarray]]:
        """Return what is known of objects with as few of their last corrections left out as can be, by number.

        Where the request may be answered locally and all but the last correction is known, the object is ``local``.
        """
        found = ((o.object_id, self._known(o)) for o in asked)
        return {object_id: known for object_id, known in found if known is not None}

    def keep(self, object_id: int, result: Result) -> None:
        """Keep the answer about an object."""
        self.stores.results.put(self._key_of(object_id), result)

    def keep_known(self, object_id: int, known: Known[np.ndarray]) -> None:
        """Keep what further corrections of an object can go on from."""
        self.stores.known.put(self._key_of(object_id), known)

    def compared(self, event: ObjectMask, packed: bytes) -> ObjectMask:
        """Return an answer with the box in which its mask differs from the one that the caller named."""
        sha256 = self._prompts(event.object_id).earlier_sha256
        if sha256 is None:
            return event
        earlier = next((r for r in self.stores.results.of(self.series) if r.mask[1] and r.sha256 == sha256), None)
        box = changed_box(earlier.mask[1], packed, self.request.shape) if earlier and packed else None
        return event if box is None else event.model_copy(update={"changed": VoxelBox(min=box[0], max=box[1])})

    def _known(self, prompts: ObjectPrompts) -> Known[np.ndarray] | None:
        for place, correction in enumerate(reversed(prompts.corrections)):
            before = prompts.before(correction)
            known = self.stores.known.get(self._key(before))
            if self.request.local and not place:
                known = self.stores.known.get(self._key(before, local=True)) if known is None else known
                self.local |= set() if known is None else {prompts.object_id}
            if known is not None:
                return known
        return None

    def _prompts(self, object_id: int) -> ObjectPrompts:
        return next(o for o in self.request.objects if o.object_id == object_id)

    def _key_of(self, object_id: int) -> Key:
        return self._key(self._prompts(object_id), local=object_id in self.local)

    def _key(self, prompts: ObjectPrompts, *, local: bool = False) -> Key:
        return result_key(self.series, prompts, self.states, self.masks, self.regions, local=local)
