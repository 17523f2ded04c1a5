"""Comparisons of the reports of several workers about their models."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from normfold.serving.catalog.served import ServedModel


def rank(model: ServedModel) -> tuple[tuple[int, ...], bool]:
    """Its versions from the highest down, so that of two reports the one with more versions has the higher rank."""
    return model.versions[::-1], bool(model.reason or model.refused)


def read(model: ServedModel) -> object:
    """A value that identifies the files that it was loaded from; it is the same for all models that do not answer.

    The configurations of those are not compared: a worker that never loaded such a model has none.
    """
    return (model.versions, model.digests, model.config) if model.versions else ()


def unlike(reports: Iterable[Sequence[ServedModel]], names: Container[str]) -> bool:
    """Whether a model with one of these names is served in different versions, or from different files."""
    models = [model for report in reports for model in report if model.name in names]
    return len({read(model) for model in models if not model.lazy}) > 1


def failing(reports: Iterable[Sequence[ServedModel]]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """The versions that some worker could not load, by model; 0: a worker has no version of the model that answers."""
    found: dict[str, set[int]] = {}
    for model in (each for report in reports for each in report if each.failing):
        found.setdefault(model.name, set()).update(model.failing)
    return tuple((name, tuple(sorted(numbers))) for name, numbers in sorted(found.items()))


def recovered(before: Iterable[ServedModel], now: Iterable[ServedModel]) -> tuple[str, ...]:
    """The lazy models that a worker has loaded after it could not; not those that it will only try again."""
    known = {model.name: model.recoveries for model in before}
    return tuple(model.name for model in now if model.recoveries > known.get(model.name, 0))
