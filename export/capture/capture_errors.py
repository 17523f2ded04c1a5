"""Messages for networks that torch cannot capture: the reason, the line of the user's code, and what to do.

data-dependent control flow    `if x.sum() > 0:`               torch.where, or export the branch that is wanted
a number out of a tensor       `x / float(x.std())`            the tensor itself
a fixed dimension              `x.view(2, 16, 17)`             give the size, or write the line with -1
an unsupported operator        aten.fft_rfft                   compute it outside
NumPy, in-place on an input    `x.numpy()`, `x += 1`           the same in torch, on a copy
training in forward            `F.dropout(x)`                  pass training=self.training
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress

from torch import nn
from torch.export import ExportedProgram
from torch.fx import Node

from normfold.counting import listed
from normfold.export.errors import CaptureError
from normfold.export.inputs.specs import Dimension, InputSpec
from normfold.export.user_code import line_of_error, line_of_text

__all__ = [
    "fixed_dimension",
    "refuse_quantized",
    "refuse_training",
    "refuse_training_modules",
    "translate",
    "writes_while_it_runs",
]

_QUANTIZED = re.compile(r"torch\.(ao\.)?nn\.(intrinsic\.)?quantized\b")

#: Calls that make a number of Python of a tensor, words of code that decides by one, and the extremes of numbers.
_TAKEN = re.compile(r"\b(float|int)\(|\.(item|tolist)\(\)")
_DECIDES = re.compile(r"\b(if|elif|while|assert|range|and|or|not|bool)\b")
_EXTREMES = re.compile(r"(?<![.\w])(max|min)\(")


def translate(error: BaseException, program: ExportedProgram | None = None) -> str:
    """Return one message for an error of ``torch.export``, or of ``torch.onnx.export`` on ``program``."""
    text = _all_text(error)
    line = line_of_error(error)
    where = f" at {line}" if line else ""
    operator = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", text)
    if operator or "UnsupportedOperator" in text:
        name = operator[1] if operator else "an operator"
        return (
            f"ONNX has no counterpart for the operator {name}, which the network "
            f"uses{_line_of_operator(name, program) or where}; "
            "write it with other torch operations, or compute it outside the network"
        )
    if "GuardOnDataDependentSymNode" in text or "data-dependent" in text or "Dynamic control flow" in text:
        return _by_values(line, where)
    if re.search(r"pack_padded_sequence|pad_packed_sequence|failed to unpack the object at pos", text + line):
        return (
            f"packed sequences cannot be captured{where}; run the recurrent layer on the padded sequence, and pick "
            "each sequence's last step with gather() and the lengths. Where the layer is bidirectional, its other "
            "direction would read the padding first: make that a layer of its own, which reads each sequence reversed "
            "by gather()"
        )
    if "Cannot find a compatible OpOverload" in text:
        return (
            f"torch has no translation to ONNX for a call with arguments of these types{where}; most often a whole "
            "number and a size that is computed from the input are mixed"
        )
    if writes_while_it_runs(error):
        return (
            f"the network writes a tensor through .data while it runs, or keeps one that it made while it ran{where}, "
            "which torch cannot capture; do that once before the export (self.weight.data.clamp_()), not in forward"
        )
    if ".numpy()" in text or "numpy() is not supported" in text:
        return f"the network leaves torch for NumPy{where}; write the same with torch operations, which can be captured"
    if re.search(r"in-?place|mutat", text, re.IGNORECASE) and "input" in text:
        return f"the network changes its own input in place{where}; work on a copy (x = x.clone()) instead"
    gist = _gist(error)
    if "only 4D query, key, and value" in gist:
        return (
            "scaled_dot_product_attention can be written as ONNX for tensors of 4 axes only (batch, heads, positions, "
            "features): add the axis of heads with q[:, None] and take it off again"
        )
    if re.fullmatch(r"aten\.[\w.]+", gist):
        return (
            f"torch cannot capture the operator {gist}, which the network uses{where}; "
            "write it with other torch operations, or compute it outside the network"
        )
    return f"torch cannot capture the network{where}: {gist}"


def writes_while_it_runs(error: BaseException) -> bool:
    """Whether torch met a tensor that the network wrote through ``.data``, or kept, while it ran."""
    return "fake tensor in the exported program constant" in _all_text(error)


def fixed_dimension(name: str, specs: Sequence[InputSpec], size: int, line: str, error: BaseException) -> str:
    """Return the message for a dimension that should stay dynamic, but has a fixed size in the network."""
    spec, axis = next(
        (s, axis) for s in specs for axis, d in enumerate(s.dims) if isinstance(d, Dimension) and d.name == name
    )
    line = line or line_of_error(error)
    where = f" at {line}" if line else ""
    fixed = ",".join(str(size) if isinstance(d, Dimension) and d.name == name else str(d) for d in spec.dims)
    special = "specialized it to be a constant" in str(error)
    why = "" if special else f" ({_gist(error)})"
    batch = ""
    if isinstance(spec.dims[0], int) and spec.dims[0] > 1 and name != "N":
        dims = ",".join(d.name if isinstance(d, Dimension) else str(d) for d in spec.dims)
        batch = f"; if the batch is missing, add it: --input '{spec.name}={spec.datatype.name}[N,{dims}]'"
    return (
        f"dimension '{name}' (axis {axis} of '{spec.name}') cannot stay dynamic: the network fixes it{where}{why}. "
        f"Give its size (--input '{spec.name}={spec.datatype.name}[{fixed}]'), or write that line without a fixed size"
        f"{batch}"
    )


def refuse_training_modules(network: nn.Module) -> None:
    """Raise CaptureError where a module still trains after ``eval()``: its answers would depend on the batch."""
    modules = dict(network.named_modules())
    for path, module in modules.items():
        name = f"'{path}'" if path else "the network"
        kind = type(module).__name__
        if module.training:
            holders = [modules[".".join(path.split(".")[:n])] for n in range(path.count(".") + 2)] if path else [module]
            guilty = next((h for h in reversed(holders) if type(h).train is not nn.Module.train), None)
            why = f": the class {type(guilty).__name__} overrides train()" if guilty is not None else ""
            raise CaptureError(
                f"{name} ({kind}) stays in training mode after eval(){why}. "
                "An exported network must compute what it computes in evaluation; let eval() reach it"
            )
        if _normalises_by_its_batch(module):
            others = [f"'{other}'" for other, m in modules.items() if m is not module and _normalises_by_its_batch(m)]
            raise CaptureError(
                f"{name} ({kind}) keeps no running statistics (track_running_stats=False): it normalises by the "
                "batch it "
                "is given, also in eval(), so one answer depends on the others in its batch and nothing can be folded. "
                "Train with track_running_stats=True, or set running_mean and running_var from the training data"
                + (f". The same is true of {listed(others)}" if others else "")
            )


def _normalises_by_its_batch(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None


def refuse_quantized(network: nn.Module) -> None:
    """Raise CaptureError where a module computes in torch's quantized numbers, or watches values to quantize later."""
    for path, module in network.named_modules():
        kind = type(module)
        classes = {c.__name__ for c in kind.__mro__}
        instead = "export it as it was before, and give --quantize int8"
        if classes & {"ObserverBase", "FakeQuantizeBase"}:
            raise CaptureError(
                f"the network was prepared for torch's quantization ('{path}' is a {kind.__name__}), which a graph "
                f"cannot hold; {instead}"
            )
        if _QUANTIZED.match(kind.__module__) and not kind.__name__.endswith("FloatFunctional"):
            raise CaptureError(
                f"the network is quantized by torch ('{path}' is a {kind.__name__} of {kind.__module__}), which cannot "
                f"be captured; {instead}"
            )


def refuse_training(program: ExportedProgram) -> None:
    """Raise CaptureError where the captured program draws random numbers or normalises by its batch."""
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    found = []
    for matches, message in _TRAINING:
        if nodes := [node for node in calls if matches(node)]:
            lines = list(dict.fromkeys(filter(None, (line_of_text(n.meta.get("stack_trace") or "") for n in nodes))))
            operators = listed(list(dict.fromkeys(str(n.target) for n in nodes)))
            found.append(message.format(where=f" at {listed(lines)}" if lines else "", operators=operators))
    if found:
        raise CaptureError(". Moreover, ".join(found))


def _dropout_trains(node: Node) -> bool:
    return _overload(node) in (
        "aten::dropout",
        "aten::feature_dropout",
        "aten::alpha_dropout",
        "aten::native_dropout",
    ) and ((len(node.args) > 2 and node.args[2] is True) or node.kwargs.get("train") is True)


def _batch_norm_trains(node: Node) -> bool:
    return (
        _overload(node) in ("aten::batch_norm", "aten::native_batch_norm")
        and len(node.args) > 5
        and node.args[5] is True
    )


def _is_random(node: Node) -> bool:
    return _overload(node) in {
        f"aten::{n}"
        for n in (
            "rand",
            "randn",
            "rand_like",
            "randn_like",
            "randint",
            "bernoulli",
            "multinomial",
            "normal",
            "rrelu_with_noise",
        )
    }


_TRAINING: tuple[tuple[Callable[[Node], bool], str], ...] = (
    (
        _dropout_trains,
        "the network drops values at random also in evaluation{where}: F.dropout trains by default. "
        "Write F.dropout(x, p, training=self.training), or use nn.Dropout",
    ),
    (
        _batch_norm_trains,
        "the network normalises by the statistics of its batch also in evaluation{where}; "
        "pass training=self.training and the running statistics",
    ),
    (
        _is_random,
        "the network draws random numbers{where} ({operators}), so no two answers are equal and no proof is possible",
    ),
)


def _by_values(line: str, where: str) -> str:
    """The message for code that needs the values of a tensor: to decide by them, or as a number of Python."""
    code = line.partition(": `")[2]
    taken = _TAKEN.search(code)
    if taken is None or _DECIDES.search(code):
        return (
            f"the network decides by the values of its input{where}; a graph has no such branch. "
            "Use torch.where on both results, or make the choice before calling the network"
        )
    call = taken[0].lstrip(".").rstrip("()") + "()"
    hints = [f"leave it a tensor: write the line without {call}"]
    if call == "int()":
        hints = [
            "leave it a tensor: .long() cuts the fraction off as int() does",
            "a size or the end of a slice cannot depend on the values; use a mask, or torch.gather for an index",
        ]
    hints += [f"in the place of {name}() use torch.{name}imum or .clamp()" for name in _EXTREMES.findall(code)[:1]]
    return f"{call} takes a number out of the tensor{where}, and a graph holds tensors only; {'; '.join(hints)}"


def _overload(node: Node) -> str:
    schema = getattr(node.target, "_schema", None)
    return schema.name if schema is not None else ""


def _all_text(error: BaseException | None) -> str:
    texts = []
    while error is not None:
        texts.append(f"{type(error).__name__}: {error}")
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


def _line_of_operator(name: str, program: ExportedProgram | None) -> str:
    """Return the line that called ``name``; torch may have decomposed the operator that the network called into it."""
    if program is None:
        return ""
    short = name.rpartition(".")[2]
    nodes: list[Node] = list(program.graph.nodes)
    if not any(_is_operator(n, short) for n in nodes):
        with suppress(Exception):  # an error inside torch: then only the line is missing
            nodes += program.run_decompositions().graph.nodes
    lines = (line_of_text(n.meta.get("stack_trace") or "") for n in nodes if _is_operator(n, short))
    return next((f" at {line}" for line in lines if line), "")


def _is_operator(node: Node, short: str) -> bool:
    return _overload(node).rpartition("::")[2].endswith(short)


def _gist(error: BaseException) -> str:
    """Return the first line of an error's root cause, without torch's advice to its own developers."""
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    lines = [line.strip() for line in str(root).splitlines() if line.strip()]
    lines = [
        line for line in lines if not line.startswith(("- If", "- Create", "Constraints violated", "The error above"))
    ]
    return re.sub(r"\x1b\[\d+m", "", lines[0]).rstrip(".") if lines else type(root).__name__
