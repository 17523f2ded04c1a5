"""Keep the length of a 1-D max-pool dynamic while torch captures a network.

``torch.export`` (2.13) reads the input size of ``max_pool1d``, unlike that of other pools, as a number: this fixes the
length. Inside :class:`DynamicMaxPool` every call is replaced by an equal one

    max_pool1d(x)[n, c, l] = max_pool2d(x[:, :, None, :])[n, c, 0, l],   with kernel (1, k), stride (1, s), …

whether it comes from ``nn.MaxPool1d``, ``F.max_pool1d`` or ``torch.max_pool1d``. :func:`restore_max_pool` then turns
the captured Unsqueeze, MaxPool and Squeeze back into one 1-D MaxPool.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["DynamicMaxPool", "restore_max_pool"]


class DynamicMaxPool(TorchFunctionMode):
    """While active, 1-D max-pools run as 2-D max-pools of height 1, and adaptive ones with one output as a maximum."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace the calls that would fix a length; pass on every other call."""
        kwargs = dict(kwargs or {})
        if func in (torch.max_pool1d, F.max_pool1d) and not kwargs.get("return_indices") and len(args) < 7:
            kwargs.pop("return_indices", None)
            return _max_pool1d(*args, **kwargs)
        adaptive = func in (torch.adaptive_max_pool1d, F.adaptive_max_pool1d) and not kwargs.get("return_indices")
        if adaptive and len(args) < 3:
            input, output = [*args] + [kwargs[name] for name in ("input", "output_size")[len(args) :]]
            if output in (1, (1,), [1]):
                return input.amax(-1, keepdim=True)
        return func(*args, **kwargs)


def _max_pool1d(
    input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Tensor:
    kernel = _one(kernel_size)
    step = kernel if stride is None or stride in ([], ()) else _one(stride)
    pooled = torch.max_pool2d(
        input.unsqueeze(-2), (1, kernel), (1, step), (0, _one(padding)), (1, _one(dilation)), ceil_mode
    )
    return pooled.squeeze(-2)


def _one(value: Any) -> int:
    return int(value[0] if isinstance(value, (tuple, list)) else value)


def restore_max_pool(model: ir.Model) -> None:
    """Rewrite each Unsqueeze(-2) → MaxPool [1, k] → Squeeze(-2) as one 1-D MaxPool, in place."""
    for pool in list(model.graph):
        if pool.op_type != "MaxPool" or len(pool.outputs) != 1 or pool.inputs[0] is None:
            continue
        up = pool.inputs[0].producer()
        readers = pool.outputs[0].uses()
        if up is None or up.op_type != "Unsqueeze" or len(readers) != 1 or len(up.outputs[0].uses()) != 1:
            continue
        down = next(iter(readers)).node
        lists = {k: list(a.as_ints()) for k, a in pool.attributes.items() if a.type == ir.AttributeType.INTS}
        kernel = lists.get("kernel_shape", [])
        if down.op_type != "Squeeze" or len(kernel) != 2 or kernel[0] != 1 or not (_is_height(up) and _is_height(down)):
            continue
        halves = {k: v[1::2] if k == "pads" else v[1:] for k, v in lists.items()}
        attributes = [a for k, a in pool.attributes.items() if k not in halves]
        attributes += [ir.AttrInt64s(k, v) for k, v in halves.items()]
        flat = ir.Node("", "MaxPool", [up.inputs[0]], attributes=attributes, name=pool.name)
        flat.metadata_props.update(pool.metadata_props)
        model.graph.insert_before(pool, flat)
        old, new = down.outputs[0], flat.outputs[0]
        new.name, new.shape, new.type = old.name, old.shape, old.type
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        for node in (down, pool, up):
            model.graph.remove(node, safe=True)


def _is_height(node: ir.Node) -> bool:
    """Whether an Unsqueeze or Squeeze works on the axis before the last of a batched signal."""
    axes = node.inputs[1].const_value if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if axes is None:
        return False
    values = axes.numpy().reshape(-1).tolist()
    return values in ([-2], [2])
