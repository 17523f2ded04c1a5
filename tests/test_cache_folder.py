from __future__ import annotations

from pathlib import Path

import pytest

from normfold.cache_folder import cache_folder


def test_the_cache_folder_is_the_named_one_else_that_of_the_desktop_specification_else_in_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NORMFOLD_CACHE_DIR", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "own"
    assert cache_folder("threads") == tmp_path / "own" / "threads"
    monkeypatch.delenv("NORMFOLD_CACHE_DIR")
    assert cache_folder() == tmp_path / "xdg" / "normfold"
    assert cache_folder("threads") == tmp_path / "xdg" / "normfold" / "threads"
    in_home = tmp_path / "home" / ".cache" / "normfold"
    for ignored in ("relative", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache_folder("threads") == in_home / "threads"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == in_home


def test_without_a_home_directory_there_is_no_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("NORMFOLD_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder("threads") is None
