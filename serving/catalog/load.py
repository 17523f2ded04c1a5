"""Loads one version of a model: from its files and its configuration to a warm ``Model``, or a sentence why not."""

from __future__ import annotations

import logging
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace

from normfold.protos import model_config as mc
from normfold.serving.catalog import config, golden, labels, proved, warmup
from normfold.serving.catalog.contract import Contract, agree
from normfold.serving.catalog.model import Model
from normfold.serving.catalog.repository import Files
from normfold.serving.catalog.sized_run import SizedRun
from normfold.serving.errors import ConfigError, DeviceUnavailable, InvalidRequest
from normfold.serving.process.memory import allocated_bytes
from normfold.serving.process.memory_limit import MemoryBudget
from normfold.serving.runtime import cuda_options, gpus, known_memory, run_memory, tensorrt_options
from normfold.serving.runtime.devices import Device
from normfold.serving.runtime.session import Session
from normfold.serving.runtime.settings import SessionSettings
from normfold.serving.runtime.tuning import Tuning, choose
from normfold.serving.scheduling.inline import INLINE_SECONDS, LoopTurn, RunTimes
from normfold.serving.wording import quoted

log = logging.getLogger(__name__)

#: A model file below this many bytes runs faster on one thread than on several.
SMALL_MODEL_BYTES = 4 << 20

#: A model has two to three times the memory of its file, and that of a graph with at most thousands of nodes.
TIMES_FILE, GRAPH_BYTES = 3, 1 << 20


@dataclass(frozen=True)
class LoadOptions:
    """The choices of the server that hold for every model."""

    device: Device
    #: CPUs that this process may use.
    cpus: int
    #: Threads inside one operator; 0: one for small models, all CPUs for others.
    threads: int = 0
    #: Runs shorter than this stay on the event loop. 0: none stays.
    inline_seconds: float = INLINE_SECONDS
    #: The turn of the event loop on which the models run.
    turn: LoopTurn = field(default_factory=LoopTurn, compare=False)
    #: Measures how many threads are best for a run, where neither ``threads`` nor config.pbtxt sets the number; None:
    #: the number follows from the size of the model file.
    tuning: Tuning | None = None
    #: Answer requests of sizes that a model's file was not proved for.
    allow_unproved_sizes: bool = False
    #: The memory for large runs; None: without limit.
    budget: MemoryBudget | None = None
    #: Whether a session keeps the memory of a run for the next one, where config.pbtxt does not say. A small model then
    #: has five times the memory, and its runs are no faster.
    arena: bool = True


def load(folder: Files, written: mc.ModelConfig, version: int, options: LoadOptions, executor: Executor) -> Model:
    """Load one version and warm it up. ``written`` is the configuration as its author wrote it. Raises LoadError."""
    filename = written.default_model_filename or config.MODEL_FILE
    data = folder.read_model(version, filename)
    before = allocated_bytes()
    _check_device(written, options.device)
    tuning = options.tuning if _is_open(written, options) else None
    remembered = tuning.find(data) if tuning else None
    threads = options.threads or remembered or (1 if len(data) < SMALL_MODEL_BYTES else options.cpus)
    limit = options.budget.limit_bytes if options.budget else 0
    sent = frozenset(entry.name for entry in written.input if entry.optional)
    base = SessionSettings(intra_op_threads=threads, arena=options.arena, limit_bytes=limit, sent=sent)
    settings = config.settings(written, base)
    counts = gpus.instances(written.instance_group, options.device.index)
    first, *rest = (Device(options.device.kind, number) for number in counts)
    session = _session(data, first, settings, options.device)
    full = _complete(written, folder.name, session, options)
    sizes = None if options.allow_unproved_sizes else proved.read(session)
    contract = agree(full, session.inputs, session.outputs, labels.read(folder, full), sizes)
    answers = folder.read_golden(version)
    asked = None if answers is None else golden.replay(session, answers)
    samples = warmup.samples(full, contract, folder, asked)
    if tuning and not remembered and samples:
        session, measured = _tune(session, data, samples[0], list(contract.outputs), options.device, tuning)
        if measured:
            tuning.keep(data, session.settings.intra_op_threads)
            full = _complete(written, folder.name, session, options)
    stays = session.device == "cpu" and not session.numbers_decide
    times = RunTimes(options.inline_seconds if stays else 0.0, options.turn)
    odd = warmup.run(session, samples, list(contract.outputs), lambda feeds, ns: times.of(feeds).note(ns))
    others = []
    for device in rest if session.device != "cpu" else ():
        other = _session(data, device, settings, options.device)
        if other.device == "cpu":
            raise ConfigError(f"instance_group.gpus has {device.index}, but onnxruntime fell back to the CPU there")
        if answers is not None:
            golden.replay(other, answers)
        warmup.run(other, samples, list(contract.outputs), lambda feeds, ns: None)
        others.append((other, counts[device.index]))
    sized = _sized(session, data, contract, samples, options)
    countable = before is not None  # where the C library does not count its memory, no model is measured
    if sized is None and limit and countable and session.device == "cpu" and not session.numbers_decide:
        settings = replace(session.settings, unmeasured=True)
        del session  # two of a large model at a time may be too much
        session = _session(data, first, settings, options.device)
        warmup.run(session, samples, list(contract.outputs), lambda feeds, ns: None)
    model = Model(folder.name, version, full, contract, session, executor, times, others, sized, options.budget)
    model.scheduler.run_alone(odd)
    growth = session.text_growth
    if limit and growth is not None and (sized is None or not growth.is_known(session.numbers_decide)):
        log.warning(
            "model %s version %d: nobody can know how many strings its graph makes, or how long they are: they count "
            "to no memory limit, and a small request may take all memory; let only callers ask it whom you trust",
            quoted(folder.name),
            version,
        )
    model.memory_bytes = memory_of(len(data), before, allocated_bytes())
    return model


def memory_of(file_bytes: int, before: int | None, after: int | None) -> int:
    """The memory of a model with a file of this size, by what the process had ``before`` and ``after`` its load.

    Other threads allocate, too, so the difference counts only within what is usual: weights once to four times (packed
    for the kernels) and the graph. None: not known.
    """
    if before is None or after is None:
        return TIMES_FILE * file_bytes + GRAPH_BYTES // 4
    return min(max(after - before, file_bytes), 4 * file_bytes + GRAPH_BYTES)


def _sized(
    session: Session, data: bytes, contract: Contract, samples: list[warmup.WarmupSample], options: LoadOptions
) -> SizedRun | None:
    """The run of ``session`` within the server's memory; None where the memory of its runs cannot be measured."""
    if options.budget is None:
        return None
    batched = contract.max_batch_size > 0
    axes = {
        tensor.name: [axis for axis, size in enumerate(tensor.shape or ()) if size == -1 and (axis or not batched)]
        for tensor in session.inputs
    }
    folder = options.tuning.folder if options.tuning else None
    settings = replace(session.settings, arena=True)
    for feeds in [sample.feeds for sample in samples[:1]] or warmup.guesses(session, batched):
        shapes = sorted((name, array.shape) for name, array in feeds.items())
        what = (shapes, contract.max_batch_size, settings.intra_op_threads, settings.arena)
        memory = known_memory.find(folder, data, what)
        if memory is None:  # only measurable with an arena; without one a run needs the same
            same = session.settings.arena or session.device != "cpu"
            measured = session if same else _session(data, options.device, settings, options.device)
            memory = run_memory.measure(measured, feeds, list(contract.outputs), contract.max_batch_size, axes)
            if memory is not None:
                known_memory.keep(folder, data, what, memory)
        if memory is not None:
            return SizedRun(session, memory, options.budget, batched, feeds)
    return None


def _session(data: bytes, device: Device, settings: SessionSettings, server: Device) -> Session:
    """A session on ``device``; ``server`` is the device of the server.

    Raises DeviceUnavailable where the server's own device fails, and ConfigError where something fails that only this
    model asks for.
    """
    try:
        return Session(data, device, settings)
    except DeviceUnavailable as error:
        if device.index != server.index:
            raise ConfigError(f"instance_group.gpus has {device.index}, which cannot be used: {error}") from error
        if settings.tensorrt_options is not None and device.kind != "tensorrt":
            raise ConfigError(f"its gpu_execution_accelerator cannot be used: {error}") from error
        raise


def _is_open(written: mc.ModelConfig, options: LoadOptions) -> bool:
    """Whether neither server nor model sets the number of threads, and more than one number is possible."""
    fixed = options.threads or "intra_op_thread_count" in written.parameters
    return not fixed and options.cpus > 1 and options.device.kind == "cpu"


def _tune(
    session: Session, data: bytes, sample: warmup.WarmupSample, outputs: list[str], device: Device, tuning: Tuning
) -> tuple[Session, bool]:
    """The session with the number of threads that measured best, and whether there was a measurement."""

    def make(threads: int) -> Session:
        if threads == session.settings.intra_op_threads:
            return session
        return Session(data, device, replace(session.settings, intra_op_threads=threads))

    try:
        return choose(make, tuning.candidates(), sample.feeds, outputs)
    except InvalidRequest:
        # Zeros may be no valid input; an input of the user that fails here fails in the warm-up, too.
        return session, False


def _complete(written: mc.ModelConfig, name: str, session: Session, options: LoadOptions) -> mc.ModelConfig:
    """The configuration in force: complete, and with the device and the threads of ``session``."""
    threads = session.settings.intra_op_threads
    instances = max(1, options.cpus // threads) if session.device == "cpu" else 1
    full = config.complete(written, name, session.inputs, session.outputs, instances)
    _place(full, session.device)
    for key in config.SET_BY_SERVER:
        full.parameters.pop(key, None)
    proved.describe(full, session, options.allow_unproved_sizes)
    if session.left_on_cpu:
        full.parameters[config.LEFT_ON_CPU].string_value = session.left_on_cpu
    if session.device == "cpu" and threads > 1:
        full.parameters["intra_op_thread_count"].string_value = str(threads)
    return full


def _check_device(written: mc.ModelConfig, device: Device) -> None:
    """Raise ConfigError where ``written`` asks for something that a server on ``device`` does not have."""
    if device.kind == "cpu" and written.optimization.execution_accelerators.gpu_execution_accelerator:
        raise ConfigError("there is a gpu_execution_accelerator, but the server runs with --device cpu")
    options = config.settings(written, SessionSettings())
    if (cuda_options.GRAPH, "1") in options.cuda_options:
        if device.kind == "cpu":
            raise ConfigError("optimization.cuda.graphs needs a GPU, but the server runs with --device cpu")
        if device.kind == "tensorrt" or options.tensorrt_options is not None:
            raise ConfigError("optimization.cuda.graphs cannot be used together with TensorRT; remove one of them")
    for group in written.instance_group:
        if group.kind == mc.ModelInstanceGroup.KIND_GPU and device.kind == "cpu":
            raise ConfigError("instance_group has KIND_GPU, but the server runs with --device cpu; use --device cuda")
        if group.kind == mc.ModelInstanceGroup.KIND_CPU and device.gpu_demanded:
            raise ConfigError(
                f"instance_group has KIND_CPU, but the server runs with --device {device.kind}; use --device cpu"
            )
        if group.gpus and device.kind == "cpu":
            raise ConfigError(
                f"instance_group.gpus is {list(group.gpus)}, but the server runs with --device cpu; use --device cuda"
            )


def _place(full: mc.ModelConfig, device: str) -> None:
    """Write into the configuration in force on which devices the instances really run."""
    kind, _, index = device.partition(":")
    for group in full.instance_group:
        group.kind = mc.ModelInstanceGroup.KIND_GPU if index else mc.ModelInstanceGroup.KIND_CPU
        group.gpus[:] = (list(group.gpus) or [int(index)]) if index else []
    if kind != tensorrt_options.ACCELERATOR:
        # The model may ask for it, but the session fell back.
        full.optimization.execution_accelerators.ClearField("gpu_execution_accelerator")
    elif not full.optimization.execution_accelerators.gpu_execution_accelerator:
        full.optimization.execution_accelerators.gpu_execution_accelerator.add(name=kind)
