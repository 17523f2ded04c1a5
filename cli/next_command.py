"""The command that comes after an export: where a server already runs, it need only load the model."""

from __future__ import annotations

import shlex
import socket
from pathlib import Path

#: The longest wait for a server that may not be there, and for each of its answers, in seconds.
CONNECT_SECONDS, ANSWER_SECONDS = 0.2, 1.0


def after_export(repository: Path, model: str, address: str) -> str:
    """``normfold load`` where the server on ``address`` has ``model`` in its repository and lets clients load models.

    Otherwise, and where nobody answers in time, ``normfold serve``. Words that a shell would take apart are quoted.
    """
    words = ("load", model) if _can_load(model, address) else ("serve", "--repository", str(repository))
    return shlex.join(["normfold", *words])


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
            return "model_repository" in extensions and any(state.model == model for state in client.models())
    except ClientError:  # it is another program, needs a token, or is busy
        return False
