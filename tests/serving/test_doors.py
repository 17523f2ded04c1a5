"""Who may come in to a server whose file of tokens is empty."""

from __future__ import annotations

from pathlib import Path

import pytest

from normfold.serving.doors import Doors
from normfold.serving.errors import StartError
from normfold.serving.settings import ServerConfig


def test_a_server_without_a_token_starts_only_where_it_had_one_before(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("# hospital infer * sha256:…\n", encoding="utf-8")
    config = ServerConfig(repository=tmp_path, tokens=tmp_path / "tokens")
    with pytest.raises(StartError, match="has no line: nobody could come in; normfold token NAME makes one"):
        Doors(config)
    assert Doors(config, again=True).access is not None
