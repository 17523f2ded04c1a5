"""Refuse a captured program that reads a buffer which it also writes: its answer depends on earlier calls."""

from __future__ import annotations

from torch.export import ExportedProgram
from torch.fx import Node

from normfold.export.errors import StateError
from normfold.export.state import Written, message

__all__ = ["refuse_written_buffers"]

#: Calls whose result does not depend on the values of their first argument.
_OVERWRITES = ("aten::copy", "aten::fill", "aten::zero", "aten::empty_like", "aten::zeros_like", "aten::ones_like")


def refuse_written_buffers(program: ExportedProgram) -> None:
    """Raise StateError where the program writes a buffer whose old values reach one of its outputs."""
    if not _may_write(program):
        return
    functional = program.run_decompositions({})  # each call in place becomes a call that returns the new buffer
    signature = functional.graph_signature
    written = set(signature.buffers_to_mutate.values())
    nodes = {node.name: node for node in functional.graph.nodes}
    answers = [nodes[name] for name in signature.user_outputs if isinstance(name, str) and name in nodes]
    read = {
        buffer
        for name, buffer in signature.inputs_to_buffers.items()
        if buffer in written and _reaches(nodes[name], set(answers))
    }
    if read:
        names = [buffer.removeprefix("network.").removeprefix("inner.") for buffer in sorted(read)]
        raise StateError(message(tuple(Written("buffer", name) for name in names)))


def _may_write(program: ExportedProgram) -> bool:
    """Whether a call in place changes a view of a buffer, or the program says so itself."""
    if program.graph_signature.buffers_to_mutate:
        return True
    buffers = set(program.graph_signature.inputs_to_buffers)
    return any(
        node.op == "call_function"
        and getattr(getattr(node.target, "_schema", None), "is_mutable", False)
        and any(_root(argument) in buffers for argument in node.args if isinstance(argument, Node))
        for node in program.graph.nodes
    )


def _root(node: Node) -> str:
    """Return the name of the tensor that a chain of views begins with."""
    while node.op == "call_function" and node.args and isinstance(node.args[0], Node):
        node = node.args[0]
    return node.name


def _reaches(start: Node, answers: set[Node]) -> bool:
    """Whether the values of ``start`` take part in one of the answers."""
    seen, waiting = {start}, [start]
    while waiting:
        node = waiting.pop()
        if node in answers:
            return True
        for user in node.users:
            schema = getattr(user.target, "_schema", None)
            overwritten = (
                schema is not None and schema.name in _OVERWRITES and user.args[0] is node and node not in user.args[1:]
            )
            if user not in seen and user.op != "output" and not overwritten:
                seen.add(user)
                waiting.append(user)
    return False
