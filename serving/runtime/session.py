"""One onnxruntime session, made from the bytes of a model: its inputs, its outputs, and runs from arrays to arrays."""

from __future__ import annotations

import ctypes
import math
import warnings
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from normfold.cache_folder import cache_folder
from normfold.protos.datatypes import by_name, by_onnxruntime
from normfold.serving.errors import ConfigError, DeviceUnavailable, InvalidRequest, LoadError, OutOfMemory, Unavailable
from normfold.serving.runtime import cuda_options, limited_arena, onnx_file, pinned, placement, tensorrt_options
from normfold.serving.runtime.bindings import Bound, Fixed, Resident
from normfold.serving.runtime.devices import CPU_PROVIDER, Device, check_provider, providers
from normfold.serving.runtime.reasons import lacks_memory, load_error, reason
from normfold.serving.runtime.settings import ModelTensor, SessionSettings
from normfold.serving.runtime.staging import Staged
from normfold.serving.runtime.stop import Stop
from normfold.serving.wire.strings import to_bytes, to_text
from normfold.serving.wire.turns import pieces

Array = NDArray[Any]
BF16 = by_name("BF16")
BYTES = by_name("BYTES")

#: The run of inputs with at most this many bytes may keep its memory for the next run, although nobody has measured it.
#: Networks were seen to take 300 times their inputs.
SMALL_BYTES = 64 << 10

#: Kinds of NumPy dtypes whose arrays onnxruntime reads without a copy.
NUMERIC = "fiub"

_LEVELS = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


class Session:
    """An onnxruntime session; ``run`` may be called from several threads at once."""

    def __init__(self, data: bytes, device: Device, settings: SessionSettings) -> None:
        """Check ``data`` and make the session from these very bytes.

        Raises LoadError (UnsafeModel for a refused file, ConfigError) or DeviceUnavailable.
        """
        facts = onnx_file.check(data, settings.sent)
        unranked = facts.unranked
        #: The model file's metadata by key.
        self.metadata = facts.metadata
        #: Whether runs with equal shapes may take very different times.
        self.numbers_decide = facts.numbers_decide
        #: What the strings that the graph makes take; None: no more than those of the request.
        self.text_growth = facts.text_growth
        self.settings = settings
        if settings.tensorrt_options is not None and device.kind == "cuda":
            device = Device("tensorrt", device.index)
        asked = _providers(data, device, settings)
        cpu_alone = [name for name, _ in asked] == [CPU_PROVIDER]
        bounded = (self.numbers_decide or settings.unmeasured) and settings.limit_bytes > 0
        #: Whether runs share the memory of ``limited_arena``; those that may have needed much leave nothing there.
        self._limited = bounded and cpu_alone
        try:
            self._session = _make(data, device, settings, asked, self._limited)
            if bounded and device.kind == "auto" and not cpu_alone and self._session.get_providers() == [CPU_PROVIDER]:
                self._limited = True  # it fell back
                del self._session  # two of a large model at a time may be too much
                self._session = _make(data, device, settings, [(CPU_PROVIDER, {})], self._limited)
            taken = [_tensor(value, unranked) for value in self._session.get_inputs()]
            taken += [_tensor(value, unranked, True) for value in self._session.get_overridable_initializers()]
            given = [_tensor(value, unranked) for value in self._session.get_outputs()]
        except LoadError:
            raise
        except Exception as error:  # damaged files raise UnicodeDecodeError and others, not only onnxruntime's classes
            if device.gpu_demanded and placement.is_device_failure(error):
                raise DeviceUnavailable(f"device {device} was asked for, but it failed: {reason(error)}") from error
            raise load_error(error) from error
        if device.kind == "cpu":  # it keeps the file for a fallback to other providers: half of a small model's memory
            self._session._model_bytes = None
        #: The device that the session really runs on: "cpu", "cuda:N" or "tensorrt:N".
        self.device = check_provider(device, self._session)
        settings.check_shrinkage(self.device)
        #: The nodes that stayed on the CPU while the session runs on a GPU, in words; "" for none.
        self.left_on_cpu = placement.check(self._session, asked, device.gpu_demanded) if self.device != "cpu" else ""
        self.inputs: tuple[ModelTensor, ...] = tuple(taken)
        self.outputs: tuple[ModelTensor, ...] = tuple(given)
        self._datatypes = {tensor.name: tensor.datatype for tensor in (*self.inputs, *self.outputs)}
        self._plain = BF16 not in self._datatypes.values()
        self._texts = [t.name for t in self.inputs if t.datatype is BYTES]
        needed = [t.name for t in self.inputs if t.datatype is BYTES and not t.optional]
        if needed and (given_bf16 := [t.name for t in self.outputs if t.datatype is BF16]):
            raise LoadError(
                f"the input {needed[0]!r} is BYTES and the output {given_bf16[0]!r} is BF16; onnxruntime does not "
                "run such a model from Python: let the model cast that output to FP32"
            )
        #: Outputs that are inputs, too. onnxruntime hands on the input, and writes nothing into memory bound for it.
        self._passed_on = [t.name for t in self.outputs if any(t.name == one.name for one in self.inputs)]
        self._resident: Resident | None = None
        self._staged: Staged | None = None
        if self.device != "cpu" and dict(settings.cuda_options).get(cuda_options.GRAPH) == "1":
            if self._passed_on:
                raise ConfigError(f"a CUDA graph cannot answer with its input {self._passed_on[0]!r} as it is")
            inputs, outputs = ([_fixed(tensor) for tensor in group] for group in (self.inputs, self.outputs))
            self._resident = Resident(self._session, inputs, outputs, "cuda", int(self.device.partition(":")[2]))
        elif self.device != "cpu" and self._plain and BYTES not in self._datatypes.values() and not self._passed_on:
            self._staged = Staged(self._session, pinned.memory)

    def run(
        self,
        feeds: Mapping[str, Array],
        outputs: Sequence[str],
        give_back: bool | None = None,
        stop: Stop | None = None,
    ) -> list[Array]:
        """The outputs named in ``outputs``, in that order, for the inputs ``feeds``.

        With ``give_back`` the session keeps no memory for the next run; None: as is best for it. ``stop`` ends the run
        before its next node.

        As inputs and as outputs, arrays of BYTES hold ``bytes`` objects and arrays of BF16 hold the bits as uint16.
        Raises InvalidRequest where the model itself cannot take these shapes or values, OutOfMemory, and Unavailable
        where the run was stopped.
        """
        options = self._run_options(self._limited and self._may_need_much(feeds) if give_back is None else give_back)
        if stop is not None:
            options = stop.attached(options)
        if self._texts:
            feeds = {name: _texts(array) if name in self._texts else array for name, array in feeds.items()}
        try:
            if self._resident is not None:
                return self._resident.run(feeds, outputs)
            if self._staged is not None:
                return self._staged.run(feeds, outputs, options)
            if not self._plain:
                return self._run_values(feeds, outputs, options)
            answers = self._session.run(list(outputs), dict(feeds), options)
        except _RUN_ERRORS as error:
            if stop is not None and stop.called:
                raise Unavailable("the run was stopped") from error
            if lacks_memory(error):
                raise OutOfMemory("the server has not enough memory to run the model on this input") from error
            if isinstance(error, UnicodeDecodeError):
                raise InvalidRequest("the model has strings or names that are not UTF-8") from error
            raise InvalidRequest(f"the model cannot take this input: {reason(error)}") from error
        return [_bytes(a) if self._datatypes[n] is BYTES else a for n, a in zip(outputs, answers, strict=True)]

    def bind(self, feeds: Mapping[str, Array], answers: Mapping[str, Array]) -> Bound | None:
        """A run whose inputs and outputs, of these shapes, stay at their places in memory; None if impossible."""
        if not self._plain or self.device != "cpu" or self.settings.arena_shrinkage:
            return None
        if self._limited and self.numbers_decide:
            return None
        if self._passed_on or any(a.dtype.kind not in NUMERIC for a in (*feeds.values(), *answers.values())):
            return None
        return Bound(self._session, feeds, answers)

    def _may_need_much(self, feeds: Mapping[str, Array]) -> bool:
        return self.numbers_decide or sum([array.nbytes for array in feeds.values()]) > SMALL_BYTES

    def _run_options(self, give_back: bool) -> ort.RunOptions | None:
        has_arena = self.settings.arena or self._limited
        shrinkage = self.settings.arena_shrinkage or ("cpu:0" if give_back and has_arena else "")
        if not shrinkage:
            return None
        options = ort.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", shrinkage)
        return options

    def _run_values(self, feeds: Mapping[str, Array], outputs: Sequence[str], options: Any) -> list[Array]:
        """The same by onnxruntime's own values, because NumPy has no bfloat16."""
        values: dict[str, Any] = {}
        has_texts = any(name in self._texts for name in feeds)
        for name, array in feeds.items():
            if self._datatypes[name] is BF16:
                bits = np.ascontiguousarray(array).reshape(array.shape)
                values[name] = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, BF16.onnx)
            else:  # there are no values of strings; they go in as arrays, and then no output can be bfloat16
                values[name] = array if has_texts else ort.OrtValue.ortvalue_from_numpy(array)
        if has_texts:
            answers = self._session.run(list(outputs), values, options)
            return [_bytes(a) if self._datatypes[n] is BYTES else a for n, a in zip(outputs, answers, strict=True)]
        answers = self._session.run_with_ort_values(list(outputs), values, options)
        return [self._array(name, value) for name, value in zip(outputs, answers, strict=True)]

    def _array(self, name: str, value: Any) -> Array:
        if self._datatypes[name] is BF16:
            shape = tuple(value.shape())
            data = ctypes.string_at(value.data_ptr(), 2 * math.prod(shape)) if math.prod(shape) else b""
            return np.frombuffer(data, BF16.dtype).reshape(shape)
        array: Array = value.numpy()
        if name in self._passed_on:  # a view of the input's memory, which may be freed
            array = array.copy()
        return _bytes(array) if self._datatypes[name] is BYTES else array


def available_providers() -> list[str]:
    """The execution providers that the installed onnxruntime was built with, whether they work or not."""
    names: list[str] = ort.get_available_providers()
    return names


def _fixed(tensor: ModelTensor) -> Fixed:
    """The name, dtype and shape of ``tensor`` for a CUDA graph. Raises ConfigError where a graph cannot have it."""
    shape = tensor.shape
    if tensor.optional or shape is None or -1 in shape:
        what = "an input with a default" if tensor.optional else "any rank" if shape is None else f"{list(shape)}"
        raise ConfigError(f"a CUDA graph needs fixed shapes in the model file, but {tensor.name!r} has {what}")
    if tensor.datatype in (BF16, BYTES):
        raise ConfigError(f"a CUDA graph cannot take {tensor.name!r}, which is {tensor.datatype.name}")
    return tensor.name, tensor.datatype.dtype, shape


def _providers(data: bytes, device: Device, settings: SessionSettings) -> list[tuple[str, dict[str, str]]]:
    """The execution providers to ask for, with their options."""
    tensorrt = None if settings.tensorrt_options is None else dict(settings.tensorrt_options)
    available = placement.prepare(device, available_providers(), tensorrt is not None)
    if device.kind == "tensorrt" or tensorrt is not None:
        tensorrt = tensorrt_options.cached(cache_folder("tensorrt"), data, ort.__version__) | (tensorrt or {})
    return providers(device, available, dict(settings.cuda_options), tensorrt)


def _make(
    data: bytes, device: Device, settings: SessionSettings, asked: list[tuple[str, dict[str, str]]], limited: bool
) -> ort.InferenceSession:
    """A session of onnxruntime, which may fall back to the CPU where ``device`` allows that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which provider the session got is checked afterwards
        options, fallback = _options(settings, device, limited), device.kind == "auto"
        return ort.InferenceSession(data, options, providers=asked, enable_fallback=fallback)


def _options(settings: SessionSettings, device: Device, limited: bool) -> ort.SessionOptions:
    options = ort.SessionOptions()
    # Silence onnxruntime's log: every failure is raised as an exception and reported by us. Where CUDA may be missing,
    # errors stay on: its loader names the library.
    options.log_severity_level = 4 if device.kind == "cpu" else 3
    if device.kind != "cpu":
        options.add_session_config_entry(*placement.RECORD)
    options.intra_op_num_threads = settings.intra_op_threads
    options.inter_op_num_threads = settings.inter_op_threads
    options.execution_mode = ort.ExecutionMode.ORT_PARALLEL if settings.parallel else ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = _LEVELS[settings.graph_level]
    options.enable_cpu_mem_arena = settings.arena
    options.enable_mem_pattern = settings.memory_pattern
    if limited:
        limited_arena.make(settings.limit_bytes)
        for name, value in limited_arena.OPTIONS.items():
            options.add_session_config_entry(name, value)
    elif settings.device_allocator:
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(settings.intra_op_spinning)))
    options.add_session_config_entry("session.inter_op.allow_spinning", str(int(settings.inter_op_spinning)))
    return options


def _tensor(value: Any, unranked: Set[str], optional: bool = False) -> ModelTensor:
    try:
        datatype = by_onnxruntime(value.type)
    except KeyError:
        raise LoadError(
            f"{value.name!r} has the type {value.type}, which the Open Inference Protocol has no name for"
        ) from None
    if not value.shape and value.name in unranked:
        return ModelTensor(value.name, datatype, None, optional)
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in value.shape)
    return ModelTensor(value.name, datatype, shape, optional)


def _texts(array: Array) -> Array:
    """BYTES elements as the strings that onnxruntime takes."""
    texts, flat = np.empty(array.size, object), array.ravel()
    for piece in pieces(flat.size):
        texts[piece] = [to_text(element) for element in flat[piece]]
    return texts.reshape(array.shape)


def _bytes(array: Array) -> Array:
    """The strings that onnxruntime gives as BYTES elements."""
    elements, flat = np.empty(array.size, object), array.ravel()
    for piece in pieces(flat.size):
        elements[piece] = [to_bytes(str(element)) for element in flat[piece]]
    return elements.reshape(array.shape)


#: The exceptions of a run with shapes or values that the model cannot take; RuntimeError comes from bound tensors,
#: UnicodeDecodeError from strings, and names in errors, of the model's file. Any other is a mistake of this program.
_RUN_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    UnicodeDecodeError,
    *(getattr(ort.capi.onnxruntime_pybind11_state, name) for name in ("InvalidArgument", "Fail", "RuntimeException")),
)
