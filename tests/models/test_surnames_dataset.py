from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from normfold.models.errors import DataError
from normfold.models.surnames.dataset import Row, read, split

ROWS = [
    Row(f"{nationality}{i}", nationality) for nationality, n in (("a", 400), ("b", 60), ("c", 20)) for i in range(n)
]
SHARED = [Row(f"shared{i}", nationality) for i in range(30) for nationality in ("a", "c")]


def sets(rows: list[Row]) -> tuple[list[Row], list[Row], list[Row]]:
    parts = split(rows)
    return parts.train, parts.validation, parts.test


def test_every_row_is_in_exactly_one_set() -> None:
    assert Counter(row for part in sets(ROWS + SHARED) for row in part) == Counter(ROWS + SHARED)


def test_a_surname_of_several_nationalities_is_in_one_set_only() -> None:
    homes = [{row.surname for row in part} for part in sets(ROWS + SHARED)]
    assert not homes[0] & homes[1]
    assert not homes[0] & homes[2]
    assert not homes[1] & homes[2]


def test_upper_and_lower_case_of_a_surname_are_in_one_set() -> None:
    rows = ROWS + [Row(row.surname.upper(), "c") for row in ROWS]
    homes = [{row.surname.lower() for row in part} for part in sets(rows)]
    assert sum(map(len, homes)) == len(set.union(*homes))


def test_every_nationality_has_its_share_of_every_set() -> None:
    train, validation, test = (Counter(row.nationality for row in part) for part in sets(ROWS))
    assert (train, validation, test) == (
        {"a": 300, "b": 45, "c": 15},
        {"a": 40, "b": 6, "c": 2},
        {"a": 60, "b": 9, "c": 3},
    )


def test_the_split_does_not_depend_on_the_order_of_the_rows() -> None:
    shuffled = random.Random(0).sample(ROWS + SHARED, len(ROWS + SHARED))
    assert [set(part) for part in sets(shuffled)] == [set(part) for part in sets(ROWS + SHARED)]


def test_another_seed_gives_another_split() -> None:
    assert set(split(ROWS, seed=1).test) != set(split(ROWS).test)


def test_rows_are_read_without_the_spaces_around_them(tmp_path: Path) -> None:
    file = tmp_path / "names.csv"
    file.write_text("nationality,other,surname\nSpanish,x, Nuñez \n", encoding="utf-8")
    assert read(file) == [Row("Nuñez", "Spanish")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; give a CSV file with the columns surname,nationality"),
        (b"", "no column surname or nationality; the first line is nothing"),
        (b"surname,country\nRao,India\n", "no column nationality; the first line is surname, country"),
        (b"surname,nationality\n", "no row below the first line"),
        (b"surname,nationality\nRao\n", "line 2: an empty field"),
        (b"surname,nationality\nRao,Indian\n ,Indian\n", "line 3: an empty field"),
        (b"surname,nationality\nM\xfcller,German\n", "cannot be read as UTF-8 CSV"),
    ],
)
def test_a_file_that_is_not_the_data_is_refused_with_its_path(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    file = tmp_path / "names.csv"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read(file)
    assert str(file) in str(caught.value)
