"""The options of onnxruntime's CUDA provider: what is set and why, and which values config.pbtxt may give instead.

onnxruntime takes these as strings, and where CUDA cannot be loaded it never looks at them: a mistyped option would pass
unseen on one machine and stop the server on another. So they are checked here, before a session is made.
"""

from __future__ import annotations

from normfold.serving.errors import ConfigError

#: Records a run once and replays it: for fixed shapes only, see `bindings`.
GRAPH = "enable_cuda_graph"

#: What is set unless config.pbtxt says otherwise; each choice has its reason beside it.
DEFAULTS = {
    "arena_extend_strategy": "kSameAsRequested",  # the default doubles, and keeps what it took
    "cudnn_conv_algo_search": "HEURISTIC",  # EXHAUSTIVE measures again for every new length: seconds
    "cudnn_conv1d_pad_to_nc1d": "1",  # [N,C,1,L] is the faster padding of a 1-D convolution
    "use_tf32": "0",  # the same numbers as the CPU; TF32 is about 1e-3 off
}

_SWITCH = ("0", "1")

#: Option -> its values in onnxruntime's words. Triton's backend takes the number of a word's place here.
_VALUES: dict[str, tuple[str, ...]] = {
    "arena_extend_strategy": ("kNextPowerOfTwo", "kSameAsRequested"),
    "cudnn_conv_algo_search": ("EXHAUSTIVE", "HEURISTIC", "DEFAULT"),
    "cudnn_conv1d_pad_to_nc1d": _SWITCH,
    "cudnn_conv_use_max_workspace": _SWITCH,
    "do_copy_in_default_stream": _SWITCH,
    GRAPH: _SWITCH,
    "use_tf32": _SWITCH,
}

#: The parameters of config.pbtxt that are options of the CUDA provider.
NAMES = (*_VALUES, "gpu_mem_limit")


def read(name: str, text: str) -> str:
    """The value for onnxruntime of the option ``name`` as config.pbtxt gives it. Raises ConfigError.

    >>> read("cudnn_conv_algo_search", "1"), read("use_tf32", "1")
    ('HEURISTIC', '1')
    """
    if name == "gpu_mem_limit":
        if not text.isascii() or not text.isdecimal() or not 0 < int(text) < 1 << 64:
            raise ConfigError(f"parameter 'gpu_mem_limit' must be a number of bytes, at least 1, got {text!r}")
        return text
    values = _VALUES[name]
    if text in values:
        return text
    if text in map(str, range(len(values))):
        return values[int(text)]
    told = ", ".join(values if values is _SWITCH else (f"{word} (or {n})" for n, word in enumerate(values)))
    raise ConfigError(f"parameter {name!r} must be one of {told}, got {text!r}")
