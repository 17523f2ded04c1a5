"""The answer to an inference: arrays by name, and which version of which model computed them."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

__all__ = ["Answer"]


class Answer(dict[str, NDArray[Any]]):
    """The outputs of an inference by name.

    ``model`` and ``version`` are those that the server says it answered with; "" where it does not say.
    """

    __slots__ = ("model", "version")

    def __init__(self, model: str = "", version: str = "") -> None:
        self.model, self.version = model, version

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle and copy: the items come after the model and the version."""
        return type(self), (self.model, self.version), None, None, iter(self.items())
