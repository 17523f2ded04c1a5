"""Whether the numbers in a request, and not only its shapes, decide how long a run takes.

A loop may have its number of rounds from an input, and an operator such as Range or Reshape the size of its output. A
run that was short with zeros says nothing about the next one then.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

from normfold.protos import onnx_file as onnx

_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")

#: ONNX's operators with inputs whose numbers, not only their shapes, decide the size of an output or the length of a
#: run, and the places of these inputs. Every other operator takes as long as its inputs and outputs are large.
DECIDED_BY: Mapping[str, tuple[int, ...]] = {
    "AffineGrid": (1,),
    "Attention": (6,),
    "BlackmanWindow": (0,),
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "Compress": (1,),
    "ConstantOfShape": (0,),
    "DFT": (1, 2),
    "Expand": (1,),
    "GRU": (4,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "ImageDecoder": (0,),
    "LSTM": (4,),
    "MaxUnpool": (2,),
    "MelWeightMatrix": (0, 1),
    "NonMaxSuppression": (0, 1, 2, 3, 4),
    "NonZero": (0,),
    "OneHot": (1,),
    "Pad": (1, 3),
    "RNN": (4,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "RoiAlign": (1,),  # the larger a region, the more samples of it are taken
    "STFT": (1, 3),
    "SequenceAt": (1,),
    "SequenceErase": (1,),
    "SequenceInsert": (2,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "SplitToSequence": (1,),
    "Squeeze": (1,),
    "StringNormalizer": (0,),
    "StringSplit": (0,),
    "Tile": (1, 2),
    "TopK": (1,),
    "Unique": (0,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
} | {f"Reduce{name}": (1,) for name in _REDUCTIONS}

#: The domains of ONNX's operators.
_ONNX = ("", "ai.onnx", "ai.onnx.ml")

#: Operators of onnxruntime that quantizers and optimisers write, and that take as long as their shapes say. What others
#: do, such as attention with lengths as an input, is not known here.
_OF_ONNXRUNTIME = frozenset(
    {
        "BiasAdd",
        "BiasGelu",
        "BiasSoftmax",
        "DequantizeLinear",
        "DynamicQuantizeMatMul",
        "FastGelu",
        "FusedConv",
        "FusedGemm",
        "FusedMatMul",
        "Gelu",
        "GroupNorm",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "NhwcConv",
        "NhwcFusedConv",
        "NhwcMaxPool",
        "QGemm",
        "QLinearAdd",
        "QLinearAveragePool",
        "QLinearConcat",
        "QLinearConv",
        "QLinearGlobalAveragePool",
        "QLinearLeakyRelu",
        "QLinearMul",
        "QLinearReduceMean",
        "QLinearSigmoid",
        "QLinearSoftmax",
        "QLinearWhere",
        "QuantizeLinear",
        "QuickGelu",
        "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
    }
)

#: Operators whose output follows from the shape of their input alone.
_OF_SHAPES = ("SequenceLength", "Shape", "Size")


def numbers_decide(model: onnx.ModelProto, sent: Set[str] = frozenset()) -> bool:
    """Whether runs with equal shapes may take very different times.

    ``sent`` are the inputs with a default in the file that requests may send, too; the others are constants.

    True where a model has functions, or graphs inside nodes (Loop, If, Scan, ...); where the numbers of an input decide
    the size of an output; and where they reach an operator that is not known here.
    """
    if model.functions:
        return True
    graph = model.graph
    constant = {tensor.name for tensor in graph.initializer} - sent
    #: The tensors whose numbers depend on those of an input.
    free = {value.name for value in graph.input if value.name not in constant}
    for node in graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            return True
        if node.op_type in _OF_SHAPES or not any(name in free for name in node.input):
            continue
        if node.domain not in _ONNX:
            if node.op_type not in _OF_ONNXRUNTIME:
                return True
        elif any(name in free for name in _decisive(node)):
            return True
        free.update(name for name in node.output if name)
    return False


def _decisive(node: onnx.NodeProto) -> list[str]:
    """The inputs of ``node`` whose numbers decide the size of its output, or the length of its run."""
    return [node.input[place] for place in DECIDED_BY.get(node.op_type, ()) if place < len(node.input)]
