"""Data lies where the user or the XDG specification says."""

from __future__ import annotations

from pathlib import Path

from medvl.contracts.paths import data_folder


def test_the_folder_is_the_one_that_is_named(monkeypatch, tmp_path):
    """``MEDVL_HOME`` goes before ``XDG_DATA_HOME``, which goes before the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MEDVL_HOME", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert data_folder() == tmp_path / ".local" / "share" / "medvl"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    assert data_folder() == tmp_path / "xdg" / "medvl"
    monkeypatch.setenv("MEDVL_HOME", "~/mine")
    assert data_folder() == Path(tmp_path / "mine").resolve()
