"""A network as a function from named input tensors to named output tensors.

PyTorch networks take positional and keyword arguments and return tensors, or tuples, dicts and dataclasses of tensors.
A graph has flat lists of names. Only :class:`NamedNetwork` knows how the two correspond.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from normfold.counting import counted
from normfold.export.errors import CaptureError, InputSpecError, StateError
from normfold.export.state import Held, kept_state, message, other_inputs

__all__ = ["NamedNetwork", "named_outputs", "weights_dtype"]

Arrays = dict[str, NDArray[Any]]


class NamedNetwork(nn.Module):
    """``network`` with inputs that are called ``names``; ``forward`` takes them in that order and returns a flat tuple.

    Where the names are parameters of the network's ``forward``, the inputs are passed by keyword, else by position.
    Where a parameter is a dict or a tuple of tensors, its entries are called "batch.audio" and "batch.mask", or
    "pair.0" and "pair.1". Raises InputSpecError where only some of the names are parameters.

    dtype is that of the floating-point inputs; None: that of the network's weights.
    """

    def __init__(self, network: nn.Module, names: Sequence[str], dtype: torch.dtype | None = None):
        super().__init__()
        self.network = network
        self.names = tuple(names)
        self._asked = dtype
        self.by_keyword = _by_keyword(network, self.names)
        self.eval()
        self.held = Held(network)
        self._judged = False

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the network and return its output tensors in the order of :func:`named_outputs`."""
        return tuple(tensor for _, tensor in named_outputs(self.call(tensors)))

    def call(self, tensors: Sequence[Tensor]) -> Any:
        """Run the network and return what it returns."""
        if self.by_keyword:
            return self.network(**_nested(dict(zip(self.names, tensors, strict=True))))
        return self.network(*tensors)

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
        """Run the network on NumPy arrays, floats cast to :attr:`dtype`; return the outputs by name.

        Every run finds the network as it was given: what the run writes into it is put back. Raises StateError where
        the answer depends on earlier calls, which is found out in the first run that the network takes.
        """
        dtype = self.dtype
        # Of copies, because a network may write to its input.
        tensors = [torch.from_numpy(np.array(arrays[name])) for name in self.names]
        tensors = [t.to(dtype) if t.is_floating_point() else t for t in tensors]
        if not self._judged:
            self._refuse_state(tensors)
        with torch.no_grad(), self.held.kept():
            outputs = named_outputs(self.call(tensors))
            return {name: tensor.detach().numpy().copy() for name, tensor in outputs}

    def _refuse_state(self, tensors: Sequence[Tensor]) -> None:
        written = kept_state(self.network, lambda number: self.forward(*(other_inputs(t, number) for t in tensors)))
        if written is not None:
            raise StateError(message(written))
        self._judged = True

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of floating-point inputs: as asked for, else that of the weights, float32 where there are none."""
        return self._asked or weights_dtype(self.network)


def weights_dtype(network: nn.Module) -> torch.dtype:
    """Return the floating-point dtype of the weights; float32 for a network without such weights."""
    return next((p.dtype for p in network.state_dict().values() if p.is_floating_point()), torch.float32)


def named_outputs(returned: Any) -> list[tuple[str, Tensor]]:
    """Return the tensors that a network returned, in order and with names; None is left out.

    A single tensor is "output"; those of a tuple are "output_0", "output_1"; dicts, named tuples and dataclasses give
    their own keys, nested keys joined by "_". Raises CaptureError for other types, for two tensors of one name, and for
    a key with control characters or a tensor that no server sends.
    """
    outputs = list(_flatten("", returned))
    if not outputs:
        raise CaptureError("the network returns no tensor: does its forward() end without a return?")
    for name, tensor in outputs:
        if trouble := _unsendable(tensor):
            raise CaptureError(f"the network returns {trouble} as '{name}'")
    names = [name for name, _ in outputs]
    for name in names:
        if names.count(name) > 1:
            raise CaptureError(
                f"the network returns two tensors that would both be called {name!r}; rename one of them"
            )
        if not name.isprintable():
            raise CaptureError(
                f"the network returns {name!r}, which has characters that cannot be printed; "
                "use letters, digits and '_' for the keys of what forward returns"
            )
    return outputs


def _unsendable(tensor: Tensor) -> str:
    """Return which kind of tensor it is that no server sends, and what to return instead; "" for an ordinary one."""
    if tensor.is_complex():
        return "complex numbers, which no server sends: return torch.view_as_real(y), or y.real and y.imag,"
    if tensor.layout is not torch.strided or tensor.is_quantized:
        return f"a {'quantised' if tensor.is_quantized else 'sparse'} tensor, which no graph holds: return a dense one"
    return "bfloat16, which no server sends: return y.float()" if tensor.dtype is torch.bfloat16 else ""


def _flatten(path: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path or "output", value
        return
    if value is None:
        return
    items: list[tuple[str, Any]]
    if isinstance(value, Mapping):
        items = [(str(k), v) for k, v in value.items()]
    elif dataclasses.is_dataclass(value):
        items = [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        items = list(zip(value._fields, value, strict=True))
    elif isinstance(value, (tuple, list)):
        if len(value) == 1:
            yield from _flatten(path, value[0])
            return
        items = [(str(i) if path else f"output_{i}", v) for i, v in enumerate(value)]
    else:
        raise CaptureError(
            f"the network returns a value of type {type(value).__name__}{f' in {path!r}' if path else ''}; "
            "an exported network returns tensors, or tuples, dicts and dataclasses of tensors"
        )
    for key, item in items:
        yield from _flatten(f"{path}_{key}" if path else key, item)


def _by_keyword(network: nn.Module, names: tuple[str, ...]) -> bool:
    parameters = inspect.signature(network.forward).parameters
    named = [p.name for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    holders = tuple(dict.fromkeys(name.partition(".")[0] for name in names))
    if any("." in name for name in names) and set(holders) & set(named):
        both = next((n for n in names if any(other.startswith(f"{n}.") for other in names)), "")
        if both:
            raise InputSpecError(f"input '{both}' is described both as a tensor and as a dict or tuple of tensors")
        names = holders
    unknown = [n for n in names if n not in named]
    if not unknown:
        missing = [n for n in named if parameters[n].default is inspect.Parameter.empty and n not in names]
        if missing:
            raise InputSpecError(
                f"the network's forward({', '.join(named)}) also needs {', '.join(missing)}: give an --input for each"
            )
        return True
    if len(unknown) < len(names):
        near = difflib.get_close_matches(unknown[0], [n for n in named if n not in names], n=1, cutoff=0.3)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise InputSpecError(f"the network's forward({', '.join(named)}) has no input '{unknown[0]}'{hint}")
    needed = [p.name for p in parameters.values() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    takes_any = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
    if len(names) < len(needed) or (len(names) > len(named) and not takes_any):
        raise InputSpecError(
            f"the network's forward({', '.join(named)}) takes {counted(len(needed), 'input')}, "
            f"but the description has {len(names)}: give one --input for each of {', '.join(needed)}"
            + (f"; the entries of a dict or tuple are {needed[0]}.key or {needed[0]}.0" if needed else "")
        )
    return False


def _nested(values: Mapping[str, Tensor]) -> dict[str, Any]:
    """Put "batch.mask" under the key "mask" of a dict "batch"; return tuples where the keys are 0, 1, 2, …."""
    held: dict[str, Any] = {}
    inner: dict[str, dict[str, Tensor]] = {}
    for name, value in values.items():
        holder, dot, key = name.partition(".")
        if dot:
            inner.setdefault(holder, {})[key] = value
            held[holder] = None  # keeps its place in the order
        else:
            held[holder] = value
    for holder, entries in inner.items():
        content = _nested(entries)
        indices = [str(i) for i in range(len(content))]
        held[holder] = tuple(content[i] for i in indices) if set(content) == set(indices) else content
    return held
