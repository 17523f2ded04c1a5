"""normfold.toml and NORMFOLD_*: what is not typed comes from there, and what is wrong there is said."""

from __future__ import annotations

import os

import click
import pytest
from click.testing import CliRunner

from normfold.cli.main import COMMANDS, main


@pytest.fixture
def seen(monkeypatch, tmp_path):
    """The parameters with which ``serve`` would have run, in a folder of its own."""
    from normfold.cli.serve import serve

    monkeypatch.chdir(tmp_path)
    got: dict[str, object] = {}
    monkeypatch.setattr(serve, "callback", lambda **options: got.update(options))
    return got


def run(*arguments, code=0, env=None):
    done = CliRunner().invoke(main, list(arguments), env=env)
    assert done.exit_code == code, done.output
    return done.output


CONTENT = """
[serve]
repository = "repo"
listen = "127.0.0.1:7000"
max-message-mib = 64
load-model = ["a", "b"]
tune = false
model-control = "none"
[export]
opset = 18
"""


def test_the_file_gives_what_is_not_typed(seen, tmp_path):
    (tmp_path / "normfold.toml").write_text(CONTENT)
    run("serve", "--listen", "127.0.0.1:7001", env={"NORMFOLD_SERVE_MAX_QUEUE_SECONDS": "2"})
    assert str(seen["repository"]) == "repo"
    assert (seen["listen"], seen["max_message_bytes"], seen["load_models"]) == ("127.0.0.1:7001", 64 << 20, ("a", "b"))
    assert (seen["tune"], seen["model_control"], seen["max_queue_seconds"]) == (False, "none", 2)


def test_the_environment_comes_before_the_file_and_behind_the_command_line(seen, tmp_path):
    (tmp_path / "other.toml").write_text(CONTENT)
    env = {"NORMFOLD_SERVE_LISTEN": "127.0.0.1:7002"}
    run("--config", "other.toml", "serve", env=env)
    assert seen["listen"] == "127.0.0.1:7002"
    run("serve", "-r", "x", "--listen", "127.0.0.1:7003", env=env)
    assert seen["listen"] == "127.0.0.1:7003"


def test_every_option_has_the_variable_of_its_own_name(seen):
    env = {"NORMFOLD_SERVE_MAX_MESSAGE_MIB": "64", "NORMFOLD_SERVE_LOAD_MODEL": "a b", "NORMFOLD_SERVE_TUNE": "false"}
    run("serve", "-r", "x", env={**env, "NORMFOLD_SERVE_NAME": "n"})
    assert (seen["max_message_bytes"], seen["load_models"], seen["tune"]) == (64 << 20, ("a", "b"), False)
    assert seen["model_name"] == "n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[serv]\nx = 1", "[serv] is no command; did you mean [serve]?"),
        ("[other]\nx = 1", "[other] is no command; sections are export"),
        ("listen = 'x'", "listen is in no section; write it below one, such as [serve]"),
        ("serve = 3", "serve is no section; write [serve]"),
        ("[[serve]]\nlisten = 'x'", "serve is no section; write [serve]"),
        ("[serve]\nlisten-on = 'x'", "normfold serve has no option --listen-on; did you mean listen?"),
        ("[serve]\ntune = 'no'", "serve.tune is 'no'; true or false was expected"),
        ("[serve]\nlisten = true", "serve.listen is True; a value was expected"),
        ("[serve]\nload-model = 'a'", "a list"),
        ("[serve]\nlisten = ['a']", "one value was expected"),
        ("[serve.listen]\na = 1", "serve.listen is a table"),
        ("[serve", "normfold.toml cannot be read"),
        (f"[serve]\nthreads = {'9' * 5000}", "normfold.toml cannot be read"),
        ("[serve]\nthreads = 'many'", "'many'"),
    ],
)
def test_a_mistake_in_the_file_is_said(seen, tmp_path, content, said):
    (tmp_path / "normfold.toml").write_text(content)
    output = run("serve", "-r", "x", code=2)
    assert said in " ".join(output.split())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[models]\naddress = '127.0.0.1:1'\n[serve]\nlisten-on = 'x'", "normfold serve has no option --listen-on"),
        ("[export]\nopsett = 18", "normfold export has no option --opsett; did you mean opset?"),
        ("[serve]\ntune = 'no'", "serve.tune is 'no'; true or false was expected"),
    ],
)
def test_a_mistake_in_the_section_of_another_command_is_said_too(seen, tmp_path, content, said):
    (tmp_path / "normfold.toml").write_text(content)
    assert said in " ".join(run("models", code=2).split())


def test_every_section_is_known_to_every_command(seen, tmp_path):
    (tmp_path / "normfold.toml").write_text("".join(f"[{name}]\n" for name in COMMANDS))
    run("serve", "-r", "x")


def test_a_file_that_was_named_must_be_there(seen):
    assert "no.toml cannot be read: No such file" in run("--config", "no.toml", "serve", "-r", "x", code=2)


def test_a_file_that_is_no_text_is_said(seen, tmp_path):
    (tmp_path / "latin.toml").write_bytes("[serve]\nname = 'ä'".encode("latin-1"))
    said = run("--config", str(tmp_path / "latin.toml"), "serve", "-r", "x", code=2)
    assert "latin.toml cannot be read: it is not UTF-8 text" in " ".join(said.split())


def test_a_pipe_is_no_configuration(seen, tmp_path):
    os.mkfifo(tmp_path / "pipe.toml")
    said = run("--config", "pipe.toml", "serve", "-r", "x", code=2)
    assert "pipe.toml cannot be read: it is not a plain file" in " ".join(said.split())


def test_no_option_of_any_command_needs_a_name_that_another_has(seen):
    for name, (path, _) in COMMANDS.items():
        command = getattr(__import__(path, fromlist=[name]), name)
        words = [w for o in command.params if isinstance(o, click.Option) for w in (*o.opts, *o.secondary_opts)]
        assert len(words) == len(set(words)), name


def test_the_versions_of_a_report_are_printed():
    said = run("--version")
    assert said.startswith("normfold ")
    assert "onnxruntime " in said
    assert "Python 3." in said


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        (
            "TOKEN",
            "/x",
            "_SERVE_TOKEN: normfold serve has no option --token; did you mean NORMFOLD_SERVE_TOKENS?",
        ),
        ("NO_REFLECTION", "1", "has no option --no-reflection; did you mean NORMFOLD_SERVE_REFLECTION=false?"),
        ("MODEL_NAME", "n", "has no option --model-name; did you mean NORMFOLD_SERVE_NAME?"),
        (
            "PORT",
            "8001",
            "_SERVE_PORT: normfold serve has no option --port; `normfold serve --help` lists them",
        ),
        ("WORKERS", "zwei", "Invalid value for NORMFOLD_SERVE_WORKERS (--workers): 'zwei' is not"),
        ("INSECURE", "ja", "Invalid value for NORMFOLD_SERVE_INSECURE (--insecure): 'ja' is not"),
    ],
)
def test_a_mistake_in_the_environment_is_said(seen, variable, value, said):
    output = run("serve", "-r", "x", code=2, env={f"NORMFOLD_SERVE_{variable}": value})
    assert said in " ".join(output.split())


def test_a_wrong_value_is_said_with_its_own_place(seen, tmp_path):
    (tmp_path / "normfold.toml").write_text("[serve]\nworkers = 'zwei'")
    assert "workers in [serve] of normfold.toml: 'zwei'" in run("serve", "-r", "x", code=2)
    assert "NORMFOLD_SERVE_WORKERS (--workers): 'drei'" in run(
        "serve", "-r", "x", code=2, env={"NORMFOLD_SERVE_WORKERS": "drei"}
    )
    assert "'--workers': 'vier'" in run(
        "serve", "-r", "x", "--workers", "vier", code=2, env={"NORMFOLD_SERVE_WORKERS": "drei"}
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("serve", "-r", "x", "--workers", "two"), "'two' is not a whole number."),
        (("serve", "-r", "x", "--stall-seconds", "1s"), "'1s' is not a number."),
        (("export", "net.py:Net", "--opset", "high"), "'high' is not a whole number."),
        (
            ("serve", "-r", "x", "--config", "other.toml"),
            "has no --config; the file of options is named before the command: normfold --config FILE serve …",
        ),
    ],
)
def test_what_click_would_not_say_clearly(arguments, said):
    output = " ".join(CliRunner().invoke(main, list(arguments), prog_name="normfold").output.split())
    assert said in output
    assert "Did you mean" not in output


def test_a_switch_in_a_variable_that_is_neither_true_nor_false_is_named_so(monkeypatch):
    monkeypatch.setenv("NORMFOLD_SERVE_TUNE", "maybe")
    output = CliRunner().invoke(main, ["serve", "-r", "x"], prog_name="normfold").output
    assert output.endswith("Error: Invalid value for NORMFOLD_SERVE_TUNE (--tune): 'maybe' is not true or false.\n")


def test_the_shorter_words_of_click_8_1_about_a_switch_are_made_clearer_too(monkeypatch):
    def convert(kind, value, parameter, context):
        return value if isinstance(value, bool) else kind.fail(f"{value!r} is not a valid boolean.", parameter, context)

    monkeypatch.setattr(click.types.BoolParamType, "convert", convert)
    test_a_switch_in_a_variable_that_is_neither_true_nor_false_is_named_so(monkeypatch)


def test_variables_of_kubernetes_and_of_other_commands_are_no_mistakes(seen):
    service = {
        f"NORMFOLD_{name}_{ending}": value
        for name in ("SERVE", "SERVE_EU", "SERVICE")
        for ending, value in {
            "SERVICE_HOST": "10.0.0.1",
            "SERVICE_PORT": "8001",
            "SERVICE_PORT_GRPC": "8001",
            "PORT": "tcp://10.0.0.1:8001",
            "PORT_8001_TCP": "tcp://10.0.0.1:8001",
            "PORT_8001_TCP_ADDR": "10.0.0.1",
            "PORT_8001_TCP_PORT": "8001",
            "PORT_8001_TCP_PROTO": "tcp",
        }.items()
    }
    others = {"NORMFOLD_INFER_ADRESS": "x", "NORMFOLD_TOKEN": "t", "NORMFOLD_CACHE_DIR": "/tmp"}
    run("serve", "-r", "x", env={**service, **others})


def test_a_variable_with_the_version_of_an_image_does_not_matter(seen):
    run("serve", "-r", "x", env={"NORMFOLD_VERSION": "0.1.0"})


def test_help_is_printed_whatever_the_environment_has(seen):
    assert "--tokens" in run("serve", "--help", env={"NORMFOLD_SERVE_TOKEN": "/x"})
