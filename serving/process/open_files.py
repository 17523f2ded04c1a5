"""The files that this process may have open, shared out between the parts that clients can make open one."""

from __future__ import annotations

import resource

#: Connections to the port for metrics and health.
METRICS_CONNECTIONS = 16
#: Shared memory objects that clients have registered: at most this many, and at most this part of all files.
SHARED_OBJECTS, SHARED_PART = 1024, 16
#: Files that nobody outside can make more of: the repository, the log, the ports, workers.
OTHER_FILES = 200


def most_files() -> int:
    """The limit of open files of this process."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return files if files != resource.RLIM_INFINITY else 1 << 30


def most_shared_objects() -> int:
    """The shared memory objects for which the limit of open files leaves room."""
    return min(SHARED_OBJECTS, most_files() // SHARED_PART)


def most_connections() -> int:
    """The connections of gRPC for which the limit of open files leaves room: a little less than half of it, or more."""
    files = most_files() - METRICS_CONNECTIONS - most_shared_objects()
    return max(files - OTHER_FILES, files // 2)
