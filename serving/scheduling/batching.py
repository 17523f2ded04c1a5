"""What config.pbtxt says about waiting and batching, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from normfold.protos import model_config as mc


@dataclass(frozen=True)
class QueuePolicy:
    """What happens to requests that wait at one priority level."""

    #: Longest wait in microseconds; 0: no limit.
    timeout_us: int = 0
    #: A request may shorten its own wait.
    allow_override: bool = False
    #: After the timeout, let it wait behind all others instead of refusing it.
    delay: bool = False
    #: Requests that may wait; 0: no limit.
    max_size: int = 0

    def wait_us(self, asked_us: int) -> int:
        """The longest wait of a request that asks for ``asked_us`` (0: asks for nothing); 0: no limit."""
        if not asked_us or not self.allow_override:
            return self.timeout_us
        return min(asked_us, self.timeout_us) if self.timeout_us else asked_us


@dataclass(frozen=True)
class BatchPolicy:
    """How requests are run together."""

    #: Rows of one run; 1: every request alone.
    max_rows: int = 1
    #: Row counts at which a batch need not wait for more.
    preferred: frozenset[int] = frozenset()
    #: How long a batch that is not full may wait, in microseconds.
    max_delay_us: int = 0
    #: 0: no priorities, else levels 1 (first) to this.
    levels: int = 0
    #: The level of requests that name none.
    default_level: int = 0
    #: The policy of levels that `policies` does not name.
    default: QueuePolicy = field(default_factory=QueuePolicy)
    #: Level -> policy.
    policies: Mapping[int, QueuePolicy] = field(default_factory=dict)

    def level(self, asked: int) -> int:
        """The level of a request with priority ``asked``; 0 and levels that do not exist mean the default."""
        return asked if 1 <= asked <= self.levels else self.default_level

    def queue(self, level: int) -> QueuePolicy:
        """The queue policy of a level."""
        return self.policies.get(level, self.default)


def read_policy(config: mc.ModelConfig) -> BatchPolicy:
    """The policy of a completed, checked configuration; without dynamic_batching every request runs alone."""
    if not config.HasField("dynamic_batching"):
        return BatchPolicy()
    batching = config.dynamic_batching
    return BatchPolicy(
        max_rows=config.max_batch_size,
        preferred=frozenset(batching.preferred_batch_size),
        max_delay_us=batching.max_queue_delay_microseconds,
        levels=batching.priority_levels,
        default_level=batching.default_priority_level if batching.priority_levels else 0,
        default=_queue(batching.default_queue_policy),
        policies={level: _queue(policy) for level, policy in batching.priority_queue_policy.items()},
    )


def _queue(policy: mc.ModelQueuePolicy) -> QueuePolicy:
    return QueuePolicy(
        timeout_us=policy.default_timeout_microseconds,
        allow_override=policy.allow_timeout_override,
        delay=policy.timeout_action == mc.ModelQueuePolicy.DELAY,
        max_size=policy.max_queue_size,
    )
