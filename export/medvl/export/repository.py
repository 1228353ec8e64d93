"""The folder that Triton serves: what stands where, apart from the networks."""

from __future__ import annotations

import shutil
from pathlib import Path

import medvl.export
from medvl.contracts import pbtxt
from medvl.contracts.checkpoint import CHECKPOINT_FILE, LANGUAGE_FOLDER, PROPOSALS_FILE
from medvl.contracts.errors import SetupError
from medvl.contracts.manifest import MANIFEST_FILE, MODELS_FOLDER, files_of
from medvl.contracts.models import MODELS
from medvl.export.folders import VERSION, link
from medvl.export.quantised import QuantisedLanguage

TEMPLATE = "model_repository"


def template_folder() -> Path:
    """Return the committed template: package data of the wheel, or the folder of the source tree.

    Raises
    ------
    SetupError
        When the installation holds neither.
    """
    package = Path(medvl.export.__file__).parent
    for folder in (package / TEMPLATE, package.parents[2] / TEMPLATE):
        if folder.is_dir():
            return folder
    raise SetupError("The installation holds no model repository template: install medvl-sam2 again.")


def version_folder(repository: Path, model: str) -> Path:
    """Return the folder of a model's only version."""
    return repository / MODELS_FOLDER / model / VERSION


def write_skeleton(repository: Path, checkpoint: Path, language: QuantisedLanguage | None = None) -> None:
    """Write everything but the networks: configurations, entry points, ``checkpoint.json``, the language model.

    The language model's weights are the given files under a second name, where the file system can do that.

    Parameters
    ----------
    repository
        An empty folder.
    checkpoint
        A checkpoint folder that holds the contract.
    language
        What is served in the place of its language model.
    """
    text = (checkpoint / CHECKPOINT_FILE).read_text("utf-8")
    (repository / CHECKPOINT_FILE).write_text(text, "utf-8")
    pbtxt.write_all(repository / MODELS_FOLDER, text, language.quantisation.model_dump_json() if language else None)
    template = template_folder()
    for model in MODELS:
        folder = version_folder(repository, model)
        folder.mkdir(parents=True)
        entry_point = template / model / VERSION / "model.py"
        if entry_point.is_file():
            shutil.copyfile(entry_point, folder / entry_point.name)
    if (checkpoint / PROPOSALS_FILE).is_file():
        shutil.copyfile(checkpoint / PROPOSALS_FILE, version_folder(repository, "volume_segmenter") / PROPOSALS_FILE)
    _write_language(
        language.folder if language else checkpoint / LANGUAGE_FOLDER,
        version_folder(repository, "llm") / LANGUAGE_FOLDER,
    )


def _write_language(source: Path, folder: Path) -> None:
    """Link weights, which are gigabytes; copy the rest, which an editor may change in place."""
    for name, path in files_of(source).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            link(path, folder / name)
        else:
            shutil.copyfile(path, folder / name)


def refuse_foreign(folder: Path) -> None:
    """Refuse to replace a folder that no build has written.

    Raises
    ------
    SetupError
        When the folder holds something, and that is not a repository.
    """
    if folder.exists() and not (folder / MANIFEST_FILE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise SetupError(f"The folder {folder} holds something else than a repository: name another with --out.")
