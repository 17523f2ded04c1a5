"""Options that take a time."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from normfold.cli.main import main
from normfold.cli.seconds import Seconds
from normfold.serving.client.arguments import LONGEST_SECONDS


@pytest.mark.parametrize(
    "command",
    [
        ("bench", "127.0.0.1:1", "--model", "m", "--seconds"),
        ("bench", "127.0.0.1:1", "--model", "m", "--timeout"),
        ("healthcheck", "--address", "http://127.0.0.1:1", "--timeout"),
        ("infer", "m", "--input", "x=[1]", "--timeout"),
        ("load", "m", "--timeout"),
        ("models", "--timeout"),
    ],
    ids=" ".join,
)
def test_what_is_no_number_is_no_time(command: tuple[str, ...]) -> None:
    done = CliRunner().invoke(main, [*command, "nan"])
    assert (done.exit_code, "nan is not a number of seconds, such as 5" in done.stderr) == (2, True), done.output


def test_a_time_without_end_is_the_longest_that_is_waited() -> None:
    times = Seconds(0, min_open=True)
    assert [times.convert(text, None, None) for text in ("2.5", "1e99", "inf")] == [
        2.5,
        LONGEST_SECONDS,
        LONGEST_SECONDS,
    ]
    with pytest.raises(click.BadParameter, match="not in the range"):
        times.convert("0", None, None)


def test_a_port_of_http_is_asked_with_the_longest_time() -> None:
    done = CliRunner().invoke(main, ["healthcheck", "--address", "http://127.0.0.1:1", "--timeout", "inf"])
    assert (done.exit_code, "does not answer: Connection refused" in done.stderr) == (1, True), done.output
