"""The table of calls: the rule that reads each layer, function and method, and the names of its arguments."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from normfold.export.fold.modules import moving, pointwise
from normfold.export.fold.modules.skeleton import Call, Rule

#: Function or method -> its rule and the names of its arguments in their order; "*": any number of arguments follow.
_FUNCTIONS: tuple[tuple[tuple[Any, ...], Rule, str], ...] = (
    ((F.conv1d, F.conv2d, F.conv3d), pointwise.conv, "input weight bias stride padding dilation groups"),
    (
        (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
        pointwise.conv_transpose,
        "input weight bias stride padding output_padding groups dilation",
    ),
    ((F.linear,), pointwise.linear, "input weight bias"),
    ((torch.matmul, operator.matmul, "matmul"), pointwise.matmul, "input other"),
    ((F.embedding,), pointwise.embedding, "input weight padding_idx max_norm norm_type"),
    ((F.batch_norm,), pointwise.batch_norm, "input running_mean running_var weight bias training momentum eps"),
    ((F.relu, torch.relu, "relu"), pointwise.relu, "input inplace"),
    ((F.relu6,), pointwise.relu6, "input inplace"),
    ((F.hardtanh,), pointwise.hardtanh, "input min_val max_val inplace"),
    ((torch.clamp, torch.clip, "clamp", "clip"), pointwise.clamp, "input min max"),
    ((torch.clamp_min, "clamp_min"), pointwise.clamp, "input min"),
    ((torch.clamp_max, "clamp_max"), pointwise.clamp, "input max"),
    ((F.leaky_relu,), pointwise.leaky_relu, "input negative_slope inplace"),
    ((F.prelu, torch.prelu), pointwise.prelu, "input weight"),
    ((F.elu,), pointwise.elu, "input alpha inplace"),
    ((F.gelu,), pointwise.gelu, "input approximate"),
    ((F.silu,), pointwise.silu, "input inplace"),
    ((torch.sigmoid, F.sigmoid, "sigmoid"), pointwise.sigmoid, "input"),
    ((torch.tanh, F.tanh, "tanh"), pointwise.tanh, "input"),
    ((F.softplus,), pointwise.softplus, "input beta threshold"),
    ((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d), pointwise.same, "input p training inplace"),
    (("contiguous", "clone", "detach", "to", "float", "double", "half", torch.clone), pointwise.same, "input"),
    ((operator.add, torch.add, "add"), pointwise.add, "input other alpha"),
    ((operator.sub, torch.sub, "sub"), pointwise.sub, "input other alpha"),
    ((operator.mul, torch.mul, "mul"), pointwise.mul, "input other"),
    ((operator.truediv, torch.div, "div"), pointwise.div, "input other rounding_mode"),
    ((operator.neg, torch.neg, "neg"), pointwise.neg, "input"),
    (
        (F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d, torch.max_pool3d),
        moving.max_pool,
        "input kernel_size stride padding dilation ceil_mode return_indices",
    ),
    ((F.avg_pool1d,), moving.avg_pool, "input kernel_size stride padding ceil_mode count_include_pad"),
    (
        (F.avg_pool2d, F.avg_pool3d),
        moving.avg_pool,
        "input kernel_size stride padding ceil_mode count_include_pad divisor_override",
    ),
    (
        (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
        moving.adaptive_avg_pool,
        "input output_size",
    ),
    (
        (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
        moving.adaptive_max_pool,
        "input output_size return_indices",
    ),
    ((torch.mean, "mean"), moving.mean, "input dim keepdim dtype"),
    ((torch.sum, "sum"), moving.total, "input dim keepdim dtype"),
    ((torch.amax, "amax"), moving.amax, "input dim keepdim"),
    ((torch.amin, "amin"), moving.amin, "input dim keepdim"),
    ((torch.max, "max"), moving.max_along, "input dim keepdim"),
    (
        (F.interpolate,),
        moving.interpolate,
        "input size scale_factor mode align_corners recompute_scale_factor antialias",
    ),
    ((F.pad,), moving.pad, "input pad mode value"),
    ((torch.cat, torch.concat, torch.concatenate), moving.cat, "tensors dim"),
    ((torch.split, "split", torch.chunk, "chunk"), moving.split, "tensor sizes dim"),
    ((torch.transpose, "transpose", "swapaxes", torch.swapaxes), moving.transpose, "input dim0 dim1"),
    ((getattr,), moving.attribute, "input name"),
    ((torch.permute,), moving.permute, "input dims"),
    (("permute",), moving.permute, "input *"),
    ((torch.reshape,), moving.reshape, "input shape"),
    (("view", "reshape"), moving.reshape, "input *"),
    ((torch.flatten, "flatten"), moving.flatten, "input start_dim end_dim"),
    ((torch.squeeze, "squeeze"), moving.squeeze, "input dim"),
    ((torch.unsqueeze, "unsqueeze"), moving.unsqueeze, "input dim"),
    ((operator.getitem,), moving.getitem, "input index"),
)
_BY_FUNCTION: dict[Any, tuple[Rule, list[str]]] = {
    target: (rule, names.split()) for targets, rule, names in _FUNCTIONS for target in targets
}

_CONV = "weight bias stride padding dilation groups padding_mode"
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_PADS = tuple(
    getattr(nn, f"{kind}Pad{d}d") for kind in ("Zero", "Reflection", "Replication", "Circular") for d in (1, 2, 3)
)
#: Layer -> its rule and the names of the attributes that it computes with.
_LAYERS: tuple[tuple[tuple[type[nn.Module], ...], Rule, str], ...] = (
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), pointwise.conv, _CONV),
    (
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        pointwise.conv_transpose,
        f"{_CONV} output_padding",
    ),
    ((nn.Linear,), pointwise.linear, "weight bias"),
    ((nn.Embedding,), pointwise.embedding, "weight max_norm"),
    ((nn.LSTM, nn.GRU, nn.RNN), pointwise.recurrent, ""),
    (
        (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
        pointwise.batch_norm,
        "running_mean running_var weight bias eps training",
    ),
    ((nn.ReLU,), pointwise.relu, ""),
    ((nn.ReLU6, nn.Hardtanh), pointwise.hardtanh, "min_val max_val"),
    ((nn.LeakyReLU,), pointwise.leaky_relu, "negative_slope"),
    ((nn.PReLU,), pointwise.prelu, "weight"),
    ((nn.ELU,), pointwise.elu, "alpha"),
    ((nn.GELU,), pointwise.gelu, "approximate"),
    ((nn.SiLU,), pointwise.silu, ""),
    ((nn.Sigmoid,), pointwise.sigmoid, ""),
    ((nn.Tanh,), pointwise.tanh, ""),
    ((nn.Softplus,), pointwise.softplus, "beta threshold"),
    ((nn.Identity,), pointwise.same, ""),
    (_DROPOUTS, pointwise.same, "training"),
    ((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), moving.max_pool, "return_indices"),
    ((nn.AvgPool1d,), moving.avg_pool, "padding ceil_mode count_include_pad"),
    ((nn.AvgPool2d, nn.AvgPool3d), moving.avg_pool, "padding ceil_mode count_include_pad divisor_override"),
    ((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), moving.adaptive_avg_pool, ""),
    ((nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d), moving.adaptive_max_pool, "return_indices"),
    ((nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d), moving.interpolate, "mode"),
    (_PADS, moving.pad_layer, "padding"),
    ((nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d), moving.pad_layer, "padding value"),
    ((nn.Flatten,), moving.flatten, ""),
)
_BY_LAYER = {layer: (rule, names.split()) for layers, rule, names in _LAYERS for layer in layers}
_SAME_NAME = {"axis": "dim", "keepdims": "keepdim"}


def called(node: fx.Node, root: nn.Module) -> tuple[Call, Rule | None]:
    """Return a node's call with its arguments by name, and the rule that reads it; None where there is none."""
    if node.op == "call_module":
        return _layer(node, root.get_submodule(str(node.target)))
    found = _BY_FUNCTION.get(node.target)
    if found is None or node.op not in ("call_function", "call_method"):
        return Call(node, {}), None
    rule, names = found
    given = dict(zip((n for n in names if n != "*"), node.args, strict=False))
    given |= {_SAME_NAME.get(k, k): v for k, v in node.kwargs.items()}
    many = "*" in names
    if not many and len(node.args) > len(names) and rule is not pointwise.same:
        return Call(node, given), None
    if rule is pointwise.same and node.target in (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d):
        given.setdefault("training", True)
    return Call(node, given, rest=tuple(node.args[1:]) if many else ()), rule


def is_batchnorm(node: fx.Node, root: nn.Module) -> bool:
    """Whether a node calls a BatchNorm, as a layer or as a function."""
    if node.op == "call_module":
        return isinstance(root.get_submodule(str(node.target)), nn.modules.batchnorm._BatchNorm)
    return node.target is F.batch_norm


def _layer(node: fx.Node, layer: nn.Module) -> tuple[Call, Rule | None]:
    found = next((_BY_LAYER[t] for t in type(layer).__mro__ if t in _BY_LAYER and _computes_as(layer, t)), None)
    if found is None or _hooked(layer):
        return Call(node, {}, layer), None
    rule, names = found
    inputs = dict(zip(("input", "extra"), node.args, strict=False)) | dict(node.kwargs)
    if "extra" in inputs and rule is not pointwise.recurrent:
        return Call(node, {}, layer), None
    if "input" not in inputs:
        return Call(node, {}, layer), None
    return Call(node, {**inputs, **{name: getattr(layer, name) for name in names}}, layer), rule


def _computes_as(layer: nn.Module, base: type[nn.Module]) -> bool:
    """Whether a layer computes as that of torch.nn does: neither its class nor the object has methods of its own."""
    names = ("forward", "_conv_forward", "_check_input_dim", "forward_impl")
    return all(getattr(type(layer), n, None) is getattr(base, n, None) and n not in vars(layer) for n in names)


def _hooked(layer: nn.Module) -> bool:
    """Whether a call runs hooks beside the layer's forward."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks)
