"""Branches of a graph that no input of the proof takes: they are proved by taking them in every case.

A network may choose a branch by a switch, ``If(rate == 16000)``, of which random inputs take one side only. A fold
changes the numbers in both. The condition does not matter to it, so each side that was not taken is compared with its
condition held: in the unfolded graph and in the rewritten one. An If inside a branch is held together with those around
it. Where the condition is a constant of the graph, no input can take the other side, and a fold may remove it: there is
nothing to prove.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

from normfold.export.graphs.constants import settled
from normfold.export.graphs.runtime import Runtime
from normfold.export.proof.algebra import Algebra
from normfold.export.proof.verify import Case, Verification
from normfold.export.user_code import first_line

__all__ = ["Branch", "BranchProof", "held", "untaken"]

_NAMES = {True: "then_branch", False: "else_branch"}
#: How many cases a branch is compared on: the first ones are random inputs of the sizes that were traced.
CASES = 2


@dataclass(frozen=True)
class Branch:
    """One side of an If."""

    #: Each If by its first output, and the side that is taken: from the outermost one to the one meant.
    path: tuple[tuple[str, bool], ...]
    #: The name of the node, for a person.
    node: str

    def __str__(self) -> str:
        """Return "the else branch of 'If_3'"."""
        return f"the {_NAMES[self.path[-1][1]].partition('_')[0]} branch of '{self.node}'"


class BranchProof:
    """Compares graphs in the branches of one unfolded float64 graph that ``cases`` do not take."""

    def __init__(self, exact: bytes, plain: bytes, cases: Sequence[Case]):
        """``plain`` is the same graph in float32."""
        self.notes: tuple[str, ...] = ()
        self._algebras: list[tuple[Branch, Algebra]] = []
        always = settled(ir.from_proto(onnx.load_model_from_string(plain)))
        for branch in untaken(plain, cases):
            named = [replace(case, kind=f"{case.kind} in {branch}") for case in cases[:CASES]]
            try:
                if branch.path[0][0] in always:
                    raise ValueError("it is inside of an If with a constant condition")
                self._algebras.append((branch, Algebra(held(exact, branch), named)))
                how = "so the proof took it in every case: the fold is right there, the rounding was not measured"
            except Exception as error:  # it does not run on these inputs, or the evaluator lacks an operator
                how = f"and it was not proved ({first_line(error)})"
            self.notes += (f"no input of the proof takes {branch}, {how}; a --sample that takes it proves all of it",)

    def of(self, exact: bytes, found: Verification) -> Verification:
        """Return ``found`` with the differences of the graph ``exact`` in these branches."""
        for branch, algebra in self._algebras:
            more = algebra.of(held(exact, branch))
            found = replace(
                found, differences=(*found.differences, *more.differences), cases=(*found.cases, str(branch))
            )
        return found


def untaken(content: bytes, cases: Sequence[Case]) -> list[Branch]:
    """Return each branch of the graph, in any depth, that ``cases`` are not seen to take and that inputs can take."""
    model = onnx.load_model_from_string(content)
    taken: dict[str, set[bool]] = {}
    conditions = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "If"}
    if conditions:
        seen = {o.name for o in model.graph.output}
        for name in dict.fromkeys(conditions.values()):
            if name not in seen:
                model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.BOOL, None))
        runtime = Runtime(model.SerializeToString(), optimised=False)
        for case in cases:
            outputs = runtime.run(case.inputs)
            for output, condition in conditions.items():
                taken.setdefault(output, set()).add(bool(outputs[condition].reshape(-1)[0]))
    always = settled(ir.from_proto(model))
    possible = [b for b in _branches(model.graph, ()) if always.get(b.path[0][0], b.path[0][1]) == b.path[0][1]]
    return [b for b in possible if len(b.path) > 1 or b.path[0][1] not in taken[b.path[0][0]]]


def _branches(graph: onnx.GraphProto, path: tuple[tuple[str, bool], ...]) -> Iterator[Branch]:
    for node in graph.node:
        if node.op_type == "If":
            for side, name in _NAMES.items():
                inner = (*path, (node.output[0], side))
                yield Branch(inner, node.name or node.output[0])
                yield from _branches(next(a.g for a in node.attribute if a.name == name), inner)


def held(content: bytes, branch: Branch) -> bytes:
    """Return the graph with the conditions on the way to a branch held, so that every input takes it.

    An If that a rewrite has removed is passed over: its branch is the graph itself now.
    """
    model = onnx.load_model_from_string(content)
    graph = model.graph
    for output, side in branch.path:
        index = next((i for i, n in enumerate(graph.node) if n.op_type == "If" and n.output[0] == output), None)
        if index is None:
            continue
        node, name = graph.node[index], f"{output}.held"
        node.input[0] = name
        inner = next(a.g for a in node.attribute if a.name == _NAMES[side])
        value = helper.make_tensor(name, TensorProto.BOOL, [], [side])
        graph.node.insert(index, helper.make_node("Constant", [], [name], value=value))
        graph = inner
    return bytes(model.SerializeToString())
