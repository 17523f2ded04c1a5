"""How large the strings become that a graph makes of those of a request.

onnxruntime takes the letters of a string from the C library. Its arena has only an object of 32 bytes for each, so the
measured memory of a run says how many strings there are at most. That is far too many for a network with one label for
each row, so where all strings reach an answer, its shape says it. The graph says how long they may be:

    a node that moves strings      what it gives is together no longer than what it takes
    StringConcat                   a string is as long as the two that it is made of
    any other, such as Expand      each element may be the longest string
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

from normfold.protos import onnx_file as onnx
from normfold.serving.wire.strings import OWN_TIMES

#: ONNX's number for strings.
STRING = 8
#: The object of each string. It holds up to INLINE_BYTES itself.
OBJECT_BYTES, INLINE_BYTES = 32, 15
#: A number as text is no longer than this, in bytes.
NUMBER_BYTES = 32

#: Nodes that move, divide or drop strings: none is there twice that was there once.
_MOVE = frozenset(
    {
        *("Compress", "Concat", "ConcatFromSequence", "Flatten", "Identity", "Optional", "OptionalGetElement"),
        *("Reshape", "ReverseSequence", "Scatter", "ScatterElements", "ScatterND", "SequenceAt", "SequenceConstruct"),
        *("SequenceErase", "SequenceInsert", "Slice", "Split", "SplitToSequence", "Squeeze", "StringNormalizer"),
        *("StringSplit", "Tokenizer", "Transpose", "Unique", "Unsqueeze"),
    }
)
#: How many times more bytes a string may have once it is in capitals.
_CAPITALS = {"StringNormalizer": 4}
#: Nodes that take each string at most once for each of their indices; of more than MOST_PICKED it may be any number.
_PICK, MOST_PICKED = frozenset({"ArrayFeatureExtractor", "Gather"}), 16
#: Nodes that make only numbers of strings.
_COUNT = frozenset(
    {
        *("CategoryMapper", "DictVectorizer", "Equal", "LabelEncoder", "MurmurHash3", "OneHotEncoder"),
        *("RegexFullMatch", "SequenceLength", "Shape", "Size", "TfIdfVectorizer"),
    }
)
#: Nodes whose output has exactly the elements of their first input.
_SAME = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
#: Nodes whose first output alone is strings.
_FIRST = frozenset({"LinearClassifier", "StringSplit", "SVMClassifier", "TreeEnsembleClassifier", "Unique"})
#: The attributes with strings that a node gives, and the one that is there without any, too.
_LABELS, _DEFAULT = ("values_strings", "values_tensor", "classlabels_strings", "cats_strings"), "default_string"


@dataclass(frozen=True)
class TextGrowth:
    """What the strings of a graph take."""

    #: Of strings whose number does not matter: the bytes of all of them, over those of the request's strings.
    copies: float
    #: The longest has at most so many times the bytes of the longest of the request, and ``constant`` others.
    times: float = 0.0
    constant: float = 0.0
    #: How often such a string is in memory: that of an answer becomes objects of Python, too.
    held: int = 1
    #: How many tensors have such strings, if each has as many elements as an output of strings; 0: it may have more.
    tensors: int = 0

    def is_known(self, numbers_decide: bool) -> bool:
        """Whether ``bytes`` are the most; ``numbers_decide`` how many elements there are, or only the shapes."""
        few = not self.times and self.constant <= OBJECT_BYTES  # as many as the arena's part of them at most
        return math.isfinite(self.times) and (few or not numbers_decide)

    def bytes(self, content: int, longest: int, elements: float) -> float:
        """The bytes in a graph for a request whose strings have ``content`` bytes, in a run with ``elements``."""
        each = self.constant + (self.times * longest if longest else 0.0)
        return (self.copies * content if content else 0.0) + (
            self.held * each * elements if each > INLINE_BYTES else 0.0
        )


@dataclass(frozen=True)
class _Texts:
    """The strings of one tensor."""

    #: Input -> the bytes here over those of the input's strings, at most; inf: they depend on the number of elements.
    copies: Mapping[str, float]
    #: As in TextGrowth.
    times: float
    constant: float


#: Of strings that may be repeated for each element.
_REPEATED: Mapping[str, float] = {"": math.inf}


def text_growth(model: onnx.ModelProto, sent: Set[str] = frozenset()) -> TextGrowth | None:
    """What all strings that ``model`` makes take at once; None: no more than was counted when the request was read.

    ``sent`` are the inputs with a default in the file that requests may send, too; the others are constants.
    """
    defaults = {tensor.name: tensor for tensor in model.graph.initializer}
    constants = {name: tensor for name, tensor in defaults.items() if name not in sent}
    found = {name: _text(tensor) for name, tensor in defaults.items() if tensor.data_type == STRING}
    for value in model.graph.input:
        if value.type.tensor_type.elem_type == STRING and value.name not in constants:
            constant = found[value.name].constant if value.name in found else 0.0
            found[value.name] = _Texts({value.name: 1.0}, 1.0, constant)
    made: dict[str, _Texts] = {}
    for node in model.graph.node:
        if node.op_type == "Constant":
            constants |= {name: each.t for each in node.attribute if each.name == "value" for name in node.output}
        if (texts := _made(node, found, constants)) is not None:
            given = dict.fromkeys(node.output[:1] if node.op_type in _FIRST else node.output, texts)
            made |= given
            found |= given
    if _may_loop(model, found.keys()):
        return TextGrowth(0.0, math.inf)  # a loop may make a string longer in each round
    answers = {value.name for value in model.graph.output}
    repeated = {name: texts for name, texts in made.items() if math.inf in texts.copies.values()}
    moved = [name for name in made if name not in repeated for _ in range(OWN_TIMES if name in answers else 1)]
    copies = max(_together(made[name].copies for name in moved).values(), default=0.0)
    times = max((texts.times for texts in repeated.values()), default=0.0)
    constant = max((texts.constant for texts in repeated.values()), default=0.0)
    if copies <= 2 * OWN_TIMES and not times and constant <= INLINE_BYTES:
        return None
    counted = {value.name for value in model.graph.output if value.type.tensor_type.elem_type == STRING}
    for node in reversed(model.graph.node):
        if node.op_type in _SAME and counted.issuperset(node.output):
            counted |= {*node.input[:1]}
    held = 1 if answers.isdisjoint(repeated) else OWN_TIMES
    return TextGrowth(copies, times, constant, held, len(repeated) if counted.issuperset(repeated) else 0)


def _made(
    node: onnx.NodeProto, found: Mapping[str, _Texts], constants: Mapping[str, onnx.TensorProto]
) -> _Texts | None:
    """The strings that ``node`` gives; None: it gives none."""
    taken = [found[name] for name in node.input if name in found]
    to_numbers = node.op_type == "OneHotEncoder" or (taken and node.op_type == "CategoryMapper")
    if not to_numbers and (labels := _labels(node)) is not None:
        return labels
    if not taken:
        return _Texts(_REPEATED, 0.0, NUMBER_BYTES) if _makes(node) else None
    if node.op_type in _COUNT or (node.op_type == "Cast" and not _makes(node)):
        return None
    if node.op_type == "StringConcat":
        same = len({*node.input}) == 1  # else one may be repeated for each element of the other
        copies = _together(each.copies for each in taken) if same else _REPEATED
        return _Texts(copies, sum(each.times for each in taken), sum(each.constant for each in taken))
    copies = _REPEATED
    if node.op_type in _MOVE or node.op_type == "Cast":
        copies = _together(each.copies for each in taken)
    elif node.op_type in _PICK and (picked := constants.get(node.input[-1])) is not None:
        indices = max(1, math.prod(picked.dims))
        copies = _together([taken[0].copies] * indices) if indices <= MOST_PICKED else _REPEATED
    more = _CAPITALS.get(node.op_type, 1)
    return _Texts(
        _together([copies] * more),
        more * max(each.times for each in taken),
        more * max(each.constant for each in taken),
    )


def _together(copies: Iterable[Mapping[str, float]]) -> Mapping[str, float]:
    """The copies in several tensors together."""
    sums: dict[str, float] = {}
    for each in copies:
        for name, count in each.items():
            sums[name] = sums.get(name, 0.0) + count
    return sums


def _makes(node: onnx.NodeProto) -> bool:
    """Whether ``node`` makes strings, also of other things than strings."""
    if node.op_type == "Cast":
        return any(each.name == "to" and each.i == STRING for each in node.attribute)
    return node.op_type == "StringConcat"


def _labels(node: onnx.NodeProto) -> _Texts | None:
    """The strings that ``node`` has in its attributes, and gives; None: it has none."""
    if node.op_type == "Constant":
        texts = [text for each in node.attribute for text in (each.s, *each.strings, *each.t.string_data)]
        is_text = any(each.name.startswith("value_string") or each.t.data_type == STRING for each in node.attribute)
        return _Texts({}, 0.0, max(map(len, texts), default=0)) if is_text else None
    labels = [text for each in node.attribute if each.name in _LABELS for text in (*each.strings, *each.t.string_data)]
    if not labels:
        return None
    others = [each.s for each in node.attribute if each.name == _DEFAULT]
    return _Texts(_REPEATED, 0.0, max(map(len, (*labels, *others))))


def _text(tensor: onnx.TensorProto) -> _Texts:
    return _Texts({}, 0.0, max(map(len, tensor.string_data), default=0))


def _may_loop(model: onnx.ModelProto, found: Set[str]) -> bool:
    """Whether functions, or graphs inside nodes, have strings; ``found`` are the tensors of strings outside them."""
    functions = {function.name for function in model.functions}
    bodies: list[onnx.FunctionProto | onnx.GraphProto] = [*model.functions, *_graphs(model.graph.node)]
    for body in bodies:
        bodies += _graphs(body.node)  # the loop goes on with these
    nodes = [node for body in bodies for node in body.node]
    tensors = [tensor for body in bodies if isinstance(body, onnx.GraphProto) for tensor in body.initializer]
    entered = [node for node in model.graph.node if node.op_type in functions or _graphs([node])]
    return (
        any(name in found for node in (*nodes, *entered) for name in node.input)
        or any(_makes(node) or _labels(node) is not None for node in nodes)
        or any(tensor.data_type == STRING for tensor in tensors)
    )


def _graphs(nodes: Iterable[onnx.NodeProto]) -> list[onnx.GraphProto]:
    """The graphs inside ``nodes``, without those inside these graphs."""
    attributes = [attribute for node in nodes for attribute in node.attribute]
    return [graph for each in attributes for graph in (*([each.g] if each.HasField("g") else []), *each.graphs)]
