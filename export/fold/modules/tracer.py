"""A tracer that knows the number of axes of each tensor, and the number of parts of each tuple.

``torch.fx`` alone refuses a network that reads the rank of its input (``x.ndim == 3``, ``len(x.shape)``) or loops over
the parts of a split. Neither depends on the input's numbers or lengths, so the example gives both. Where a network
decides by a length, the path that it takes on the example is kept, with a check that refuses lengths of another path.
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
    """Check that a length leads to the path that was recorded.

    Raises:
        RuntimeError: it leads to another path.
    """
    if isinstance(value, fx.Proxy):  # the folded network is traced again
        value.tracer.create_proxy("call_function", decided, (value, on_example, line), {})
    elif type(on_example)(value) != on_example:
        raise RuntimeError(
            f"the folded network keeps the path that it took on its example inputs, and these lengths take another: "
            f"{line or 'a decision by a length'} gives {value}, not {on_example}; fold it with inputs of these lengths"
        )


class _Known(fx.Proxy):
    """A proxy that knows its rank."""

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


#: How Python calls such a proxy in an error.
KNOWN = _Known.__name__


class Tracer(fx.Tracer):
    """Records the call of a layer of ``torch.nn``, or of a subclass that computes the same, as one call.

    Beside each call it keeps the call's result on the example, as a tensor without numbers.
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
        # The forward of a GraphModule is made at run time and belongs to no module.
        ours = type(m).forward.__module__ or ""
        return ours.startswith("torch.nn.") or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return the proxy for a call's result."""
        return _Known(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> Any:
        """Record a call, and keep its result."""
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **named)
        if self._example:
            result = self._result(proxy.node)
            if result is not _UNKNOWN:
                self.held[proxy.node] = result
        return proxy

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Iterate over the parts of a tuple."""
        held = self.held.get(obj.node)
        if isinstance(held, (tuple, list)):
            return (obj[k] for k in range(len(held)))  # type: ignore[index]
        return super().iter(obj)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Record the call of a layer, unless the layer only runs for its result."""
        return forward(*args, **kwargs) if self._running else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        """Record that a parameter is read, unless a layer only runs for its result."""
        return attr_val if self._running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def _result(self, node: fx.Node) -> Any:
        """Return a call's result on the example; it is unknown where the call cannot run without numbers."""
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
        except Exception:  # a call that needs numbers; its result is not known
            return _UNKNOWN
        finally:
            self._running = False

    def _stand_in(self, argument: Any) -> Any:
        return self.held[argument] if isinstance(argument, fx.Node) else argument
