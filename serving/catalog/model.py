"""One version of a model, loaded: from its files to something that answers requests."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from normfold.protos import model_config as mc
from normfold.serving.catalog import config, golden, warmup
from normfold.serving.catalog.contract import Contract, agree
from normfold.serving.catalog.repository import Files
from normfold.serving.errors import ConfigError, DeviceUnavailable, InvalidRequest
from normfold.serving.runtime import cuda_options, gpus, tensorrt_options
from normfold.serving.runtime.devices import Device
from normfold.serving.runtime.gpus import Sessions
from normfold.serving.runtime.session import Session, SessionSettings
from normfold.serving.runtime.tuning import Tuning, choose
from normfold.serving.scheduling import batching
from normfold.serving.scheduling.inline import RunTimes
from normfold.serving.scheduling.response_cache import ResponseCache
from normfold.serving.scheduling.scheduler import Run, Scheduler
from normfold.serving.scheduling.statistics import Statistics, Timing
from normfold.serving.wire.classification import read_labels

Array = NDArray[Any]
log = logging.getLogger(__name__)

#: A model file below this many bytes runs faster on one thread than on several.
SMALL_MODEL_BYTES = 4 << 20


@dataclass(frozen=True)
class LoadOptions:
    """What the server decides for every model."""

    device: Device
    #: CPUs that this process may use.
    cpus: int
    #: Threads inside one operator; 0: one for small models, all CPUs for others.
    threads: int = 0
    #: What handing a run to another thread costs; shorter runs stay on the event loop. 0: none does.
    hop_seconds: float = 0.0
    #: Measures how many threads a run has, where neither ``threads`` nor config.pbtxt says; None: a guess by size.
    tuning: Tuning | None = None


class Model:
    """A loaded, warm version of a model."""

    def __init__(
        self,
        name: str,
        version: int,
        settings: mc.ModelConfig,
        contract: Contract,
        session: Session,
        executor: Executor,
        times: RunTimes,
        others: Sequence[tuple[Session, int]] = (),
    ) -> None:
        """``others`` are the sessions beside ``session`` on further GPUs, with their instances."""
        self.name, self.version, self.config, self.contract, self.session = name, version, settings, contract, session
        self.statistics = Statistics()
        instances = sum(group.count * max(1, len(group.gpus)) for group in settings.instance_group)
        #: Runs the model, on the freest of its GPUs where it has several.
        self.run: Run = session.run
        if others:
            here = instances - sum(count for _, count in others)
            self.run = Sessions([(session, here), *others]).run
        self.devices = [session.device, *(other.device for other, _ in others)]
        if settings.dynamic_batching.preserve_ordering:
            instances = 1
        policy = batching.read_policy(settings)
        self.scheduler = Scheduler(self.run, policy, instances, executor, self.statistics, times)
        self.cache = ResponseCache() if settings.response_cache.enable else None

    async def infer(
        self, feeds: Mapping[str, Array], rows: int, outputs: Sequence[str], priority: int, timeout_us: int
    ) -> tuple[list[Array], Timing | None]:
        """The named outputs, and where the time went; None where the response cache answered."""
        if self.cache is None:
            return await self.scheduler.submit(feeds, rows, outputs, priority, timeout_us)
        key = self.cache.key(feeds, outputs)
        if (answer := self.cache.find(key)) is not None:
            return answer, None
        started = time.perf_counter_ns()
        answer, timing = await self.scheduler.submit(feeds, rows, outputs, priority, timeout_us)
        self.cache.keep(key, answer)
        self.statistics.cache_miss.add(time.perf_counter_ns() - started - timing.queue - timing.infer)
        return answer, timing

    def describe(self) -> str:
        """One line for a person: inputs, outputs, device."""
        takes = ", ".join(str(spec) for spec in self.contract.inputs.values())
        gives = ", ".join(str(spec) for spec in self.contract.outputs.values())
        threads = self.session.settings.intra_op_threads
        where = ", ".join(self.devices)
        if threads > 1:
            where += f", {threads} threads a run"
        if self.session.left_on_cpu:
            where += f", nodes on the CPU: {self.session.left_on_cpu}"
        return f"{self.name} version {self.version}: {takes} -> {gives} on {where}"


def load(folder: Files, written: mc.ModelConfig, version: int, options: LoadOptions, executor: Executor) -> Model:
    """Load one version and run it warm. ``written`` is its configuration as written. Raises LoadError."""
    filename = written.default_model_filename or config.MODEL_FILE
    data = folder.read_model(version, filename)
    _check_device(written, options.device)
    tuning = options.tuning if _is_open(written, options) else None
    remembered = tuning.find(data) if tuning else None
    threads = options.threads or remembered or (1 if len(data) < SMALL_MODEL_BYTES else options.cpus)
    settings = config.settings(written, SessionSettings(intra_op_threads=threads))
    counts = gpus.instances(written.instance_group, options.device.index)
    first, *rest = (Device(options.device.kind, number) for number in counts)
    session = _session(data, first, settings, options.device)
    full = _complete(written, folder.name, session, options)
    contract = agree(full, session.inputs, session.outputs, _labels(folder, full))
    known = folder.read_golden(version)
    asked = None if known is None else golden.replay(session, known)
    samples = warmup.samples(full, contract, folder, asked)
    if tuning and not remembered and samples:
        session, measured = _tune(session, data, samples[0], list(contract.outputs), options.device, tuning)
        if measured:
            tuning.keep(data, session.settings.intra_op_threads)
            full = _complete(written, folder.name, session, options)
    times = RunTimes(options.hop_seconds)
    warmup.run(session, samples, list(contract.outputs), lambda feeds, ns: times.of(feeds).note(ns))
    others = []
    for device in rest if session.device != "cpu" else ():
        other = _session(data, device, settings, options.device)
        if other.device == "cpu":
            raise ConfigError(f"instance_group.gpus has {device.index}, but onnxruntime fell back to the CPU there")
        if known is not None:
            golden.replay(other, known)
        warmup.run(other, samples, list(contract.outputs), lambda feeds, ns: None)
        others.append((other, counts[device.index]))
    return Model(folder.name, version, full, contract, session, executor, times, others)


def _session(data: bytes, device: Device, settings: SessionSettings, server: Device) -> Session:
    """A session on ``device``. Raises ConfigError where it fails for what only this model asks for, not the server."""
    try:
        return Session(data, device, settings)
    except DeviceUnavailable as error:
        if device.index != server.index:
            raise ConfigError(f"instance_group.gpus has {device.index}, which cannot be had: {error}") from error
        if settings.tensorrt_options is not None and device.kind != "tensorrt":
            raise ConfigError(f"its gpu_execution_accelerator cannot be had: {error}") from error
        raise


def _is_open(written: mc.ModelConfig, options: LoadOptions) -> bool:
    """Whether nobody says how many threads a run has, and there is a choice."""
    said = options.threads or "intra_op_thread_count" in written.parameters
    return not said and options.cpus > 1 and options.device.kind == "cpu"


def _tune(
    session: Session, data: bytes, sample: warmup.Sample, outputs: list[str], device: Device, tuning: Tuning
) -> tuple[Session, bool]:
    def make(threads: int) -> Session:
        if threads == session.settings.intra_op_threads:
            return session
        return Session(data, device, replace(session.settings, intra_op_threads=threads))

    try:
        return choose(make, tuning.candidates(), sample.feeds, outputs)
    except InvalidRequest:  # zeros need not be a valid input, and what was asked for fails in the warm-up
        return session, False


def _complete(written: mc.ModelConfig, name: str, session: Session, options: LoadOptions) -> mc.ModelConfig:
    """The configuration in force, with what ``session`` runs on."""
    threads = session.settings.intra_op_threads
    instances = max(1, options.cpus // threads) if session.device == "cpu" else 1
    full = config.complete(written, name, session.inputs, session.outputs, instances)
    _place(full, session.device)
    full.parameters.pop(config.LEFT_ON_CPU, None)
    if session.left_on_cpu:
        full.parameters[config.LEFT_ON_CPU].string_value = session.left_on_cpu
    if session.device == "cpu" and threads > 1:
        full.parameters["intra_op_thread_count"].string_value = str(threads)
    return full


def _labels(folder: Files, full: mc.ModelConfig) -> dict[str, tuple[str, ...]]:
    labels = {}
    for output in full.output:
        if output.label_filename:
            try:
                labels[output.name] = read_labels(folder.read(output.label_filename))
            except UnicodeDecodeError:
                raise ConfigError(f"label_filename {output.label_filename!r} is not UTF-8 text") from None
    return labels


def _check_device(written: mc.ModelConfig, device: Device) -> None:
    if device.kind == "cpu" and written.optimization.execution_accelerators.gpu_execution_accelerator:
        raise ConfigError("there is a gpu_execution_accelerator, but the server runs with --device cpu")
    options = config.settings(written, SessionSettings())
    if (cuda_options.GRAPH, "1") in options.cuda_options:
        if device.kind == "cpu":
            raise ConfigError("optimization.cuda.graphs needs a GPU, but the server runs with --device cpu")
        if device.kind == "tensorrt" or options.tensorrt_options is not None:
            raise ConfigError("optimization.cuda.graphs cannot be had together with TensorRT; remove one of them")
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
    """Say in the configuration in force where the instances really are."""
    kind, _, index = device.partition(":")
    for group in full.instance_group:
        group.kind = mc.ModelInstanceGroup.KIND_GPU if index else mc.ModelInstanceGroup.KIND_CPU
        group.gpus[:] = (list(group.gpus) or [int(index)]) if index else []
    if kind != tensorrt_options.ACCELERATOR:
        full.optimization.execution_accelerators.ClearField("gpu_execution_accelerator")  # asked for, and fell back
    elif not full.optimization.execution_accelerators.gpu_execution_accelerator:
        full.optimization.execution_accelerators.gpu_execution_accelerator.add(name=kind)
