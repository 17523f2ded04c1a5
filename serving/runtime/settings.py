"""How a session runs, and what a model file declares: values that need no onnxruntime."""

from __future__ import annotations

from dataclasses import dataclass

from normfold.protos.datatypes import Datatype
from normfold.serving.errors import ConfigError

#: The levels of onnxruntime's graph optimisation, the strongest first.
GRAPH_LEVELS = ("all", "extended", "basic", "none")


@dataclass(frozen=True)
class SessionSettings:
    """How a session runs.

    Only the number of threads is measured for each model. The other settings have one value for all models: another
    value gains little in few models, and less than a measurement at load could distinguish from noise. docs/serving.md
    has the figures.
    """

    #: Threads inside one operator; at least 1.
    intra_op_threads: int = 1
    #: Operators that run at once; only used with `parallel`; at least 1.
    inter_op_threads: int = 1
    #: Run independent operators at once.
    parallel: bool = False
    #: Graph optimisation: "all", "extended", "basic" or "none".
    graph_level: str = "all"
    #: Keep freed memory for the next run.
    arena: bool = True
    #: Plan memory once per input shape.
    memory_pattern: bool = True
    #: After every run, give back unused memory of these devices, such as "cpu:0"; empty: keep it.
    arena_shrinkage: str = ""
    #: Keep the model's weights outside the arena.
    device_allocator: bool = False
    #: Let idle threads spin for a while: runs become shorter, but even without requests most of a core is busy.
    intra_op_spinning: bool = False
    inter_op_spinning: bool = False
    #: The memory that this process may have, for models whose runs cannot be foretold; 0: without limit.
    limit_bytes: int = 0
    #: Nobody knows how much memory a run takes for each byte of its inputs.
    unmeasured: bool = False
    #: The inputs with a default in the file that requests may send, too.
    sent: frozenset[str] = frozenset()
    #: Options of the CUDA provider, as (name, value), that replace our defaults.
    cuda_options: tuple[tuple[str, str], ...] = ()
    #: Options of the TensorRT provider that replace our defaults; None: use TensorRT only if the device asks for it.
    tensorrt_options: tuple[tuple[str, str], ...] | None = None

    def __post_init__(self) -> None:
        if self.intra_op_threads < 1 or self.inter_op_threads < 1:
            raise ValueError(f"thread counts must be at least 1, got {self.intra_op_threads}, {self.inter_op_threads}")
        if self.graph_level not in GRAPH_LEVELS:
            raise ValueError(f"graph_level must be one of {', '.join(GRAPH_LEVELS)}, got {self.graph_level!r}")

    def check_shrinkage(self, device: str) -> None:
        """Raise ConfigError where a session on ``device`` could not shrink these arenas: then every run would fail."""
        has = ["cpu:0"] if self.arena else []
        has += [f"gpu:{device.partition(':')[2]}"] if device != "cpu" else []
        asked = [part if ":" in part else f"{part}:0" for part in self.arena_shrinkage.split(";") if part]
        if not set(asked) <= set(has):
            there = f"the session on {device} has {' and '.join(has)}" if has else "enable_mem_arena is 0"
            raise ConfigError(
                f'parameters "memory.enable_memory_arena_shrinkage" is {self.arena_shrinkage!r}: expected arenas that '
                f"are there, with semicolons between, such as cpu:0; {there}"
            )


@dataclass(frozen=True)
class ModelTensor:
    """An input or output as the model file declares it.

    In ``shape``, -1 is any size; a ``shape`` of None is any rank. An ``optional`` input has a default in the file.
    """

    name: str
    datatype: Datatype
    shape: tuple[int, ...] | None
    optional: bool = False
