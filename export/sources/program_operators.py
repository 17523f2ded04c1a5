"""The operators that a ``torch.export`` program may call: those that compute tensors and sizes, and nothing else.

Among the operators of torch are also some that write files, print, change settings of the process, or trust their
arguments so far that a wrong one writes outside of its memory. So an operator is taken for what it is, by its name and
its schema, never for not being a known bad one.
"""

from __future__ import annotations

import re
from typing import Any

import torch

__all__ = ["is_operator"]

#: Operators on sizes.
_OF_NUMBERS = re.compile(
    r"_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|lshift|rshift|and_|or_|not_|eq|ne|lt|le|gt|ge|getitem)"
    r"|math\.(trunc|ceil|floor|sqrt)|torch\.sym_(not|int|float|ite|max|min|sqrt|sum)"
)
_OF_TENSORS = re.compile(r"torch\.ops\.(aten|prims)\.(\w+)\.(\w+)")
#: Operators that take graphs of the program itself, none that takes other operators or functions.
_OF_GRAPHS = re.compile(
    r"torch\.ops\.higher_order\.(cond|while_loop|scan|associative_scan|map_impl|wrap|wrap_with_autocast|strict_mode"
    r"|wrap_with_set_grad_enabled|wrap_activation_checkpoint|tag_activation_checkpoint|hints_wrapper|invoke_subgraph)"
)
#: Operators that return no tensor: sizes, and conditions that stop a run.
_OF_SIZES = {
    *("sym_size", "sym_numel", "sym_stride", "sym_storage_offset", "sym_constrain_range", "item", "is_nonzero"),
    "sym_is_contiguous",
    *("sym_constrain_range_for_size", "_local_scalar_dense", "_assert_async", "_assert_scalar"),
    *("_assert_tensor_metadata", "equal"),
}
#: The operators that torch keeps to itself, and that it still writes into programs, also into decomposed ones.
_INNER = {
    *("__and__", "__or__", "__xor__", "__iand__", "__ior__", "__ixor__", "__lshift__", "__rshift__"),
    *("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "_addmm_activation", "_aminmax", "_cdist_forward", "_conj"),
    *("_conj_physical", "_convolution", "_convolution_mode", "_embedding_bag", "_embedding_bag_forward_only"),
    *("_euclidean_dist", "_fft_c2c", "_fft_c2r", "_fft_r2c", "_functional_assert_async", "_functional_assert_scalar"),
    *("_fused_rms_norm", "_is_all_true", "_is_any_true", "_linalg_det", "_linalg_eigh", "_linalg_slogdet"),
    *("_linalg_solve_ex", "_linalg_svd", "_log_softmax", "_logcumsumexp", "_native_batch_norm_legit"),
    *("_native_batch_norm_legit_no_training", "_native_multi_head_attention"),
    *("_neg_view", "_pack_padded_sequence", "_pad_packed_sequence", "_pdist_forward", "_prelu_kernel"),
    *("_reshape_alias", "_reshape_copy", "_safe_softmax", "_scaled_dot_product_attention_math", "_shape_as_tensor"),
    *("_scaled_dot_product_efficient_attention", "_scaled_dot_product_flash_attention", "_softmax", "_stack"),
    *("_scaled_dot_product_flash_attention_for_cpu", "_to_copy", "_transformer_encoder_layer_fwd", "_trilinear"),
    *("_unique", "_unique2", "_unsafe_index", "_unsafe_index_put", "_unsafe_masked_index", "_unsafe_view"),
    *("_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d"),
    *("_upsample_nearest_exact3d", "_weight_norm", "_weight_norm_interface"),
}
#: Arguments that are texts, each one of a few words that the operator knows.
_TEXTS = {
    *("approximate", "assert_msg", "driver", "equation", "indexing", "interpolation", "mode", "norm", "ord", "p"),
    *("pad_mode", "padding", "padding_side", "reduce", "rounding_mode", "side", "UPLO"),
}
#: Gradients, kernels of one library, what gives a tensor other memory, and what trusts the indices that it is given.
_REFUSED = re.compile(
    r".*backward.*|(fbgemm|mkldnn|cudnn|miopen|quantized|nested)_.*|set_?|as_strided_|resize.*"
    r"|.*sparse_(coo|csr|csc|bsr|bsc|compressed).*|segment_reduce|.*ctc_loss"
)
_TENSORS = {"Tensor", "List[Tensor]", "Optional[Tensor]"}


def is_operator(text: str) -> bool:
    """Whether ``text`` names an operator that computes tensors or sizes and does nothing else."""
    if _OF_NUMBERS.fullmatch(text):
        return True
    name = _OF_TENSORS.fullmatch(text)
    found: Any = torch.ops if name or _OF_GRAPHS.fullmatch(text) else None
    for part in text.split(".")[2:]:
        found = getattr(found, part, None)
    if name is None or not isinstance(found, torch._ops.OpOverload):
        return name is None and isinstance(found, torch._ops.HigherOrderOperator)
    return _is_of_tensors(name[2], found._schema)


def _is_of_tensors(name: str, schema: Any) -> bool:
    if name not in _INNER | _OF_SIZES and (name.startswith("_") or _REFUSED.fullmatch(name)):
        return False
    if any(a.is_out or ("str" in str(a.type) and a.name not in _TEXTS) for a in schema.arguments):
        return False
    return name in _OF_SIZES or any(str(r.type) in _TENSORS for r in schema.returns)
