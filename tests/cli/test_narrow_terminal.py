"""A terminal that is narrower than a table: it breaks the lines, and nothing of the table is lost."""

from __future__ import annotations

import io
from importlib import import_module

from rich.table import Table

from normfold.cli.models import ListedVersion, _seconds
from normfold.cli.plain_console import PlainConsole

ROW = ListedVersion("surnames", "1", "READY", device="cpu", answered=1234, failed=5, p50_seconds=2e-4, p99_seconds=0.01)


def printed(table: Table, width: int) -> str:
    console = PlainConsole(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    console.print_table(table)
    assert console.width == width
    return console.file.getvalue()


def test_the_list_of_models_has_every_name_and_number():
    table = import_module("normfold.cli.models")._table([ROW])
    wide = printed(table, 200)
    assert printed(table, 40) == printed(table, 20) == wide
    words = ["model", "version", "state", "device", "answered", "failed", "p50", "p99"]
    assert wide.split()[: len(words)] == words
    assert wide.split()[-10:] == ["surnames", "1", "READY", "cpu", "1,234", "5", "200", "µs", "10", "ms"]


def test_columns_that_may_not_wrap_are_not_cut_either():
    table = Table(box=None)
    table.add_column("latency", no_wrap=True)
    table.add_column("per s", no_wrap=True)
    table.add_row("123456789.25", "987654321.75")
    assert printed(table, 10).split()[-2:] == ["123456789.25", "987654321.75"]


def test_latencies_have_two_digits():
    """A server counts them in buckets of a factor of two: '133.3 ms' promised what nobody had measured."""
    seconds = (9.6e-6, 9.42e-4, 0.0949, 0.1333, 1.234, 33.1)
    shown = [_seconds(each) for each in seconds]
    assert shown == ["9.6 µs", "940 µs", "95 ms", "130 ms", "1.2 s", "33 s"]
    assert _seconds(None) == ""
