"""Who and which models may come in to one server, by its config; files are read again when they change."""

from __future__ import annotations

from typing import Any

from normfold.serving.access.access import Access
from normfold.serving.access.signatures import read_public_key
from normfold.serving.access.tls import Tls, TlsFiles, TlsIdentity
from normfold.serving.access.tokens import read_tokens
from normfold.serving.access.validity import Reminder
from normfold.serving.catalog.trust import Trust
from normfold.serving.errors import StartError
from normfold.serving.process.file_watch import FileWatch
from normfold.serving.settings import ServerConfig


class Doors:
    """The TLS and the tokens of a server, each None where the config has none, and its trust in models."""

    def __init__(self, config: ServerConfig, again: bool = False) -> None:
        """Read the files. Raises StartError. ``again``: the server has begun before, and may have no token left."""
        self.tls: Tls | None = None
        self.access: Access | None = None
        key = None if config.require_signature is None else read_public_key(config.require_signature)
        self.trust = Trust(config.require_manifest, key)
        self._watches: list[FileWatch[Any]] = []
        self._reminder: Reminder | None = None
        if config.tls_cert is not None and config.tls_key is not None:
            files = TlsFiles(config.tls_cert, config.tls_key, config.tls_client_ca)
            self._reminder = reminder = Reminder(config.tls_cert)

            def renew(identity: TlsIdentity) -> None:
                tls.renew(identity)
                reminder.read(identity.cert)

            self._watches.append(FileWatch(files.paths, files.read, StartError, renew))
            self.tls = tls = Tls(files.read())
            reminder.read(tls.identity.cert)
        if config.tokens is not None:
            path = config.tokens
            self._watches.append(
                FileWatch((path,), lambda: read_tokens(path), StartError, lambda holders: access.renew(holders))
            )
            holders = read_tokens(path)
            if not holders and not again:
                raise StartError(f"--tokens {path} has no line: nobody could come in; normfold token NAME makes one")
            self.access = access = Access(holders, config.health_without_token)

    def watch(self) -> None:
        """Look for changes of the files from now on."""
        for watch in self._watches:
            watch.start()
        if self._reminder is not None:
            self._reminder.start()

    async def close(self) -> None:
        """Look for changes no more."""
        if self._reminder is not None:
            self._reminder.stop()
        for watch in self._watches:
            await watch.stop()
