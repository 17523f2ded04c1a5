"""``normfold token``: the token is printed once, the file has only its digest."""

from __future__ import annotations

import errno
import fcntl
import os
import stat

import pytest
from click import ClickException
from click.testing import CliRunner

from normfold.cli.token import token
from normfold.serving.access import tokens
from normfold.serving.access.scopes import Scope
from normfold.serving.access.tokens import digest, read_tokens


def run(*arguments: str):
    return CliRunner().invoke(token, arguments)


def test_it_prints_the_token_and_the_line_for_the_file(tmp_path):
    result = run("ward-7", "--scope", "infer", "--model", "a", "--model", "b")
    made, written = (text.split(maxsplit=1)[1] for text in result.output.splitlines())
    (tmp_path / "tokens").write_text(written)
    holder = read_tokens(tmp_path / "tokens")[digest(made)]
    assert (holder.name, holder.scopes, holder.models) == ("ward-7", {Scope.INFER}, {"a", "b"})


def test_it_appends_to_a_file_that_nobody_else_may_read(tmp_path):
    path = tmp_path / "tokens"
    first = run("a", "--tokens", str(path)).output.strip()
    path.write_text("# ours\n" + path.read_text().strip())
    second = run("b", "--scope", "admin", "--tokens", str(path)).output.strip()
    holders = read_tokens(path)
    assert [holders[digest(made)].name for made in (first, second)] == ["a", "b"]
    assert holders[digest(first)].scopes == {Scope.INFER, Scope.READ}
    assert path.read_text().startswith("# ours\n")
    assert first not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a"], "tokens has a token for a already; remove its line first"),
        (["b c"], "'b c' is not a name"),
        (["c", "--model", "x/y"], "'x/y' is not a model's name"),
    ],
)
def test_a_mistake_is_one_message_and_changes_nothing(tmp_path, arguments, words):
    path = tmp_path / "tokens"
    run("a", "--tokens", str(path))
    before = path.read_bytes()
    result = run(*arguments, "--tokens", str(path))
    assert (result.exit_code, path.read_bytes()) == (1, before)
    assert words in result.output
    assert "token" not in result.stdout


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    result = run("a", "--tokens", str(tmp_path / "none" / "tokens"))
    assert result.exit_code == 1
    assert "none/tokens cannot be written: No such file or directory" in result.output


def test_an_empty_file_gets_its_first_line(tmp_path):
    path = tmp_path / "tokens"
    path.write_text("# ours")
    made = run("a", "--tokens", str(path)).output.strip()
    assert read_tokens(path)[digest(made)].name == "a"


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "link").symlink_to("tokens")
    made = run("a", "--tokens", str(tmp_path / "link")).output.strip()
    assert (tmp_path / "link").is_symlink()
    assert read_tokens(tmp_path / "tokens")[digest(made)].name == "a"


def test_nothing_is_written_where_standard_output_is_closed(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdout", None)
    with pytest.raises(ClickException, match="standard output is closed"):
        token.main(["a", "--tokens", str(tmp_path / "tokens")], standalone_mode=False)
    assert not (tmp_path / "tokens").exists()


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_the_server_can_read_the_file_as_before(tmp_path, mode):
    path = tmp_path / "tokens"
    path.touch()
    path.chmod(mode)
    run("a", "--tokens", str(path))
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_links_in_a_circle_and_a_folder_that_is_gone_are_said_in_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "loop").symlink_to("loop")
    result = run("a", "--tokens", str(tmp_path / "loop"))
    assert result.output.endswith("/loop cannot be read: Too many levels of symbolic links\n")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert "tokens cannot be written: No such file or directory" in run("a", "--tokens", "tokens").output


def test_a_token_that_was_printed_and_is_not_kept_is_said_to_be_invalid(tmp_path, monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("os.fsync", fsync)
    result = run("a", "--tokens", str(tmp_path / "tokens"))
    assert result.output.startswith("nf_")
    assert "cannot be written: Input/output error; the token that was printed is not valid" in result.output
    assert not list(tmp_path.iterdir())


def test_nobody_else_makes_a_token_between_the_look_and_the_new_line(tmp_path, monkeypatch):
    read, asked = tokens.holders_in, []

    def read_and_try(data, file):
        folder = os.open(tmp_path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(folder)
        asked.append(file)
        return read(data, file)

    run("a", "--tokens", str(tmp_path / "tokens"))
    monkeypatch.setattr(tokens, "holders_in", read_and_try)
    assert run("b", "--tokens", str(tmp_path / "tokens")).exit_code == 0
    assert len(asked) == 1
