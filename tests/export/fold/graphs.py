"""Small graphs as ONNX text, what they compute in float64, and the assertion that a fold changed nothing of it."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, parser
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from normfold.export.fold import Fold, FoldReport, fold
from normfold.export.fold.net import Net, Op
from normfold.export.fold.reading import Reading

Array = NDArray[Any]

FLOATS = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16, TensorProto.BFLOAT16: ml_dtypes.bfloat16}
#: No dot product, pool or sum of the graphs in these tests has more terms.
TERMS = 64


def graph(text: str, opset: int = 17, ir_version: int = 9, **constants: Any) -> onnx.ModelProto:
    """Return the model of a graph "(inputs) => (outputs) { nodes }"; arrays given by name become its initializers.

    ``BN(u, n)`` is short for the BatchNormalization of u with the parameters of ``norm("n", …)``.
    """
    text = re.sub(r"\bBN\((\w+), (\w+)\)", r"BatchNormalization(\1, \2_gamma, \2_beta, \2_mean, \2_var)", text)
    model = parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["": {opset}]> test {text}')
    for k, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{k}"
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items())
    return model


def weights(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    """Return weights of standard deviation 1/sqrt(terms of an output)."""
    draw = np.random.default_rng([seed, *shape]).standard_normal(shape)
    return (draw / np.sqrt(max(1, np.prod(shape[1:])))).astype(dtype)


def norm(name: str, channels: int, dtype: Any = np.float32, **given: Any) -> dict[str, Array]:
    """Return the parameters of a BatchNorm as ``name_gamma, name_beta, name_mean, name_var``.

    gamma: "mixed" (the default; every third is negative), "positive", "negative", or an array.
    """
    rng = np.random.default_rng([channels, *name.encode()])
    gamma = rng.uniform(0.5, 1.5, channels)
    sign = given.pop("gamma", "mixed")
    if not isinstance(sign, str):
        gamma = np.asarray(sign, np.float64)
    elif sign == "negative":
        gamma = -gamma
    elif sign == "mixed":
        gamma[::3] *= -1
    drawn = {
        "gamma": gamma,
        "beta": rng.standard_normal(channels),
        "mean": 0.5 * rng.standard_normal(channels),
        "var": rng.uniform(0.3, 2.0, channels),
    }
    return {f"{name}_{k}": np.asarray(v, np.float64).astype(dtype) for k, v in {**drawn, **given}.items()}


def folded(model: onnx.ModelProto) -> tuple[onnx.ModelProto, FoldReport]:
    """Return the folded model, checked against ONNX's rules, and the report; the model itself is left as it is."""
    copy = ir.from_proto(onnx.ModelProto.FromString(model.SerializeToString()))
    report = fold(copy)
    after = ir.to_proto(copy)
    onnx.checker.check_model(after, full_check=True)
    return after, report


def operators(model: onnx.ModelProto) -> list[str]:
    """Return the operators of the graph in alphabetical order."""
    return sorted(node.op_type for node in model.graph.node)


def counted(model: onnx.ModelProto) -> Counter[str]:
    """Return how many nodes of each operator the graph and its subgraphs have."""
    return Counter(node.op_type for node in ir.from_proto(model).graph.all_nodes())


def weight_of(model: onnx.ModelProto, index: int = 0, place: int = 1, op: str = "Conv") -> Array:
    """Return a constant input of the index-th node of an operator."""
    nodes = [node for node in model.graph.node if node.op_type == op]
    name = nodes[index].input[place]
    return next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == name)


def drawn_inputs(model: onnx.ModelProto, shape: tuple[int, ...], seed: int = 0) -> dict[str, Array]:
    """Return standard normal numbers of the given shape for the first input, of their own shape for the others."""
    rng = np.random.default_rng(seed)
    held = {t.name for t in model.graph.initializer}
    inputs: dict[str, Array] = {}
    for value in model.graph.input:
        if value.name in held:
            continue
        own = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        size = shape if not inputs else own
        inputs[value.name] = (
            rng.standard_normal(size).astype(dtype)
            if dtype in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)
            else rng.integers(0, 2, size).astype(dtype)
        )
    return inputs


def onnxruntime(model: onnx.ModelProto, inputs: dict[str, Array]) -> list[Array]:
    """Return the outputs as onnxruntime computes them without its optimiser, which folds some of what is compared."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(y) for y in session.run(None, inputs)]


def in_float64(model: onnx.ModelProto, inputs: dict[str, Array]) -> list[Array]:
    """Return the outputs as ONNX's own reference computes them from float64 inputs and constants.

    But for four operators, whose reference is wrong (BatchNormalization before opset 14 trains, GlobalMaxPool drops an
    axis) or does not run (ConvTranspose with groups, MaxPool with padding).
    """
    double = onnx.ModelProto.FromString(model.SerializeToString())
    _double(double.graph)
    for function in double.functions:
        for node in function.node:
            _double_node(node)
    wide = {k: v.astype(np.float64) if v.dtype.kind not in "biu" else v for k, v in inputs.items()}
    return [
        np.asarray(y)
        for y in ReferenceEvaluator(double, new_ops=[BatchNormalization, ConvTranspose, MaxPool, GlobalMaxPool]).run(
            None, wide
        )
    ]


class BatchNormalization(OpRun):
    """BatchNorm by its running statistics."""

    op_domain = ""

    def _run(self, x: Array, scale: Array, bias: Array, mean: Array, var: Array, **attributes: Any) -> tuple[Array]:
        assert not attributes.get("training_mode")
        gamma, beta, mu, sigma2 = (p.reshape(-1, *[1] * (x.ndim - 2)) for p in (scale, bias, mean, var))
        return (gamma * (x - mu) / np.sqrt(sigma2 + attributes["epsilon"]) + beta,)


class ConvTranspose(OpRun):
    """PyTorch's transposed convolution without padding, cut to the size that ONNX's attributes ask for."""

    op_domain = ""

    def _run(self, x: Array, w: Array, b: Array | None = None, **given: Any) -> tuple[Array]:
        n = w.ndim - 2
        one, none = [1] * n, [0] * n
        strides, dilations = given.get("strides") or one, given.get("dilations") or one
        extra, pads = given.get("output_padding") or none, given.get("pads") or [0] * 2 * n
        run = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)[n - 1]
        bias = None if b is None else torch.tensor(b)
        tx, tw = torch.tensor(x), torch.tensor(w)
        y = run(tx, tw, bias, strides, 0, 0, given.get("group") or 1, dilations).numpy()
        for a in range(n):
            whole = (x.shape[2 + a] - 1) * strides[a] + dilations[a] * (w.shape[2 + a] - 1) + 1 + extra[a]
            begin, end = pads[a], pads[n + a]
            auto = given.get("auto_pad") or "NOTSET"
            if given.get("output_shape") or auto in ("SAME_UPPER", "SAME_LOWER"):
                size = (given.get("output_shape") or [s * d for s, d in zip(strides, x.shape[2:], strict=True)])[a]
                half = (whole - size) // 2
                begin, end = (half, whole - size - half) if auto == "SAME_UPPER" else (whole - size - half, half)
            # Output padding lengthens the output by positions that no tap reaches but the bias.
            beyond = np.zeros((*y.shape[: 2 + a], extra[a], *y.shape[3 + a :]))
            beyond += 0 if b is None else b.reshape(-1, *[1] * n)
            y = np.concatenate([y, beyond], 2 + a)
            y = y.take(range(begin, y.shape[2 + a] - end), 2 + a)
        return (y,)


class MaxPool(OpRun):
    """The largest of each window, and with a second output its place in the whole tensor; one position axis, or a column."""

    op_domain = ""

    def _run(self, x: Array, **given: Any) -> tuple[Array, ...]:
        if x.ndim == 4:
            assert x.shape[3] == given["kernel_shape"][1] == 1
            along = {name: value[::2] if isinstance(value, list) else value for name, value in given.items()}
            return tuple(y[..., None] for y in self._run(x[..., 0], **along))
        (k,), (stride,), (dilation,) = given["kernel_shape"], given.get("strides") or [1], given.get("dilations") or [1]
        length, span = x.shape[2], dilation * (k - 1) + 1
        begin, end = given.get("pads") or [0, 0]
        auto = given.get("auto_pad") or "NOTSET"
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            needed = max((-(-length // stride) - 1) * stride + span - length, 0)
            begin, end = needed // 2, needed - needed // 2
            begin, end = (begin, end) if auto == "SAME_UPPER" else (end, begin)
        room = length + begin + end - span
        count = (-(-room // stride) if given.get("ceil_mode") else room // stride) + 1
        count -= (count - 1) * stride >= length + begin  # no window starts behind the end
        padded = np.pad(x, ((0, 0), (0, 0), (begin, end + stride)), constant_values=-np.inf)
        places = stride * np.arange(count)[:, None] + dilation * np.arange(k)
        windows = padded[:, :, places]
        best = np.take_along_axis(np.broadcast_to(places, windows.shape), windows.argmax(-1)[..., None], -1)[..., 0]
        row = np.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], 1)
        return (windows.max(-1), best - begin + length * row)[: len(self.onnx_node.output)]


class GlobalMaxPool(OpRun):
    """The largest entry of each channel."""

    op_domain = ""

    def _run(self, x: Array) -> tuple[Array]:
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


def _double(g: onnx.GraphProto) -> None:
    for tensor in g.initializer:
        tensor.CopyFrom(_double_tensor(tensor))
    for value in (*g.input, *g.output, *g.value_info):
        if value.type.tensor_type.elem_type in FLOATS:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for node in g.node:
        _double_node(node)


def _double_node(node: onnx.NodeProto) -> None:
    for a in list(node.attribute):
        if a.type == onnx.AttributeProto.TENSOR:
            a.t.CopyFrom(_double_tensor(a.t))
        elif a.type == onnx.AttributeProto.GRAPH:
            _double(a.g)
        elif node.op_type == "Cast" and a.name == "to" and a.i in FLOATS:
            a.i = TensorProto.DOUBLE
        elif node.op_type == "Constant" and a.name in ("value_float", "value_floats"):
            held = np.array(a.f if a.name == "value_float" else list(a.floats), np.float64)
            node.attribute.remove(a)
            node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(held)))


def _double_tensor(tensor: onnx.TensorProto) -> onnx.TensorProto:
    if tensor.data_type not in FLOATS:
        return tensor
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name)


def same_function(before: onnx.ModelProto, after: onnx.ModelProto, *shapes: tuple[int, ...]) -> None:
    """Assert that two models compute the same of inputs of the given shapes, as well as their type allows.

    In exact arithmetic they are equal, so only rounding parts them. An output is a sum of at most TERMS products; each
    rounding, of a product, of a partial sum or of a folded weight, moves it by eps of what it adds, so a graph of that
    width moves it by TERMS · eps of the largest entry, to first order. Deeper graphs multiply the errors of the layers
    before, in the graph as it was no less than folded: twice the error that the graph as it was makes is granted too.
    Both errors are taken against float64. float16 and bfloat16 are judged by their weights alone, computed in float64.
    """
    assert [o.name for o in before.graph.output] == [o.name for o in after.graph.output]
    assert [i.name for i in before.graph.input] == [i.name for i in after.graph.input]
    assert [o.type.tensor_type.elem_type for o in before.graph.output] == [
        o.type.tensor_type.elem_type for o in after.graph.output
    ]
    elem = before.graph.output[0].type.tensor_type.elem_type
    for seed, shape in enumerate(shapes):
        inputs = drawn_inputs(before, shape, seed)
        want = in_float64(before, inputs)
        if elem == TensorProto.FLOAT:
            old, new = onnxruntime(before, inputs), onnxruntime(after, inputs)
        else:
            old, new = want, in_float64(after, inputs)
        kinds = {elem, *(t.data_type for t in before.graph.initializer)} & {*FLOATS, TensorProto.DOUBLE}
        eps = max(float(ml_dtypes.finfo(FLOATS.get(k, np.float64)).eps) for k in kinds)
        for w, o, n in zip(want, old, new, strict=True):
            assert n.shape == w.shape, f"the output has shape {n.shape}, not {w.shape}"
            size = float(np.abs(w).max(initial=0.0))
            was, error = (float(np.abs(y - w).max(initial=0.0)) for y in (o, n))
            assert was <= 1e-3 * max(size, 1e-3), f"the graph as it was is off by {was} already"
            bound = 2 * was + TERMS * eps * max(size, 1e-3)
            assert error <= bound, f"off by {error} at {shape}, where {bound} is granted"


def same_in_onnxruntime(before: onnx.ModelProto, after: onnx.ModelProto, *shapes: tuple[int, ...]) -> None:
    """Assert that two models whose operators ONNX's reference lacks compute the same, within the bound of above."""
    for seed, shape in enumerate(shapes):
        inputs = drawn_inputs(before, shape, seed)
        for want, got in zip(onnxruntime(before, inputs), onnxruntime(after, inputs), strict=True):
            assert got.shape == want.shape
            bound = TERMS * float(np.finfo(np.float32).eps) * float(np.abs(want).max(initial=1e-3))
            np.testing.assert_allclose(got, want, rtol=0, atol=bound)


def left(report: FoldReport) -> dict[str, str]:
    """Return the affines that stayed and every reason why, one text each."""
    return {f.name: "; ".join(f.reasons) for f in report.folds if not f.folded}


def only(report: FoldReport) -> Fold:
    """Return the one fold of a report."""
    (one,) = report.folds
    return one


def folds_to(model: onnx.ModelProto, expected: str, *shapes: tuple[int, ...]) -> tuple[onnx.ModelProto, FoldReport]:
    """Assert that all affines go, that these operators are left, and that the function is the same."""
    after, report = folded(model)
    assert not left(report), left(report)
    assert operators(after) == sorted(expected.split())
    same_function(model, after, *shapes)
    return after, report


def stays(model: onnx.ModelProto, sentence: str, *shapes: tuple[int, ...]) -> tuple[onnx.ModelProto, FoldReport]:
    """Assert that an affine stays, with a reason that holds the sentence, and that the function is the same."""
    after, report = folded(model)
    reasons = left(report)
    assert any(sentence in reason for reason in reasons.values()), reasons or report
    same_function(model, after, *shapes)
    return after, report


def net_of(model: onnx.ModelProto) -> Net:
    """Return the network that folding reads from a graph."""
    copy = ir.from_proto(onnx.shape_inference.infer_shapes(model, data_prop=True))
    return Reading(copy.graph, copy.opset_imports[""]).net()


def operator(model: onnx.ModelProto, op_type: str) -> Op:
    """Return the first operator of a type, as folding reads it."""
    return next(op for op in net_of(model).ops if op.node.op_type == op_type)
