"""Entries that are made constant before an affine that scales them by 0, because nothing needs what they were."""

from __future__ import annotations

from typing import Any

import numpy as np

from normfold.export.fold.affine import Affine
from normfold.export.fold.net import Op, Refused, Tensor
from normfold.export.fold.number_readers import number_readers


class Silencing:
    """Weights under which chosen entries of a tensor are constant; nothing is changed before all of them are known.

    The entries and their constants are one affine: scale 0 and the constant as shift where an entry is constant, the
    identity elsewhere. So operators that only move entries move it as they move any affine, on whichever axis it is.
    """

    def __init__(self) -> None:
        #: New params of the linear operators that are to emit the constants.
        self.edits: dict[Op, Any] = {}

    def of(self, tensor: Tensor, wanted: Affine) -> Affine:
        """Return what these entries hold when the linear operators before emit ``wanted``; refused if shared."""
        op = tensor.producer
        if op is None or len(number_readers(tensor)) != 1 or tensor.pinned:
            raise Refused(f"'{tensor.name}' has other readers")
        held = op.silenced(tensor, wanted, self)
        if np.any(held.scale != wanted.scale) or not np.all(np.isfinite(held.shift)):
            raise Refused(f"{op} does not keep the channel constant")
        return held
