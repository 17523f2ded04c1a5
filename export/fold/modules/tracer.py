"""A tracer that knows how many axes each tensor has, and how many parts each tuple.

``torch.fx`` alone refuses a network that looks at the rank of its input (``x.ndim == 3``, ``len(x.shape)``) or goes
through the parts of a split. Neither depends on the input's numbers or lengths, so the example tells. Where a network
decides by a length, the path that it takes on the example is kept with a check that refuses every other length.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.node import has_side_effect, map_aggregate

from normfold.export.user_code import current_line

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_UNKNOWN = object()


@has_side_effect
def decided(value: Any, on_example: Any, line: str) -> None:
    """Do nothing, unless a length leads to another path than the one that was noted.

    Raises:
        RuntimeError: it does.
    """
    if isinstance(value, fx.Proxy):  # the folded network is traced again
        value.tracer.create_proxy("call_function", decided, (value, on_example, line), {})
    elif type(on_example)(value) != on_example:
        raise RuntimeError(
            f"the folded network keeps the path that it took on its example inputs, and these lengths take another: "
            f"{line or 'a decision by a length'} gives {value}, not {on_example}; fold it with inputs of these lengths"
        )


class _Known(fx.Proxy):
    """A stand-in that answers for its rank."""

    def __getattr__(self, k: str) -> Any:
        held = self.tracer.held.get(self.node)  # type: ignore[attr-defined]
        if isinstance(held, torch.Tensor):
            if k == "ndim":
                return held.ndim
            if k in ("dim", "ndimension"):
                return lambda: held.ndim
            if k == "shape":
                return self.tracer.create_proxy("call_function", getattr, (self, k), {})
        return super().__getattr__(k)

    def __len__(self) -> int:
        held = self.tracer.held.get(self.node)  # type: ignore[attr-defined]
        if isinstance(held, (tuple, list)):
            return len(held)
        return int(super().__len__())

    def __bool__(self) -> bool:
        return self._decided(bool) if self._is_number() else super().__bool__()

    def __int__(self) -> int:
        return self._decided(int) if self._is_number() else int(super().__int__())  # type: ignore[misc]

    def _is_number(self) -> bool:
        return isinstance(self.tracer.held.get(self.node), (bool, int, float))  # type: ignore[attr-defined]

    def _decided(self, kind: type) -> Any:
        value = kind(self.tracer.held[self.node])  # type: ignore[attr-defined]
        self.tracer.create_proxy("call_function", decided, (self, value, current_line()), {})
        return value


class Tracer(fx.Tracer):
    """Notes a call of a layer of ``torch.nn``, or of a subclass that computes as it does, as one call.

    Beside each call it keeps what the call returns on the example, as a tensor without numbers.
    """

    def __init__(self, example: Sequence[Any] = ()) -> None:
        super().__init__()
        self.held: dict[fx.Node, Any] = {}
        self._example = tuple(example)
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._running = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether the module is one call."""
        if isinstance(m, _CONTAINERS):
            return False
        # The forward of a GraphModule is made at run time, of no module.
        ours = type(m).forward.__module__ or ""
        return ours.startswith("torch.nn.") or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return the stand-in for a call's result."""
        return _Known(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> Any:
        """Note a call, and keep what it returns."""
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **named)
        if self._example:
            result = self._result(proxy.node)
            if result is not _UNKNOWN:
                self.held[proxy.node] = result
        return proxy

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Go through the parts of a tuple."""
        held = self.held.get(obj.node)
        if isinstance(held, (tuple, list)):
            return (obj[k] for k in range(len(held)))  # type: ignore[index]
        return super().iter(obj)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Note the call of a layer, unless it is only run."""
        return forward(*args, **kwargs) if self._running else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        """Note the reading of a parameter, unless a layer is only run."""
        return attr_val if self._running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def _result(self, node: fx.Node) -> Any:
        """Return what a call returns on the example; what cannot be run without numbers is not known."""
        target: Any = node.target
        if node.op == "placeholder":
            names = list(inspect.signature(self.root.forward).parameters)
            given = dict(zip(names, self._example, strict=False)).get(str(target), _UNKNOWN)
            return self._mode.from_tensor(given) if isinstance(given, torch.Tensor) else given
        if any(n not in self.held for n in node.all_input_nodes):
            return _UNKNOWN
        args: Any = map_aggregate(node.args, self._stand_in)
        kwargs: Any = map_aggregate(node.kwargs, self._stand_in)
        self._running = True
        try:
            with self._mode, torch.no_grad():
                if node.op == "get_attr":
                    owner, _, name = str(target).rpartition(".")
                    return getattr(self.root.get_submodule(owner), name)
                if node.op == "call_module":
                    return self.root.get_submodule(target)(*args, **kwargs)
                if node.op == "call_method":
                    return getattr(args[0], target)(*args[1:], **kwargs)
                return target(*args, **kwargs)
        except Exception:  # whatever a call cannot do without numbers, its result is not known
            return _UNKNOWN
        finally:
            self._running = False

    def _stand_in(self, argument: Any) -> Any:
        return self.held[argument] if isinstance(argument, fx.Node) else argument
