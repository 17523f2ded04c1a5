"""Which files of a repository are served: with a manifest or without, and signed by whom."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from normfold.serving.access.signatures import SIGNATURE_FILE, statement, verify
from normfold.serving.catalog.manifests import check_manifest
from normfold.serving.catalog.repository import CONFIG_FILE, GOLDEN_FILE, MANIFEST_FILE, Files, ModelFolder, as_text
from normfold.serving.errors import LoadError, UnsafeModel
from normfold.serving.wording import quoted

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

log = logging.getLogger(__name__)

#: The end of a message about a file that is missing.
_MANIFEST = "normfold sign MODEL_FOLDER"
_SIGN = "normfold sign MODEL_FOLDER --key SIGNING.key"
#: In the index, beside a version that is in service.
UNCHECKED = "served without a manifest: a changed or damaged file would not be noticed"


@dataclass(frozen=True)
class Trust:
    """The manifest and the signature that the server demands of each version."""

    #: Whether a version needs a manifest.
    require_manifest: bool = False
    #: The key that must have signed every version; None: nobody need sign.
    key: Ed25519PublicKey | None = None


#: Everything is served.
ANYTHING = Trust()


class TrustedFolder:
    """The files of one model, held to a ``Trust``. What is checked is what is loaded: each file is read once."""

    def __init__(self, files: Files, trust: Trust, quiet: bool = False) -> None:
        """``quiet``: do not log that a version has no manifest, because the model is loaded again and again."""
        self._files, self._trust = files, trust
        self._level = logging.DEBUG if quiet else logging.WARNING
        self._folder = files if isinstance(files, ModelFolder) else None
        #: The files beside the versions, if they are signed; each as it was when it was first read.
        self._beside: dict[str, bytes] | None = None
        #: The manifests of the versions that were checked; None for a version without.
        self._manifests: dict[int, bytes | None] = {}

    @property
    def name(self) -> str:
        """The model's name."""
        return self._files.name

    @property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of the files that were read, by path, where it is known already."""
        return self._files.digests

    def remark(self, version: int) -> str:
        """The remark of the index on a version that is in service; "" for most."""
        return UNCHECKED if self._manifests.get(version, b"") is None else ""

    def config_text(self) -> str | None:
        """The content of config.pbtxt, or None. Raises LoadError."""
        if self._trust.key is None or self._folder is None:
            return self._files.config_text()
        found = self._signed_files().get(CONFIG_FILE)
        return None if found is None else as_text(found)

    def check_sent_config(self) -> None:
        """Raise UnsafeModel where the configuration of these files must be signed: a client has sent another one."""
        if self._trust.key is not None and self._folder is not None:
            raise UnsafeModel(
                "its configuration came with the load request, where no signature covers it, and the server runs with "
                f"--require-signature: change {CONFIG_FILE} itself, and sign again: {_SIGN}"
            )

    def versions(self) -> list[int]:
        """The numbers of the versions that are there, in ascending order. Raises LoadError."""
        return self._files.versions()

    def read_model(self, version: int, filename: str) -> bytes:
        """The bytes of a version's model file. Raises LoadError, UnsafeModel where they are not to be served."""
        self._check(version)
        return self._held(version, filename, self._files.read_model(version, filename))

    def read_golden(self, version: int) -> bytes | None:
        """The version's golden.json, or None where there is none. Raises LoadError."""
        found = self._files.read_golden(version)
        return None if found is None else self._held(version, GOLDEN_FILE, found)

    def read(self, filename: str) -> bytes:
        """The bytes of a file such as labels. Raises LoadError, UnsafeModel where a signature should cover it."""
        if self._trust.key is None or self._folder is None:
            return self._files.read(filename)
        if "/" in filename:
            raise UnsafeModel(
                f"{filename} lies in a folder, where no signature covers it, and the server runs with "
                f"--require-signature: move it beside {CONFIG_FILE}, and sign again: {_SIGN}"
            )
        if (found := self._signed_files().get(filename)) is None:
            raise LoadError(f"{filename} cannot be read: there is no such file")
        return found

    def _check(self, version: int) -> None:
        """Raise UnsafeModel unless the version has the manifest and the signature that it needs."""
        key = self._trust.key
        found = self._manifests[version] = None if self._folder is None else self._folder.find(version, MANIFEST_FILE)
        if found is None:
            if key is not None or self._trust.require_manifest:
                option, how = ("--require-manifest", _MANIFEST) if key is None else ("--require-signature", _SIGN)
                raise UnsafeModel(f"it has no {MANIFEST_FILE}, and the server runs with {option}: {how} writes it")
            log.log(self._level, "model %s version %d: %s", quoted(self.name), version, UNCHECKED)
            return
        if key is None:
            return
        assert self._folder is not None
        written = self._folder.find(version, SIGNATURE_FILE)
        if written is None:
            raise UnsafeModel(
                f"it has no {SIGNATURE_FILE}, and the server runs with --require-signature: {_SIGN} writes it"
            )
        if not verify(key, written, statement(self.name, version, found, self._signed_files())):
            raise UnsafeModel(
                f"{SIGNATURE_FILE} is no signature of the key of --require-signature under model {quoted(self.name)}, "
                f"version {version}, its manifest, and the files beside its versions: one of them was changed since "
                f"it was signed, or another key signed it; sign again what is right: {_SIGN}"
            )

    def _held(self, version: int, filename: str, data: bytes) -> bytes:
        """``data`` if they are those of the signed manifest. Raises UnsafeModel."""
        manifest = self._manifests.get(version)
        if self._trust.key is not None and manifest is not None:
            check_manifest(manifest, filename, data)
        return data

    def _signed_files(self) -> dict[str, bytes]:
        """The files beside the versions, read once. Raises LoadError."""
        if self._beside is None:
            assert self._folder is not None
            self._beside = self._folder.beside()
        return self._beside
