"""Writing the embedding model's file."""

from __future__ import annotations

from pathlib import Path

import pytest

from sollol_proxy.lab import gguf_minilm


def test_cache_folder_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert gguf_minilm.cache_folder() == tmp_path / "sollol-proxy"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert gguf_minilm.cache_folder() == tmp_path / ".cache" / "sollol-proxy"


@pytest.mark.real_model
@pytest.mark.real_model
def test_file_is_written_once_and_leaves_nothing_else(tmp_path: Path) -> None:
    first = gguf_minilm.minilm_gguf(tmp_path / "new")
    assert first.read_bytes()[:4] == b"GGUF"
    written = first.stat()
    assert list(first.parent.iterdir()) == [first]
    assert gguf_minilm.minilm_gguf(tmp_path / "new").stat().st_ino == written.st_ino


@pytest.mark.real_model
def test_nothing_is_left_when_writing_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gguf_minilm, "PACKAGE", "no_such_package")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        gguf_minilm.minilm_gguf(tmp_path)
    assert list(tmp_path.iterdir()) == []
