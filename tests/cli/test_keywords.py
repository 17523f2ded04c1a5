"""Options of the form KEY=VALUE."""

from __future__ import annotations

import click
import pytest

from normfold.cli.keywords import keywords_of, sizes_of


def test_values_are_python_literals_or_text():
    texts = [
        "channels=128",
        "kind=tcn",
        "sizes=[1, 2]",
        "set={[3,4]}",
        "bn=false",
        "se=true",
        f"deep={'[' * 5000}",
        "empty=",
    ]
    found = keywords_of(None, texts)
    assert found == {
        "channels": 128, "kind": "tcn", "sizes": [1, 2], "set": "{[3,4]}", "bn": False, "se": True,
        "deep": "[" * 5000, "empty": "",
    }  # fmt: skip


def test_the_command_line_goes_before_the_file(tmp_path):
    (tmp_path / "c.toml").write_text("channels = 64\nkind = 'tcn'\n")
    assert keywords_of(tmp_path / "c.toml", ["channels=128"]) == {"channels": 128, "kind": "tcn"}


def test_sizes_are_positive_numbers():
    assert sizes_of(["L=5000", "N=1"]) == {"L": 5000, "N": 1}
    with pytest.raises(click.UsageError, match="expected a dimension and a size from 1 up"):
        sizes_of(["L=0"])
