"""The errors of serving: the drawn tree is the real one, and a status is gRPC's."""

from __future__ import annotations

import re

import grpc

from normfold.serving import errors
from normfold.serving.errors import ServingError, Status
from normfold.serving.rpc.grpc_status import CODES


def tree(root: type[Exception], parent: str = "") -> set[tuple[str, str, str]]:
    """Name, parent and status of every class below ``root`` that is defined beside it."""
    own = {(root.__name__, parent, root.status.name)}
    return own.union(
        *(tree(kind, root.__name__) for kind in root.__subclasses__() if kind.__module__ == root.__module__)
    )


def drawn() -> set[tuple[str, str, str]]:
    """The same, read from the drawing in the docstring; a line without a status has that of its parent."""
    rows, path = set(), []
    for line in errors.__doc__.splitlines():
        if match := re.match(r"([│├└─ ]*)([A-Z]\w+) {2,}([A-Z_]{2,})?", line):
            depth = len(match[1]) // 4
            status = match[3] or path[depth - 1][1]
            path[depth:] = [(match[2], status)]
            rows.add((match[2], path[depth - 1][0] if depth else "", status))
    return rows


def test_the_drawn_tree_is_the_real_one():
    assert drawn() == tree(ServingError)


def test_a_status_is_grpcs_by_name_and_number():
    assert {(status.name, status.value) for status in Status} == {(c.name, c.value[0]) for c in grpc.StatusCode}
    assert {status.name: code.name for status, code in CODES.items()} == {s.name: s.name for s in Status}
