"""How many BatchNorms, affines and disguises may be left of a network, and why: none where it is not named."""

from __future__ import annotations

KEPT: dict[str, tuple[int, str]] = {}
