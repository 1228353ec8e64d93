"""What a user gives to an import; told without importing torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medvl.contracts.errors import InvalidRequest

if TYPE_CHECKING:
    from medvl.export.importing.layouts import Option


@dataclass(frozen=True, slots=True)
class Sources:
    """Files and folders as somebody has them on disk."""

    med3dvlm: Path
    """Med3DVLM's transformers folder, or one state dict with all of it, adapters included."""
    sam2: Path | None = None
    seg_projector: Path | None = None
    lora: Path | None = None
    """Folder of a PEFT adapter for the language model."""
    language: Path | None = None
    """Transformers folder with configuration and tokenizer, where :attr:`med3dvlm` is a file."""
    lora_alpha: float | None = None
    leave: tuple[str, ...] = ()
    """Patterns of tensor names, as the files have them, that are left out knowingly."""

    @property
    def weights(self) -> dict[Option, Path]:
        """Sources of weights by their options."""
        given: dict[Option, Path | None] = {
            "--med3dvlm": self.med3dvlm,
            "--lora": self.lora,
            "--sam2": self.sam2,
            "--seg-projector": self.seg_projector,
        }
        return {option: path for option, path in given.items() if path is not None}

    @property
    def language_folder(self) -> Path:
        """Folder with the language model's configuration and tokenizer.

        Raises
        ------
        InvalidRequest
            When nothing names it.
        """
        folder = self.language or self.med3dvlm
        if folder.is_file():
            raise InvalidRequest(
                f"{folder.name} is a file of weights: give the transformers folder with its config.json and tokenizer "
                "by --language."
            )
        return folder
