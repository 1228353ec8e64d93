"""The names that public code gives its tensors, and which tensor of which part each is.

Facts, read in public repositories (owner/name, path, commit):

- mirthAI/Med3DVLM at cbbd633: ``src/model/vlm_arch.py`` puts ``vision_tower`` and ``mm_projector`` beside the layers of
  the Qwen2 model, ``src/model/encoder/builder.py`` wraps DCFormer in another ``vision_tower``, and
  ``src/train/train_vlm.py`` saves the state dict of a PEFT model whole (``model_with_lora.bin``).
- huggingface/peft, docs/source/developer_guides/checkpoint.md: a PEFT model is ``base_model.model``, a layer with an
  adapter keeps its own weights in ``base_layer``; in a whole state dict the adapter's name follows ``lora_A``.
- facebookresearch/sam2 at 2b90b9f and bowang-lab/MedSAM2 at 332f30d: a state dict of ``SAM2Base``, without prefix.
- magic-research/Sa2VA at d01bf3f: ``projects/llava_sam2/hf/models/modeling_sa2va_chat.py`` names ``text_hidden_fcs``
  (linear layers at 0 and 2) and ``grounding_encoder.sam2_model``; ``projects/llava_sam2/hf/convert_to_hf.py`` renames
  every ``gamma`` to ``g_weight``. LISA and what follows it keep ``text_hidden_fcs`` in a list of one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from medvl.contracts.checkpoint import LANGUAGE_FOLDER

Option = Literal["--med3dvlm", "--lora", "--sam2", "--seg-projector"]
LORA_A, LORA_B = "lora_A", "lora_B"
"""Where the two factors of adapters go, by the name of the language model's weight that they change."""

_PEFT = r"(?:base_model\.model\.)?"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor belongs."""

    part: str
    """A part of the contract, the language model's folder, or a factor of an adapter."""
    name: str


@dataclass(frozen=True, slots=True)
class Rule:
    """Public names that match as a whole belong to a part; ``part`` and ``name`` may refer to groups."""

    pattern: str
    part: str
    name: str = r"\1"

    def place(self, public_name: str) -> Place | None:
        """Return where a tensor belongs, or None where the rule is not about it."""
        match = re.fullmatch(self.pattern, public_name)
        return None if match is None else Place(match.expand(self.part), match.expand(self.name))


_SEG_PROJECTOR = Rule(_PEFT + r"(?:model\.)?text_hidden_fcs\.(?:0\.)?([02]\.(?:weight|bias))", "seg_projector")
_MODEL = (
    Rule(_PEFT + r"(.+)\.lora_([AB])(?:\.default)?\.weight", r"lora_\2", r"\1.weight"),
    Rule(_PEFT + r"model\.vision_tower\.vision_tower\.(.+)", "vision_encoder"),
    Rule(_PEFT + r"model\.mm_projector\.(.+)", "projector"),
    _SEG_PROJECTOR,
    Rule(_PEFT + r"(?:model\.)?grounding_encoder\.sam2_model\.(.+)\.g_weight", "sam2", r"\1.gamma"),
    Rule(_PEFT + r"(?:model\.)?grounding_encoder\.sam2_model\.(.+)", "sam2"),
    Rule(_PEFT + r"((?:model|lm_head)(?:\..+?)??)(?:\.base_layer)?(\.weight|\.bias)", LANGUAGE_FOLDER, r"\1\2"),
)

LAYOUTS: dict[Option, tuple[Rule, ...]] = {
    "--med3dvlm": _MODEL,
    "--lora": _MODEL,
    "--sam2": (Rule(r"(.+)", "sam2"),),
    "--seg-projector": (_SEG_PROJECTOR, Rule(r"([02]\.(?:weight|bias))", "seg_projector")),
}
"""The rules of each source, first match first."""

GIVEN_BY: dict[str, Option] = {
    "vision_encoder": "--med3dvlm",
    "projector": "--med3dvlm",
    "seg_projector": "--seg-projector",
    "sam2": "--sam2",
    LANGUAGE_FOLDER: "--med3dvlm",
}
"""The option that usually brings a part."""

SAM_2_1_ONLY = ("no_obj_embed_spatial", "obj_ptr_tpos_proj.bias", "obj_ptr_tpos_proj.weight")
"""What SAM2.1 has and SAM2 does not.

SAM2's configurations differ from SAM2.1's in four lines, which switch off the embedding of an absent object and the
temporal position of object pointers (facebookresearch/sam2, sam2/configs, at 2b90b9f). Both are sums whose second term
is zero where these tensors are: SAM2 is SAM2.1 with zeros.
"""


def place(option: Option, public_name: str) -> Place | None:
    """Return where a tensor of a source belongs, or None where no rule knows its name."""
    return next((found for rule in LAYOUTS[option] if (found := rule.place(public_name))), None)
