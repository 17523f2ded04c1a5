"""``normfold`` with a server that never lets go of a model that was replaced: a control that the soak must catch."""

from __future__ import annotations

from typing import Any

from normfold.cli import main
from normfold.serving.catalog import loader

KEPT: list[Any] = []


def leak() -> None:
    """Keep every model that is loaded from now on."""
    load = loader.load

    def keeping(*arguments: Any) -> Any:
        KEPT.append(load(*arguments))
        return KEPT[-1]

    loader.load = keeping  # type: ignore[assignment]


if __name__ == "__main__":
    leak()
    main()
