"""The command that comes after an export: where a server already runs, it need only load the model."""

from __future__ import annotations

import shlex
import socket
from pathlib import Path

from normfold.cli.control import LOADS

#: The longest wait for a server that may not be there, and for each of its answers, in seconds.
CONNECT_SECONDS, ANSWER_SECONDS = 0.2, 1.0


def after_export(repository: Path, model: str, version: int, address: str) -> str:
    """``normfold load`` where the server on ``address`` has ``model`` in its repository and lets clients load models.

    Otherwise, and where nobody answers in time, ``normfold serve``; ``normfold use`` where neither would serve the
    version, because the version_policy of the model chooses others. Words that a shell would take apart are quoted.
    """
    words: tuple[str, ...] = ("serve", "--repository", str(repository))
    if not _is_chosen(repository / model, version):
        words = ("use", model, str(version), "--repository", str(repository))
    elif _can_load(model, address):
        words = ("load", model)
    return shlex.join(["normfold", *words])


def _is_chosen(directory: Path, version: int) -> bool:
    """Whether the version policy in ``directory`` chooses ``version``; true, too, if the files cannot be read."""
    from normfold.serving.catalog import config
    from normfold.serving.catalog.repository import Repository
    from normfold.serving.errors import ServingError

    try:
        folder = Repository(directory.parent).models()[directory.name]
        return version in config.versions_in_service(config.parse(folder.config_text() or ""), folder.versions())
    except (ServingError, KeyError):
        return True


def _can_load(model: str, address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except OSError:  # mostly nobody is there, and the client need not be imported
        return False
    from normfold.serving.client.client import Client, ClientError

    try:
        with Client(address, timeout=ANSWER_SECONDS) as client:
            extensions = client.server_metadata().extensions
            return LOADS in extensions and any(state.model == model for state in client.models())
    except ClientError:  # it is another program, needs a token, or is busy
        return False
