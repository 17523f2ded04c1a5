"""Finds the state that a network keeps from one call to the next, and puts it back after each run.

A graph is a function of its inputs. A network may keep the end of the last block in a buffer, or a recurrent state in
an attribute. Then it answers the same input differently after other inputs, and a graph of it is wrong from the second
call on.
"""

from __future__ import annotations

import dis
import inspect
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.utils._pytree import tree_leaves

from normfold.counting import listed

__all__ = ["Held", "Written", "kept_state", "message", "other_inputs"]

#: Entries of a module's ``__dict__`` that torch keeps there itself. "training" is judged elsewhere.
_OWN = frozenset(nn.Module().__dict__)
#: Containers that are copied. Classes derived from them, such as a configuration that is read like an object, have
#: constructors of their own, so they are left alone: a copy would be of another kind.
_MAPPINGS, _SEQUENCES = (dict, OrderedDict, defaultdict), (list, deque)
#: How far an answer may move, relative to its largest value, where a network writes nothing or only its own weights: a
#: kernel may sum in any order, and a limit on the weights' norm, applied in forward() twice, rounds them twice.
ROUNDING = 1e-5


@dataclass(frozen=True)
class Written:
    """A tensor or attribute that the network writes when it runs: "buffer", "first.past"."""

    kind: str
    name: str


class Held:
    """The values of all parameters, buffers and plain attributes of a network at one moment."""

    def __init__(self, network: nn.Module):
        owners = [*network.named_modules(), *_borrowed(network)]
        tables = (table for _, owner in owners for table in (owner._parameters, owner._buffers))
        if any(nn.parameter.is_lazy(t) for table in tables for t in table.values()):
            owners = []  # lazy ones get their values in the first run
        self._saved = [(name, owner, _copied(owner)) for name, owner in owners]
        self._tensors = {id(t): t for _, owner in owners for t in _tensors(owner)}

    def changes(self) -> list[Written]:
        """Return what has another value now."""
        found = []
        for name, owner, saved in self._saved:
            now = _members(owner)
            for kind, before in saved.items():
                for key in {**before, **now[kind]}:
                    if not _same(before.get(key, _MISSING), now[kind].get(key, _MISSING)):
                        label = f"self.{key}" if kind == "attribute" and not name else key
                        found.append(Written(kind, f"{name}.{label}" if name else label))
        return found

    def put_back(self) -> None:
        """Give everything that has another value now the value that it had."""
        for _, owner, saved in self._saved:
            now = _members(owner)
            for kind, before in saved.items():
                for key in {**before, **now[kind]}:
                    old, new = before.get(key, _MISSING), now[kind].get(key, _MISSING)
                    if not _same(old, new):
                        self._put(_table(owner, kind), key, old)

    def _put(self, table: dict[str, Any], key: str, old: _Value) -> None:
        if old is _MISSING:
            table.pop(key, None)
            return
        tensor = self._tensors.get(old.identity)
        if tensor is None or tensor.shape != old.value.shape:
            table[key] = _cloned(old.value)
            return
        with torch.no_grad():
            tensor.copy_(old.value)
        table[key] = tensor

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Put everything back at the end of the block, whatever happens in it."""
        try:
            yield
        finally:
            self.put_back()


def kept_state(network: nn.Module, run: Callable[[int], Any]) -> tuple[Written, ...] | None:
    """Return what ``network`` writes, where an answer depends on earlier calls; None where no answer does.

    run(number) returns the network's answer to one of several inputs of the same shapes: number 0 is the input whose
    answer must stay the same after others. An empty tuple means that it depends on something that no module holds.
    The network is left as it was found.
    """
    held = Held(network)

    def answer(number: int) -> Any:
        torch.manual_seed(0)  # dropout and noise have messages of their own
        return _cloned(run(number))

    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        with held.kept():
            first, written = answer(0), held.changes()
        with held.kept():
            again = answer(0)
        if not _close(first, again, 0.0):  # though all that the network holds was put back
            return None if _close(first, again, ROUNDING) else ()
        bound = ROUNDING if all(w.kind == "parameter" for w in written) else 0.0
        for numbers in ((1,), (0, 2, 3)):
            with held.kept():
                with suppress(Exception):  # the network may refuse these values
                    for number in numbers:
                        answer(number)
                changed = tuple(held.changes())
                try:
                    again = answer(0)
                except Exception:
                    return changed
                if not _close(first, again, bound):
                    return changed
    return None


def message(written: tuple[Written, ...]) -> str:
    """Return the sentence for a network that keeps state between calls."""
    advice = "make the state an input and an output of forward()"
    if not written:
        return (
            "the network answers the same input differently when it is called again, so its answer depends on earlier "
            f"calls or on random numbers; {advice}"
        )
    order = {"buffer": 0, "attribute": 1, "parameter": 2}
    first, *others = sorted(written, key=lambda w: order[w.kind])
    names = [f"`{w.name}`" for w in others]
    more = f" ({listed(names, 3)} too)" if names else ""
    what = f"the network writes its {first.kind} `{first.name}` when it runs{more}"
    return f"{what}, so its answer depends on earlier calls; {advice}"


def other_inputs(tensor: Tensor, number: int) -> Tensor:
    """Return another input of the same shape and within the same range of values; number 0 is the tensor itself."""
    if number == 0 or not tensor.numel():
        return tensor.clone()
    moved = tensor.reshape(-1).roll(number).flip(0).reshape(tensor.shape)
    return -moved * (1 + number / 8) + 0.1 * number if tensor.is_floating_point() else moved


@dataclass(frozen=True)
class _Value:
    """A copy of a value, and the identity of the tensor that it is a copy of (0 for other values)."""

    value: Any
    identity: int = 0


_MISSING = _Value(None, -1)


def _borrowed(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules that a forward() uses by the name of a variable around it, without being their owner."""
    found: list[tuple[str, nn.Module]] = []
    known = set(network.modules())
    for module in network.modules():
        forward = inspect.unwrap(getattr(module.forward, "__func__", module.forward))
        if type(module).__module__.startswith("torch.") or not inspect.isfunction(forward):
            continue
        # getclosurevars() also takes the names of attributes, self.encoder, for global variables
        loaded = {i.argval for i in dis.get_instructions(forward) if i.opname == "LOAD_GLOBAL"}
        around = {name: value for name, value in forward.__globals__.items() if name in loaded}
        with suppress(ValueError):  # a variable that has no value yet
            around |= inspect.getclosurevars(forward).nonlocals
        for name, value in around.items():
            for inner, part in value.named_modules() if isinstance(value, nn.Module) else ():
                if part not in known:
                    known.add(part)
                    found.append((f"{name}.{inner}" if inner else name, part))
    return found


def _table(owner: nn.Module, kind: str) -> dict[str, Any]:
    tables: dict[str, Any] = {"parameter": owner._parameters, "buffer": owner._buffers, "attribute": owner.__dict__}
    table: dict[str, Any] = tables[kind]
    return table


def _members(owner: nn.Module) -> dict[str, dict[str, _Value]]:
    """Return parameters, buffers and plain attributes of one module, without those of its children."""
    found: dict[str, dict[str, _Value]] = {}
    for kind in ("parameter", "buffer", "attribute"):
        table = _table(owner, kind)
        found[kind] = {
            key: _Value(value, id(value) if isinstance(value, Tensor) else 0)
            for key, value in table.items()
            if (kind != "attribute" or key not in _OWN) and _is_plain(value)
        }
    return found


def _copied(owner: nn.Module) -> dict[str, dict[str, _Value]]:
    return {
        kind: {key: _Value(_cloned(v.value), v.identity) for key, v in table.items()}
        for kind, table in _members(owner).items()
    }


def _tensors(owner: nn.Module) -> Iterator[Tensor]:
    for table in _members(owner).values():
        yield from (v.value for v in table.values() if isinstance(v.value, Tensor))


def _is_plain(value: Any, depth: int = 3) -> bool:
    """Whether a value is a tensor, a number, a text, or a container of these that can be copied."""
    if value is None or isinstance(value, (Tensor, bool, int, float, str)):
        return True
    if depth and (type(value) in _SEQUENCES or isinstance(value, tuple)):
        return all(_is_plain(v, depth - 1) for v in value)
    return bool(depth) and type(value) in _MAPPINGS and all(_is_plain(v, depth - 1) for v in value.values())


def _cloned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) in _MAPPINGS or type(value) in _SEQUENCES:
        copied = value.copy()  # with the default factory, or the largest length
        for key in list(copied) if type(value) in _MAPPINGS else range(len(copied)):
            copied[key] = _cloned(copied[key])
        return copied
    return tuple(_cloned(v) for v in value) if type(value) is tuple else value


def _same(a: _Value, b: _Value) -> bool:
    if a is _MISSING or b is _MISSING:
        return a is b
    return _equal(a.value, b.value)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return _close(a, b, 0.0)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple, deque)):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b) or a != a


def _close(a: Any, b: Any, bound: float) -> bool:
    """Whether two answers are equal: bit for bit where ``bound`` is 0, else up to that part of the largest value."""
    first, second = (tree_leaves(value) for value in (a, b))
    if len(first) != len(second):
        return False
    for x, y in zip(first, second, strict=True):
        if not isinstance(x, Tensor) or not isinstance(y, Tensor):
            if isinstance(x, Tensor) != isinstance(y, Tensor) or not (x == y or x != x):
                return False
            continue
        if x.shape != y.shape or x.dtype != y.dtype or isinstance(x, FakeTensor) or isinstance(y, FakeTensor):
            return False
        x, y = x.detach(), y.detach()
        if bound and x.is_floating_point() and x.numel():
            scale = torch.nan_to_num(x.double()).abs().max().item()
            if not torch.allclose(x.double(), y.double(), rtol=0.0, atol=bound * scale, equal_nan=True):
                return False
        elif not torch.equal(x, y) and not bool(((x == y) | ((x != x) & (y != y))).all()):
            return False
    return True
