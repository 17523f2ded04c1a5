"""The changes that a later worker repeats."""

from __future__ import annotations

from normfold.serving.workers.journal import Change, Journal

LOAD, OTHER, UNLOAD = Change("load", b"1"), Change("load", b"2"), Change("unload", b"3")


def test_of_changes_with_one_key_the_last_is_in_force_and_in_its_place():
    journal = Journal()
    journal.keep(["model", "a"], LOAD)
    journal.keep(["model", "b"], OTHER)
    journal.keep(["model", "a"], UNLOAD)
    assert journal.changes() == [OTHER, UNLOAD]


def test_a_prefix_forgets_all_below_it_and_nothing_beside_it():
    journal = Journal()
    journal.keep(["region", "a"], LOAD)
    journal.keep(["region", "ab"], OTHER)
    journal.keep(["model", "a"], UNLOAD)
    journal.forget(["region", "a"])
    assert journal.changes() == [OTHER, UNLOAD]
    journal.forget(["region"])
    assert journal.changes() == [UNLOAD]
