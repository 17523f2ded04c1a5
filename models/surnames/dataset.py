"""The surnames file and its split into training, validation and test rows."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from normfold.models.errors import DataError

#: Shares of the validation set and of the test set; the rest is for training.
VALIDATION_SHARE, TEST_SHARE = 0.1, 0.15

COLUMNS = ("surname", "nationality")


@dataclass(frozen=True)
class Row:
    """One line of the data: a surname, and a nationality in which it occurs."""

    surname: str
    nationality: str


@dataclass(frozen=True)
class Split:
    """The rows of the three sets; no surname is in two of them, whether in upper or in lower case."""

    train: list[Row]
    validation: list[Row]
    test: list[Row]


def read(path: Path) -> list[Row]:
    """Return the rows of a UTF-8 CSV file with the columns ``surname`` and ``nationality``.

    Raises:
        DataError: the file is missing or not UTF-8, lacks a column, has an empty field, or has no row.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                found = ", ".join(reader.fieldnames or ()) or "nothing"
                raise DataError(
                    f"{path}: no column {' or '.join(missing)}; the first line is {found}, expected {','.join(COLUMNS)}"
                )
            rows = []
            for entry in reader:
                surname, nationality = ((entry[column] or "").strip() for column in COLUMNS)
                if not surname or not nationality:
                    raise DataError(
                        f"{path}, line {reader.line_num}: an empty field; every line needs a surname and a nationality"
                    )
                rows.append(Row(surname, nationality))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; give a CSV file with the columns {','.join(COLUMNS)}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 CSV: {error}") from error
    if not rows:
        raise DataError(f"{path}: no row below the first line")
    return rows


def read_split(path: Path) -> tuple[Split, tuple[str, ...]]:
    """Return the split of a data file and its nationalities in alphabetical order.

    Raises:
        DataError: as ``read``; there is only one nationality; there are too few surnames for three sets.
    """
    rows = read(path)
    nationalities = tuple(sorted({row.nationality for row in rows}))
    if len(nationalities) == 1:
        raise DataError(f"{path}: holds one nationality, {nationalities[0]}; a classifier needs two or more")
    sets = split(rows)
    if not (sets.validation and sets.test):
        raise DataError(
            f"{path}: {len(rows)} rows leave the validation or test set empty; give a nationality ten or more"
        )
    return sets, nationalities


def split(rows: list[Row], seed: int = 0) -> Split:
    """Return the rows split 75 : 10 : 15, stratified by nationality; the same on every machine.

    All rows of a surname go into the same set; a surname with several nationalities is counted under the rarest of
    them. Within a nationality, surnames are ordered by the SHA-256 of seed and surname.
    """
    frequency = Counter(row.nationality for row in rows)
    by_surname: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_surname[row.surname.lower()].append(row)
    strata: dict[str, list[str]] = defaultdict(list)
    for surname, same in by_surname.items():
        strata[min((row.nationality for row in same), key=lambda n: (frequency[n], n))].append(surname)
    result = Split([], [], [])
    for nationality in sorted(strata):
        surnames = sorted(strata[nationality], key=lambda s: hashlib.sha256(f"{seed} {s}".encode()).digest())
        tests, validations = round(len(surnames) * TEST_SHARE), round(len(surnames) * VALIDATION_SHARE)
        for position, surname in enumerate(surnames):
            into = (
                result.test
                if position < tests
                else result.validation
                if position < tests + validations
                else result.train
            )
            into.extend(by_surname[surname])
    return result
