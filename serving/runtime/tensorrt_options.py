"""The options of onnxruntime's TensorRT provider: our values with their reasons, and those that config.pbtxt may set.

In config.pbtxt they are parameters of the accelerator, as in Triton:

    optimization { execution_accelerators { gpu_execution_accelerator {
      name: "tensorrt"
      parameters { key: "precision_mode" value: "FP16" }
    } } }

A configuration cannot choose the folder of engines: a client can send a configuration, and an engine is code.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from normfold.digits import read_digits
from normfold.serving.errors import ConfigError

ACCELERATOR = "tensorrt"

#: Our values, used unless config.pbtxt sets others.
DEFAULTS = {
    "trt_fp16_enable": "0",  # numbers as from the other providers; half precision differs by about 1e-3
}

_SWITCH = {"0": "0", "1": "1", "false": "0", "true": "1"}
_SHAPES = re.compile(r"[\w.\-/]+:\d+(x\d+)*(,[\w.\-/]+:\d+(x\d+)*)*")


def _switch(text: str) -> str | None:
    return _SWITCH.get(text)


def _bytes(text: str) -> str | None:
    return text if read_digits(text, (1 << 63) - 1) else None


def _level(text: str) -> str | None:
    return text if text in "012345" and len(text) == 1 else None


def _shapes(text: str) -> str | None:
    return text if _SHAPES.fullmatch(text) else None


def _precision(text: str) -> str | None:
    return {"FP32": "0", "FP16": "1"}.get(text)


#: Parameter -> (onnxruntime's option, a function from the text to its value or None, the values in words). The first
#: two names are Triton's own.
_KNOWN: dict[str, tuple[str, Callable[[str], str | None], str]] = {
    "precision_mode": ("trt_fp16_enable", _precision, "FP32 or FP16"),
    "max_workspace_size_bytes": ("trt_max_workspace_size", _bytes, "a number of bytes, at least 1"),
    "trt_max_workspace_size": ("trt_max_workspace_size", _bytes, "a number of bytes, at least 1"),
    "trt_fp16_enable": ("trt_fp16_enable", _switch, "0 or 1"),
    "trt_engine_cache_enable": ("trt_engine_cache_enable", _switch, "0 or 1"),
    "trt_timing_cache_enable": ("trt_timing_cache_enable", _switch, "0 or 1"),
    "trt_builder_optimization_level": ("trt_builder_optimization_level", _level, "a number from 0 to 5"),
    **{
        f"trt_profile_{end}_shapes": (f"trt_profile_{end}_shapes", _shapes, "shapes such as x:1x42x20,y:1x3")
        for end in ("min", "opt", "max")
    },
}


def read(parameters: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """The options for onnxruntime that the accelerator's ``parameters`` give. Raises ConfigError.

    >>> read([("precision_mode", "FP16"), ("max_workspace_size_bytes", "99")])
    (('trt_fp16_enable', '1'), ('trt_max_workspace_size', '99'))
    """
    options: dict[str, str] = {}
    for name, text in sorted(parameters):
        if name not in _KNOWN:
            raise ConfigError(f"the accelerator 'tensorrt' has no parameter {name!r}; there are: {', '.join(_KNOWN)}")
        option, value_of, expected = _KNOWN[name]
        value = value_of(text)
        if value is None:
            raise ConfigError(f"parameter {name!r} of the accelerator 'tensorrt' must be {expected}, got {text!r}")
        if options.setdefault(option, value) != value:
            raise ConfigError(f"parameter {name!r} of the accelerator 'tensorrt' contradicts another one")
    profiles = [option for option in options if option.startswith("trt_profile_")]
    if profiles and len(profiles) != 3:
        raise ConfigError("the accelerator 'tensorrt' takes the min, opt and max shapes of its profile together")
    return tuple(sorted(options.items()))


def cached(folder: Path | None, data: bytes, runtime: str) -> dict[str, str]:
    """The options that keep engines and timings of the model ``data`` in a folder below ``folder``, which is made.

    onnxruntime names an engine after the names in the graph and not after its weights, so each model file has its own
    folder. Returns no options if the folder cannot be made: the engine is then built at every start.
    """
    if folder is None:
        return {}
    own = folder / hashlib.sha256(runtime.encode() + b"\0" + data).hexdigest()
    try:
        own.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return {}
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(own),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(own),
    }
