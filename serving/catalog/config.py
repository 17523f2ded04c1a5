"""config.pbtxt: reads it, checks it against what this server can do, and completes it from the model file.

A setting that changes answers and that this server cannot follow is a ConfigError when the model is loaded. A setting
that could only change speed and has no effect here gives a note for the log. No setting is ignored silently.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from google.protobuf import json_format, text_format

from normfold.digits import read_digits
from normfold.protos import model_config as mc
from normfold.protos.config_text import parse_config, unknown_numbers
from normfold.serving.catalog import bounds
from normfold.serving.errors import ConfigError
from normfold.serving.runtime import cuda_options, tensorrt_options
from normfold.serving.runtime.settings import ModelTensor, SessionSettings
from normfold.serving.wire.proved_sizes import ALLOWED, BATCHNORMS, PROVED
from normfold.serving.wording import quoted

PLATFORM = "onnxruntime_onnx"
BACKEND = "onnxruntime"
MODEL_FILE = "model.onnx"

PARAMETERS = (
    "intra_op_thread_count",
    "inter_op_thread_count",
    "execution_mode",
    "enable_mem_arena",
    "enable_mem_pattern",
    "memory.enable_memory_arena_shrinkage",
    "session.use_device_allocator_for_initializers",
    "session.intra_op.allow_spinning",
    "session.inter_op.allow_spinning",
    *cuda_options.NAMES,
)
#: The parameter in which a configuration in force lists the nodes that stayed on the CPU while the model runs on a GPU.
#: A client that sends it back changes nothing.
LEFT_ON_CPU = "nodes_on_cpu"
#: All parameters that the server itself sets in a configuration in force.
SET_BY_SERVER = (LEFT_ON_CPU, PROVED, ALLOWED, BATCHNORMS)

_GRAPH_LEVELS = {0: "all", 1: "extended", -1: "basic", 2: "none"}


def parse(text: str) -> mc.ModelConfig:
    """The configuration that a config.pbtxt holds. Raises ConfigError with line and column."""
    try:
        return parse_config(text)
    except text_format.ParseError as error:
        line = "" if error.GetLine() is None else "line "
        raise ConfigError(f"config.pbtxt, {line}{error}") from None


def parse_json(text: str) -> mc.ModelConfig:
    """The configuration that a load request carries as JSON; numbers may be strings. Raises ConfigError."""
    try:
        config = json_format.Parse(text, mc.ModelConfig(), max_recursion_depth=20)
    except (json_format.ParseError, ValueError, OverflowError, RecursionError) as error:
        raise ConfigError(f"the parameter 'config' is not a model configuration in JSON: {error}") from None
    for problem in unknown_numbers(config):
        raise ConfigError(f"the parameter 'config': {problem}")
    return config


def versions_in_service(config: mc.ModelConfig, present: Iterable[int]) -> list[int]:
    """Those of the versions ``present`` that the version policy puts in service, in ascending order."""
    numbers = sorted(present)
    policy = config.version_policy
    if policy.HasField("all"):
        return numbers
    if policy.HasField("specific"):
        return [number for number in numbers if number in policy.specific.versions]
    return numbers[-(policy.latest.num_versions or 1) :]


def check(config: mc.ModelConfig, name: str) -> list[str]:
    """Notes on settings that have no effect here. Raises ConfigError for a setting that this server cannot follow."""
    for reason in _refused(config, name):
        raise ConfigError(reason)
    return list(_notes(config))


def _refused(config: mc.ModelConfig, name: str) -> Iterator[str]:
    yield from bounds.exceeded(config)
    if sum(max(1, warmup.count) for warmup in config.model_warmup) > bounds.WARMUP_RUNS:
        yield f"the counts of model_warmup must be at most {bounds.WARMUP_RUNS} together"
    if config.name and config.name != name:
        yield (
            f"config.pbtxt names the model {config.name!r}, but its folder is {name!r}: delete the line "
            f"'name: \"{config.name}\"' in it (the folder is the name), or write {name!r} there"
        )
    if config.platform not in ("", PLATFORM):
        yield f"platform {config.platform!r} is not served; only {PLATFORM!r} is"
    if config.backend not in ("", BACKEND):
        yield f"backend {config.backend!r} is not served; only {BACKEND!r} is"
    if config.runtime:
        yield f"runtime {config.runtime!r} is not served; leave it out"
    if config.max_batch_size < 0:
        yield f"max_batch_size must be 0 or more, got {config.max_batch_size}"
    if "/" in config.default_model_filename or config.default_model_filename.startswith("."):
        yield f"default_model_filename {config.default_model_filename!r} must be a plain file name"
    kind = config.WhichOneof("scheduling_choice")
    if kind in ("sequence_batching", "ensemble_scheduling"):
        yield f"{kind} is not supported: every request is answered on its own by one model"
    if config.model_transaction_policy.decoupled:
        yield "model_transaction_policy.decoupled is not supported: a request has exactly one answer"
    fields = ("batch_input", "batch_output", "cc_model_filenames", "model_operations", "model_repository_agents")
    for field in fields:
        value = getattr(config, field)
        if value.ByteSize() if field in ("model_operations", "model_repository_agents") else value:
            yield f"{field} is not supported; remove it"
    yield from _refused_tensors(config)
    yield from _refused_optimization(config.optimization)
    yield from _refused_instances(config.instance_group)
    yield from _refused_batching(config)
    for key in config.parameters:
        if key not in (*PARAMETERS, *SET_BY_SERVER):
            near = difflib.get_close_matches(key, PARAMETERS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(PARAMETERS)}"
            yield f"parameter {key!r} is not known to the onnxruntime backend; {hint}"


def _refused_tensors(config: mc.ModelConfig) -> Iterator[str]:
    tensors: list[mc.ModelInput | mc.ModelOutput] = [*config.input, *config.output]
    for tensor in tensors:
        if not tensor.name:
            yield "an input or output in config.pbtxt has no name"
        for field in ("is_shape_tensor", "is_non_linear_format_io", "allow_ragged_batch"):
            if getattr(tensor, field, False):
                yield f"{field} of {tensor.name!r} is not supported; remove it"
        for size in (*tensor.dims, *tensor.reshape.shape):
            if size == 0 or size < -1:
                yield f"dims of {tensor.name!r}: {size} is not a size; use a positive number, or -1 for any"
    for group in (config.input, config.output):
        names = [tensor.name for tensor in group]
        for twice in sorted({n for n in names if names.count(n) > 1}):
            yield f"{twice!r} is described twice in config.pbtxt"


def _refused_optimization(optimization: mc.ModelOptimizationPolicy) -> Iterator[str]:
    if optimization.graph.level not in _GRAPH_LEVELS:
        yield f"optimization.graph.level must be -1, 0, 1 or 2, got {optimization.graph.level}"
    accelerators = optimization.execution_accelerators
    for accelerator in accelerators.cpu_execution_accelerator:
        yield f"CPU execution accelerator {accelerator.name!r} is not supported; remove it"
    for number, accelerator in enumerate(accelerators.gpu_execution_accelerator):
        if accelerator.name != tensorrt_options.ACCELERATOR:
            yield f"GPU execution accelerator {accelerator.name!r} is not supported; there is 'tensorrt'"
        if number:
            yield "there are several gpu_execution_accelerators; keep one"
    if optimization.cuda.graph_spec:
        yield "optimization.cuda.graph_spec is not supported: a graph has the shapes that the model fixes; remove it"


def _refused_instances(groups: Sequence[mc.ModelInstanceGroup]) -> Iterator[str]:
    for group in groups:
        if group.count < 0:
            yield f"instance_group.count must be 1 or more, got {group.count}"
        gpus = list(group.gpus)
        if len(set(gpus)) < len(gpus) or any(gpu < 0 for gpu in gpus):
            yield f"instance_group.gpus must be different numbers from 0, got {gpus}"
        if gpus and group.kind == mc.ModelInstanceGroup.KIND_CPU:
            yield f"instance_group has KIND_CPU, but gpus {gpus}; remove one of them"
        for field in ("secondary_devices", "profile", "passive", "host_policy"):
            if getattr(group, field):
                yield f"instance_group.{field} is not supported; remove it"
        if group.rate_limiter.ByteSize():
            yield "instance_group.rate_limiter is not supported; remove it"


def _refused_batching(config: mc.ModelConfig) -> Iterator[str]:
    if not config.HasField("dynamic_batching"):
        return
    batching = config.dynamic_batching
    if config.max_batch_size < 1:
        yield "dynamic_batching needs max_batch_size of 1 or more; set it, or remove dynamic_batching"
    for size in batching.preferred_batch_size:
        if not 1 <= size <= config.max_batch_size:
            yield f"preferred_batch_size {size} must lie between 1 and max_batch_size {config.max_batch_size}"
    levels = batching.priority_levels
    if levels and not 1 <= batching.default_priority_level <= levels:
        yield f"default_priority_level must lie between 1 and priority_levels {levels}"
    for level in batching.priority_queue_policy:
        if not 1 <= level <= levels:
            yield f"priority_queue_policy for level {level}: levels go from 1 to priority_levels {levels}"


def _notes(config: mc.ModelConfig) -> Iterator[str]:
    for key in SET_BY_SERVER:
        if key in config.parameters:
            yield f"parameter {key!r} has no effect: the server sets it"
    for field in ("metric_tags", "model_metrics"):
        value = getattr(config, field)
        if value.ByteSize() if field == "model_metrics" else value:
            yield f"{field} has no effect: all models have the same metrics"
    optimization = config.optimization
    if optimization.priority != mc.ModelOptimizationPolicy.PRIORITY_DEFAULT:
        yield "optimization.priority has no effect"
    for field in ("eager_batching", "gather_kernel_buffer_threshold"):
        if getattr(optimization, field):
            yield f"optimization.{field} has no effect"
    for field in ("busy_wait_events", "output_copy_stream"):
        if getattr(optimization.cuda, field):
            yield f"optimization.cuda.{field} has no effect"


def settings(config: mc.ModelConfig, base: SessionSettings) -> SessionSettings:
    """The session settings: ``base``, changed where the configuration says so. Raises ConfigError."""
    parallel = bool(_number(config, "execution_mode", 0, (0, 1)))
    return replace(
        base,
        intra_op_threads=_number(config, "intra_op_thread_count", 0) or base.intra_op_threads,
        inter_op_threads=_number(config, "inter_op_thread_count", 0) or base.inter_op_threads,
        parallel=parallel,
        graph_level=_GRAPH_LEVELS[config.optimization.graph.level],
        arena=bool(_number(config, "enable_mem_arena", int(base.arena), (0, 1))),
        memory_pattern=bool(_number(config, "enable_mem_pattern", 1, (0, 1))) and not parallel,
        arena_shrinkage=config.parameters["memory.enable_memory_arena_shrinkage"].string_value
        if "memory.enable_memory_arena_shrinkage" in config.parameters
        else "",
        device_allocator=bool(_number(config, "session.use_device_allocator_for_initializers", 0, (0, 1))),
        intra_op_spinning=bool(_number(config, "session.intra_op.allow_spinning", 0, (0, 1))),
        inter_op_spinning=bool(_number(config, "session.inter_op.allow_spinning", 0, (0, 1))),
        cuda_options=_cuda(config),
        tensorrt_options=_tensorrt(config),
    )


def _cuda(config: mc.ModelConfig) -> tuple[tuple[str, str], ...]:
    """The options of the CUDA provider that the configuration sets. Raises ConfigError."""
    options = {
        key: cuda_options.read(key, config.parameters[key].string_value)
        for key in cuda_options.NAMES
        if key in config.parameters
    }
    if config.optimization.cuda.graphs and options.setdefault(cuda_options.GRAPH, "1") == "0":
        raise ConfigError(f"optimization.cuda.graphs is true, but parameter {cuda_options.GRAPH!r} is 0")
    return tuple(options.items())


def _tensorrt(config: mc.ModelConfig) -> tuple[tuple[str, str], ...] | None:
    for accelerator in config.optimization.execution_accelerators.gpu_execution_accelerator:
        return tensorrt_options.read(accelerator.parameters.items())
    return None


def _number(config: mc.ModelConfig, key: str, default: int, allowed: Sequence[int] = range(1025)) -> int:
    if key not in config.parameters:
        return default
    text = config.parameters[key].string_value
    number = read_digits(text, allowed[-1])
    if number is None or number not in allowed:
        raise ConfigError(f"parameter {key!r} must be a number from {allowed[0]} to {allowed[-1]}, got {quoted(text)}")
    return number


def complete(
    config: mc.ModelConfig, name: str, inputs: Sequence[ModelTensor], outputs: Sequence[ModelTensor], instances: int
) -> mc.ModelConfig:
    """The configuration in force: ``config`` with defaults, and with the file's inputs and outputs if it has none."""
    full = mc.ModelConfig()
    full.CopyFrom(config)
    full.name, full.platform, full.backend = name, PLATFORM, BACKEND
    full.default_model_filename = config.default_model_filename or MODEL_FILE
    if full.version_policy.WhichOneof("policy_choice") is None:
        full.version_policy.latest.num_versions = 1
    if not full.instance_group:
        full.instance_group.add(name=f"{name}_0", count=instances, kind=mc.ModelInstanceGroup.KIND_CPU)
    for number, group in enumerate(full.instance_group):
        group.name = group.name or f"{name}_{number}"
        group.count = group.count or 1
    if full.HasField("dynamic_batching") and not full.dynamic_batching.preferred_batch_size:
        full.dynamic_batching.preferred_batch_size.append(full.max_batch_size)
    _describe(full.input, inputs, full.max_batch_size > 0)
    _describe(full.output, outputs, full.max_batch_size > 0)
    return full


def _describe(described: object, declared: Sequence[ModelTensor], batched: bool) -> None:
    """Complete the repeated field ``described`` with the tensors that the file declares."""
    entries: dict[str, mc.ModelInput | mc.ModelOutput] = {e.name: e for e in described}  # type: ignore[attr-defined]
    if not entries:
        required = dict.fromkeys(t.name for t in declared if not t.optional)  # a file may list a name twice
        entries = {name: described.add(name=name) for name in required}  # type: ignore[attr-defined]
    for tensor in declared:
        entry = entries.get(tensor.name)
        if entry is None:
            continue
        bare = not entry.dims and entry.data_type == mc.TYPE_INVALID
        entry.data_type = entry.data_type or tensor.datatype.config  # type: ignore[assignment]
        if bare:
            entry.dims.extend(tensor.shape[1:] if batched and tensor.shape else tensor.shape or [])
