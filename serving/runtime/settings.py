"""How a session runs, and what a model file declares: values that need no onnxruntime."""

from __future__ import annotations

from dataclasses import dataclass

from normfold.protos.datatypes import Datatype

#: The levels of onnxruntime's graph optimisation, the strongest first.
GRAPH_LEVELS = ("all", "extended", "basic", "none")


@dataclass(frozen=True)
class SessionSettings:
    """How a session runs.

    Only the threads are measured for each model: what another value of the others gains is, where there is any, less
    than a measurement at load could tell from the noise. docs/serving.md has the figures.
    """

    #: Threads inside one operator; at least 1.
    intra_op_threads: int = 1
    #: Operators at once; only used when `parallel`; at least 1.
    inter_op_threads: int = 1
    #: Run independent operators at once.
    parallel: bool = False
    #: Graph optimisation: "all", "extended", "basic" or "none".
    graph_level: str = "all"
    #: Keep freed memory for the next run.
    arena: bool = True
    #: Plan memory once per input shape.
    memory_pattern: bool = True
    #: Give unused memory back after every run of these devices, such as "cpu:0"; empty: keep it.
    arena_shrinkage: str = ""
    #: Keep the model's weights outside the arena.
    device_allocator: bool = False
    #: Let idle threads spin for a while: a shorter run, at most of a core even without requests.
    intra_op_spinning: bool = False
    inter_op_spinning: bool = False
    #: Options of the CUDA provider that replace ours, as (name, value).
    cuda_options: tuple[tuple[str, str], ...] = ()
    #: Options of the TensorRT provider that replace ours; None: use it only where the device says so.
    tensorrt_options: tuple[tuple[str, str], ...] | None = None

    def __post_init__(self) -> None:
        if self.intra_op_threads < 1 or self.inter_op_threads < 1:
            raise ValueError(f"thread counts must be at least 1, got {self.intra_op_threads}, {self.inter_op_threads}")
        if self.graph_level not in GRAPH_LEVELS:
            raise ValueError(f"graph_level must be one of {', '.join(GRAPH_LEVELS)}, got {self.graph_level!r}")


@dataclass(frozen=True)
class ModelTensor:
    """An input or output as the file declares it.

    -1 in ``shape`` is any size, None a shape of any rank; an ``optional`` input has a default in the file.
    """

    name: str
    datatype: Datatype
    shape: tuple[int, ...] | None
    optional: bool = False
