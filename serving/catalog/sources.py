"""Where the files of a model come from, and which of its versions are put in service; all of it reads the disk."""

from __future__ import annotations

import logging
from collections.abc import Collection, Container, Iterable, Mapping, Sequence

from normfold.counting import counted
from normfold.protos import model_config as mc
from normfold.serving.catalog import config
from normfold.serving.catalog.entry import VersionsFound
from normfold.serving.catalog.following import Following
from normfold.serving.catalog.overlooked import overlooked, unnumbered
from normfold.serving.catalog.repository import Files, Repository, SentFolder, is_plain
from normfold.serving.catalog.trust import TrustedFolder
from normfold.serving.catalog.version_policy import described
from normfold.serving.errors import ConfigError, LoadError, PollFailed, StartError
from normfold.serving.wording import near, quoted

log = logging.getLogger(__name__)

#: How many models a message lists.
_SHOWN = 8


class Sources:
    """Reads a repository, or what a load request sent in its place."""

    def __init__(self, repository: Repository, following: Following, private: bool) -> None:
        """``private``: a message about an unknown model names no other model, unless the server cannot start."""
        self._repository, self._following, self._private = repository, following, private
        self._found: Collection[str] = ()

    def names(self, wanted: Sequence[str], again: bool) -> Collection[str]:
        """``wanted``, or where it is empty the names of all models.

        Raises StartError for an unknown name, unless ``again``: then it is left out.
        """
        self._found = found = self._repository.models()
        for name in wanted:
            if name not in found and not again:
                raise StartError(f"there is no model {quoted(name)} to load{near(name, found) or _there(found)}")
        return [name for name in wanted if name in found] if wanted else found

    def warn_of_overlooked(self) -> None:
        """Log the folders that are no models, and why, where ``names`` looked last."""
        for name, why in overlooked(self._repository, self._found).items():
            log.warning("%s %s is not served: %s", "file" if name.endswith(".onnx") else "folder", quoted(name), why)

    def files(self, name: str, override: str | None, sent: Mapping[str, bytes]) -> Files:
        """The place that the files of model ``name`` come from. Raises PollFailed."""
        failed = _unpolled(name)
        if sent:
            if override is None:
                raise PollFailed(f"{failed}: files in a load request need the parameter 'config' beside them")
            for path in sent:
                if not is_plain(path):
                    raise PollFailed(f"{failed}: {quoted(path)} is not a path inside a model's folder")
            return SentFolder(name, sent)
        folder = self._repository.find(name)
        if folder is None:
            models = self._repository.models()
            why = overlooked(self._repository, models).get(name)
            hint = f"there is no such folder{'' if self._private else near(name, models) or _there(models)}"
            raise PollFailed(f"{failed}: {why or hint}")
        return folder

    def plan(
        self, folder: TrustedFolder, override: str | None, only: Container[int] | None = None
    ) -> tuple[mc.ModelConfig, list[int], list[int]]:
        """The configuration as its author wrote it, the versions that it puts in service, and all that are there.

        Versions that are not in ``only`` are not looked at. Raises PollFailed or LoadError.
        """
        if (plan := self._following.plan(folder.name)) is not None:
            return *plan, plan[1]
        if override is None:
            written = config.parse(folder.config_text() or "")
        else:
            folder.check_sent_config()
            try:
                written = config.parse_json(override)
            except ConfigError as error:  # Triton answers INTERNAL to a configuration that it cannot read
                raise PollFailed(f"{_unpolled(folder.name)}: {error}") from error
        if (present := self._following.present(folder.name)) is not None:
            only = present
        for note in config.check(written, folder.name):
            log.warning("model %s: %s", quoted(folder.name), note)
        there = [number for number in folder.versions() if only is None or number in only]
        numbers = config.versions_in_service(written, there)
        if not numbers:
            listed = f"there are: {', '.join(map(str, there)) or 'none'}"
            if there:
                raise LoadError(f"no version to serve: the version_policy chooses {described(written)}, {listed}")
            meant = "" if override is not None else self._misnamed(folder.name)
            raise LoadError(f"no version to serve: {meant or f'folders are numbers such as 1, {listed}'}")
        return written, numbers, there

    def _misnamed(self, name: str) -> str:
        """The fault of the folder that was probably meant as a version of ``name``; "" where there is none."""
        return unnumbered(self._repository.path if self._repository.is_single else self._repository.path / name)

    def versions(self, names: Iterable[str]) -> dict[str, VersionsFound]:
        """The versions that each of these models has now or, while others are followed, has with them."""
        return {name: self._found_of(name) for name in names}

    def _found_of(self, name: str) -> VersionsFound:
        try:
            followed = self._following.present(name)
            there = tuple(self._repository.versions(name)) if followed is None else followed
        except LoadError:  # its first request says why
            return VersionsFound((), ())
        try:
            return VersionsFound(there, there if len(there) < 2 else self._chosen(name, there))
        except LoadError:
            return VersionsFound(there, there)

    def _chosen(self, name: str, there: tuple[int, ...]) -> tuple[int, ...]:
        """Those versions of a model that its configuration puts in service. Raises LoadError."""
        text = self._repository.folder(name).config_text()
        return tuple(config.versions_in_service(config.parse(text or ""), list(there)))


def _there(models: Collection[str]) -> str:
    """The end of a sentence about a model that is not there: the first of those that are."""
    shown = ", ".join(quoted(name) for name in [*models][:_SHOWN])
    more = f" and {counted(len(models) - _SHOWN, 'other')}" if len(models) > _SHOWN else ""
    return f"; there are: {shown}{more}" if models else "; the repository holds no model now"


def _unpolled(name: str) -> str:
    """The beginning of Triton's sentence about a model whose files or configuration could not be read."""
    return f"failed to load {quoted(name)}, failed to poll from model repository"
