"""Numbers, nouns and names in messages."""

from __future__ import annotations

import doctest

from normfold import counting


def test_one_has_the_singular_and_all_others_the_plural_and_of_many_names_the_first_are_listed():
    assert doctest.testmod(counting) == doctest.TestResults(failed=0, attempted=2)
