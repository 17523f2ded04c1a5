"""How requests of a model wait and are batched, as config.pbtxt sets it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from normfold.protos import model_config as mc


@dataclass(frozen=True)
class QueuePolicy:
    """How requests of one priority level wait."""

    #: Longest wait in microseconds; 0: no limit.
    timeout_us: int = 0
    #: A request may shorten its own wait.
    allow_override: bool = False
    #: After the timeout, put a request behind all others instead of refusing it.
    delay: bool = False
    #: Requests that may wait; 0: no limit.
    max_size: int = 0

    def wait_us(self, asked_us: int) -> int:
        """The longest wait in microseconds of a request that asks for ``asked_us``; 0: no limit, or nothing asked."""
        if not asked_us or not self.allow_override:
            return self.timeout_us
        return min(asked_us, self.timeout_us) if self.timeout_us else asked_us


@dataclass(frozen=True)
class BatchPolicy:
    """How requests are run together."""

    #: The largest number of rows in one run; 1: every request runs alone.
    max_rows: int = 1
    #: A batch with one of these numbers of rows does not wait for more.
    preferred: frozenset[int] = frozenset()
    #: How long a batch that is not full may wait for more requests, in microseconds.
    max_delay_us: int = 0
    #: Requests of one priority level and connection run in the order in which they came, of other shapes too.
    in_order: bool = False
    #: The lowest priority level; level 1 comes first. 0: there are no priorities.
    levels: int = 0
    #: The level of requests that ask for none.
    default_level: int = 0
    #: The policy of levels that are not in `policies`.
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
        in_order=batching.preserve_ordering,
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
