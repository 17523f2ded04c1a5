"""The states of all models, as clients and people read them: rows, lines, sentences, and readiness."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from normfold.counting import counted
from normfold.protos import grpc_service as pb
from normfold.serving.catalog.entry import LOADING, NOT_LOADED, READY, Entry
from normfold.serving.catalog.model import Model
from normfold.serving.catalog.stage import WAITED_FOR
from normfold.serving.errors import NotFound, Unavailable
from normfold.serving.wording import quoted


def rows(name: str, entry: Entry, only_ready: bool) -> list[tuple[str, str, str, str]]:
    """Name, version, state and reason of each version; one row for a model without versions."""
    if not (states := entry.states):
        return [] if only_ready else [(name, "", *entry.state)]
    every = ((name, str(number), *state) for number, state in states.items())
    return [row for row in every if row[2] == READY or not only_ready]


def index(
    entries: Mapping[str, Entry], names: Collection[str], only_ready: bool
) -> list[pb.RepositoryIndexResponse.ModelIndex]:
    """The rows of ``names``; one that has no entry was never loaded."""
    found = [row for name in sorted(names) for row in rows(name, entries.get(name, Entry()), only_ready)]
    model_index = pb.RepositoryIndexResponse.ModelIndex
    return [model_index(name=n, version=v, state=s, reason=r) for n, v, s, r in found]


def lines(entries: Mapping[str, Entry]) -> list[tuple[str, bool]]:
    """A line for each model version, and whether it was loaded; one for all that are not loaded yet."""
    found, asleep = [], 0
    for name, entry in entries.items():
        found += [(model.describe(), True) for model in entry.ready]
        if entry.rests:
            asleep += 1
            continue
        for number, version in entry.versions.items():
            if version.model is None:
                found.append((f"{name} version {number} was not loaded: {version.reason}", False))
        if entry.reason:
            found.append((f"{name} was not loaded: {entry.reason}", False))
    if asleep:
        found.append((f"{counted(asleep, 'model')}, each loaded by its first request", True))
    return found


def in_service(entries: Collection[Entry], may_be_none: bool) -> bool:
    """Whether every model that should be in service has a version that answers.

    This is the one rule of readiness. A version that fails, or that is still loading, changes nothing while another
    version of its model answers. Lazy models are not waited for: their first request shows whether they load. Without
    any model the result is ``may_be_none``: other workers may have had models before, and serve none any more.
    """
    return bool(entries or may_be_none) and all(entry.stage not in WAITED_FOR or entry.ready for entry in entries)


def go_on(entry: Entry | None) -> str:
    """The end of a sentence about a load that failed: the versions that answer all the same; "" where none does."""
    numbers = [] if entry is None else entry.answering
    if not numbers:
        return ""
    several = len(numbers) > 1
    shown = ", ".join(map(str, numbers))
    return f"; version{'s' if several else ''} {shown} {'go' if several else 'goes'} on answering"


def stands_in(loaded: Collection[int], chosen: Collection[int]) -> str:
    """The end of a sentence about ``chosen`` versions that failed to load: the lower one that ``loaded`` instead."""
    return "".join(f"; version {number} answers instead" for number in loaded if number not in chosen)


def load_failed(name: str, failures: Mapping[int, str]) -> str:
    """The sentence about versions that failed to load, with the reason of each."""
    reasons = "; ".join(f"version {n} is at UNAVAILABLE state: {reason}" for n, reason in sorted(failures.items()))
    return f"load failed for model {quoted(name)}: {reasons}"


def answering(entry: Entry, name: str, number: int | None) -> Model:
    """The version of ``name`` that answers requests for version ``number``; None is the highest that is ready.

    Raises NotFound, or Unavailable with the reason.
    """
    ready, found = entry.ready, None if number is None else entry.versions.get(number)
    if number is None and ready:
        return ready[-1]
    if found is not None and found.model is not None:
        return found.model
    unknown = f"Request for unknown model: {quoted(name)}"
    if entry.loads and not ready and (number is None or not entry.states):
        raise Unavailable(f"{unknown} is not at ready state: it is still loading")
    if entry.rests:
        raise Unavailable(f"{unknown} is not at ready state: {NOT_LOADED}")
    if number is None:
        raise NotFound(f"{unknown} has no available versions{entry.because}")
    if (state := entry.states.get(number)) is None:
        versions = ", ".join(str(model.version) for model in ready) or "none"
        raise NotFound(f"{unknown} version {number} is not found; ready versions: {versions}")
    why = "it is still loading" if state[0] == LOADING else state[1]
    raise Unavailable(f"{unknown} version {number} is not at ready state: {why}")
