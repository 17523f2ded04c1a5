"""The order in which connections are served, and who makes place in a full queue."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from normfold.serving.scheduling.fair_queue import FairQueue, displaced


@dataclass(eq=False)
class Item:
    connection: str
    number: int

    def __repr__(self) -> str:
        return f"{self.connection}{self.number}"


def queue_of(*names: str) -> tuple[FairQueue[Item], dict[str, Item]]:
    queue: FairQueue[Item] = FairQueue()
    items = {name: Item(name[0], int(name[1:])) for name in names}
    for item in items.values():
        queue.append(item)
    return queue, items


def names(queue: FairQueue[Item]) -> list[str]:
    return [repr(item) for item in queue]


def test_connections_take_turns_and_each_keeps_its_own_order():
    queue, _ = queue_of("a1", "a2", "a3", "b1", "c1", "b2")
    assert names(queue) == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_a_connection_that_was_served_waits_for_the_others():
    queue, items = queue_of("a1", "a2", "a3", "b1", "b2")
    assert queue.take(items["a1"])
    assert names(queue) == ["b1", "a2", "b2", "a3"]
    queue.append(Item("c", 1))
    assert queue.take(items["b1"])
    assert names(queue) == ["a2", "c1", "b2", "a3"]


def test_a_late_connection_with_one_request_waits_for_one_of_another():
    queue, _ = queue_of(*(f"a{n}" for n in range(1000)), "b0")
    assert names(queue).index("b0") == 1


def test_what_leaves_the_middle_of_a_line_changes_no_turn():
    queue, items = queue_of("a1", "a2", "b1")
    assert queue.remove(items["a1"])
    assert not queue.remove(items["a1"])
    assert not queue.take(items["a1"])
    assert names(queue) == ["a2", "b1"]
    assert len(queue) == 2
    assert queue.remove(items["b1"])
    assert queue.remove(items["a2"])
    assert (len(queue), names(queue)) == (0, [])
    assert not queue.remove(items["a2"])


@pytest.mark.parametrize(
    ("first", "behind", "comes_on", "makes_place"),
    [
        (("a1", "a2", "a3", "b1"), (), "c", "a3"),
        (("a1", "a2", "a3", "b1"), (), "b", "a3"),
        (("a1", "a2", "a3", "b1"), (), "a", None),
        (("a1", "b1"), (), "c", None),
        (("a1", "a2", "b1"), (), "b", None),
        ((), (), "a", None),
        ((), ("a1", "a2", "b1"), "c", "a2"),
        (("a3", "b1", "b2"), ("a1", "a2"), "c", "a2"),
        (("a1", "b1", "b2"), ("a2", "b3"), "c", "b3"),
        (("b1", "b2", "b3"), ("a1", "a2"), "b", None),
        (("a1", "a2"), ("b1",), "b", None),
    ],
)
def test_the_connection_that_has_most_makes_place_for_one_that_has_less(first, behind, comes_on, makes_place):
    queues = [queue_of(*first)[0], queue_of(*behind)[0]]
    item = displaced(queues, comes_on)
    assert (None if item is None else repr(item)) == makes_place
    left = [name for name in (*first, *behind) if name != makes_place]
    assert sorted(names(queues[0]) + names(queues[1])) == sorted(left)
    assert sum(map(len, queues)) == len(left)
