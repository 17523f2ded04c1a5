"""What the reports of several workers about their models say together."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from normfold.serving.catalog.entries import PLAIN
from normfold.serving.workers.messages import ServedModel


def rank(model: ServedModel) -> tuple[tuple[int, ...], bool]:
    """Its versions from the highest down, so that of two reports the one with more versions has the higher rank."""
    return model.versions[::-1], bool(model.reason or model.refused)


def read(model: ServedModel) -> object:
    """What tells apart from which files it was loaded; the same for all that do not answer.

    A worker that never loaded such a model has no configuration of it, where others still have the last one.
    """
    return (model.versions, model.digests, model.config) if model.versions else ()


def unlike(reports: Iterable[Sequence[ServedModel]], names: Container[str]) -> bool:
    """Whether a model with one of these names is served in different versions, or from different files."""
    models = [model for report in reports for model in report if model.name in names]
    return len({read(model) for model in models if not model.lazy}) > 1


def failing(reports: Iterable[Sequence[ServedModel]]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """The versions that some worker could not load, by model; 0: a worker has no version of the model that answers."""
    found: dict[str, set[int]] = {}
    for model in (each for report in reports for each in report):
        if numbers := failed(model):
            found.setdefault(model.name, set()).update(numbers)
    return tuple((name, tuple(sorted(numbers))) for name, numbers in sorted(found.items()))


def failed(model: ServedModel) -> set[int]:
    """The versions of ``model`` that this worker could not load; 0 if it has none that answers, because of that."""
    if not (model.reason or model.refused):  # as of most of thousands
        return set()
    numbers = {number for number, reason in model.refused if reason not in PLAIN}
    none = model.failed or (not model.versions and (bool(numbers) or model.reason not in ("", *PLAIN)))
    return numbers | {0} if none else numbers


def recovered(before: Iterable[ServedModel], now: Iterable[ServedModel]) -> tuple[str, ...]:
    """The lazy models of which a worker had no version that answers, and does not fail to load any more."""
    failed_before = {model.name for model in before if 0 in failed(model)}
    return tuple(model.name for model in now if model.lazy and model.name in failed_before and not failed(model))
