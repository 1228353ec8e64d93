"""A folder appears whole or stays as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from medvl.contracts.errors import InternalError, SetupError
from medvl.export.folders import locked, replacement, target_of


def fill(folder, text):
    (folder / "file").write_text(text)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "made"
    with locked(made), replacement(made) as staging:
        fill(staging, "old")
    return made


def names(folder):
    return {p.name for p in folder.parent.iterdir() if not p.name.endswith(".lock")}


def test_the_new_folder_takes_the_place(folder):
    """After the block the new content stands there, and nothing is left beside it."""
    with locked(folder), replacement(folder) as staging:
        fill(staging, "new")
        assert (folder / "file").read_text() == "old"
    assert (folder / "file").read_text() == "new"
    assert names(folder) == {"made"}


def fail_to_replace(folder):
    """Start to replace a folder and give up; return whether the new folder began empty."""
    with locked(folder), replacement(folder) as staging:
        empty = not any(staging.iterdir())
        fill(staging, "new")
        raise InternalError(f"The new folder began {'empty' if empty else 'with leftovers'}.")


def test_an_error_leaves_the_old_folder(folder):
    """A block that fails changes nothing."""
    with pytest.raises(InternalError, match="began empty"):
        fail_to_replace(folder)
    assert (folder / "file").read_text() == "old"
    assert names(folder) == {"made"}


def test_a_death_between_the_renames_is_mended(folder):
    """What a killed process set aside comes back, and what it left half made goes."""
    folder.rename(folder.with_name(".made.previous"))
    folder.with_name(".made.staging").mkdir()
    fill(folder.with_name(".made.staging"), "half")
    with pytest.raises(InternalError, match="began empty"):
        fail_to_replace(folder)
    assert (folder / "file").read_text() == "old"
    assert names(folder) == {"made"}


def test_what_a_link_leads_to_is_replaced(folder):
    """The link stays, however often that is done."""
    link = folder.with_name("link")
    link.symlink_to(folder)
    for text in ("new", "newest"):
        with locked(target_of(link)), replacement(target_of(link)) as staging:
            fill(staging, text)
        assert (link.readlink(), (link / "file").read_text()) == (folder, text)
        assert names(folder) == {"made", "link"}


def test_a_mount_point_is_refused_before_the_work():
    """It could not be renamed after it."""
    with pytest.raises(SetupError, match=r"^/proc is a mount point, which cannot be replaced: name a folder in it\.$"):
        target_of(Path("/proc"))
