"""The stages in the life of a model. The methods of its ``Entry`` say which one follows when something happens.

A load that is under way is no stage: it may be under way at any of them, and changes nothing before it ends.
"""

from __future__ import annotations

from enum import Enum, auto


class Stage(Enum):
    """Whether a model should be in service, and what loads it."""

    #: Not in service: never loaded, loaded by a client without success, or unloaded because its folder is gone.
    OUT = auto()
    #: A client has taken it out of service: no change of its files puts it back.
    LEFT_OUT = auto()
    #: The start is to load it or, where models are lazy, to look which versions it has.
    AWAITED = auto()
    #: In service, and not unloaded to make room. Also where its load has failed: then the server is not ready.
    EAGER = auto()
    #: Lazy, and in memory until others need the room.
    AWAKE = auto()
    #: Lazy, and not in memory: its next request loads it.
    ASLEEP = auto()
    #: Lazy, and not in memory, because the last load that a request asked for has failed: a later request tries again.
    FAILED = auto()


# Tuples, because a member of an Enum takes several times as long to look up, and there may be thousands of models.
#: The stages of models that should not be in service.
UNWANTED = (Stage.OUT, Stage.LEFT_OUT)
#: The stages of models that requests load; those of them that are not in memory; and where no such load has failed.
LAZY = (Stage.ASLEEP, Stage.AWAKE, Stage.FAILED)
TO_LOAD = (Stage.ASLEEP, Stage.FAILED)
RESTING = (Stage.ASLEEP,)
#: The stages of models without which the server is not ready.
WAITED_FOR = (Stage.AWAITED, Stage.EAGER)
#: The stage of a model that the start is still to load.
TO_START = (Stage.AWAITED,)

#: A load has failed, and no version answers: these stages change so, the others stay.
REFUSED = {
    Stage.LEFT_OUT: Stage.OUT,  # the client that loads it wants it back: mended files put it in service
    Stage.AWAITED: Stage.EAGER,
    Stage.ASLEEP: Stage.FAILED,
}
