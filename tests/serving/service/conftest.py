"""A server that a test may change, and a call that must fail."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest


@pytest.fixture
def own(serve: Callable[..., Any], repository: Path, tmp_path: Path) -> Iterator[Any]:
    """A server over a copy of the repository, for tests that change it."""
    copy = tmp_path / "repository"
    shutil.copytree(repository, copy)
    with serve(copy, strict_readiness=False) as one:
        one.folder = copy
        yield one


@pytest.fixture(scope="session")
def refused() -> Callable[[Any, str, Any], tuple[grpc.StatusCode, str]]:
    """Makes a call that fails; its status and its details."""

    def refused(server: Any, method: str, request: Any) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.RpcError) as caught:
            server.call(method, request)
        return caught.value.code(), caught.value.details()

    return refused
