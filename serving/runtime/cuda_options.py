"""The options of onnxruntime's CUDA provider: our values with their reasons, and the values that config.pbtxt may set.

onnxruntime takes the options as strings, and does not look at them where CUDA cannot be loaded: a mistyped option would
be unnoticed on one machine and stop the server on another. So they are checked here, before a session is made.
"""

from __future__ import annotations

from normfold.digits import read_digits
from normfold.serving.errors import ConfigError
from normfold.serving.wording import quoted

#: Records the kernels of one run and replays them; for models of fixed shapes only, see `bindings`.
GRAPH = "enable_cuda_graph"

#: Our values, used unless config.pbtxt sets others; each has its reason beside it.
DEFAULTS = {
    "arena_extend_strategy": "kSameAsRequested",  # the default doubles the memory each time, and never gives any back
    "cudnn_conv_algo_search": "HEURISTIC",  # EXHAUSTIVE measures again for every new length, which takes seconds
    "cudnn_conv1d_pad_to_nc1d": "1",  # [N,C,1,L] is the faster padding of a 1-D convolution
    "use_tf32": "0",  # numbers as on the CPU; TF32 differs by about 1e-3
}

_SWITCH = ("0", "1")

#: Option -> the words that onnxruntime takes for it. Triton's backend takes the index of a word in this list instead.
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
        if not read_digits(text, (1 << 64) - 1):
            raise ConfigError(f"parameter 'gpu_mem_limit' must be a number of bytes, at least 1, got {quoted(text)}")
        return text
    values = _VALUES[name]
    if text in values:
        return text
    if text in map(str, range(len(values))):
        return values[int(text)]
    choices = ", ".join(values if values is _SWITCH else (f"{word} (or {n})" for n, word in enumerate(values)))
    raise ConfigError(f"parameter {name!r} must be one of {choices}, got {quoted(text)}")
