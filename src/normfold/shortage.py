"""What the system has too little of, where that is why something failed: a sentence instead of a traceback."""

from __future__ import annotations

__all__ = ["NO_MEMORY", "shortage"]

NO_MEMORY = "there is not enough memory"


def shortage(error: BaseException) -> str | None:
    """Return what there is too little of, or None where ``error``, or one before it, says something else."""
    if error.__context__ is not None and shortage(error.__context__) is None:
        return None  # such as a fault after which the event loop starts a thread to close
    if isinstance(error, MemoryError):
        return ": ".join(filter(None, (NO_MEMORY, str(error))))  # NumPy says for which array
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return (
            "no thread can be started; a limit of processes (ulimit -u, or that of a container) or of memory is reached"
        )
    return None
