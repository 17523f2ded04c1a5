"""onnxruntime sends nothing and writes nothing in the processes of normfold, unless the user wants it to."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from onnx import parser

from normfold import telemetry

MODEL = '<ir_version: 9, opset_import: ["": 18]> g (float[N,4] x) => (float[N,4] y) { y = Neg (x) }'

#: A host that is not this one, in strace's words.
OUTSIDE = re.compile(r'inet_addr\("(?!127\.|0\.0)|AF_INET6, "(?!::1"|::"|::ffff:127\.)')


#: What a process needs of this one's environment. The rest is left out: onnxruntime sends nothing where it sees a
#: variable of a build service (CI, GITHUB_ACTIONS, TF_BUILD and others), and these tests would prove nothing there.
NEEDED = ("PATH", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "TMPDIR", "LANG")


def environment(home: Path, value: str | None = None) -> dict[str, str]:
    """The environment of a user whose files lie in ``home``, with this value of the variable."""
    kept = {key: os.environ[key] for key in NEEDED if key in os.environ}
    return {**kept, "HOME": str(home), **({} if value is None else {telemetry.VARIABLE: value})}


def files(home: Path) -> list[str]:
    """The files below ``home`` that are not normfold's own."""
    found = [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()]
    return [name for name in found if not name.startswith(".cache/normfold/")]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


NETWORK = """
from torch import nn

class Net(nn.Module):
    def forward(self, x):
        return -x
"""

#: onnxruntime looks its host up some seconds after the import: servers are watched for this long after their start.
WATCHED_SECONDS = 10


def test_servers_and_an_export_ask_no_foreign_host_and_write_no_foreign_file(tmp_path: Path) -> None:
    """All at the same time, because they are waited for. An export may end before it would look: its files show it."""
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "model.onnx").write_bytes(parser.parse_model(MODEL).SerializeToString())
    (tmp_path / "net.py").write_text(NETWORK)
    serve = ("serve", "-r", str(tmp_path / "m"), "--listen", "127.0.0.1:0", "--metrics-listen", "off", "--workers")
    export = ("export", f"{tmp_path / 'net.py'}:Net", "--untrained", "--input", "x=FP32[N,4]", "--name", "net")
    commands = {
        "one worker": (*serve, "1"),
        "two workers": (*serve, "2"),
        "an export": (*export, "--repository", str(tmp_path / "exported")),
    }
    strace = ["strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o"]
    processes: dict[str, subprocess.Popen[str]] = {}
    try:
        for name, command in commands.items():
            (tmp_path / name / "home").mkdir(parents=True)
            processes[name] = subprocess.Popen(
                [
                    *([*strace, str(tmp_path / name / "trace")] if shutil.which("strace") else []),
                    *(sys.executable, "-m", "normfold", *command),
                ],
                env=environment(tmp_path / name / "home"),
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        for name in ("one worker", "two workers"):
            server = processes[name]
            assert server.stdout
            assert any(line.startswith("listening") for line in server.stdout), f"{name} ended before it listened"
        time.sleep(WATCHED_SECONDS)
        assert all(processes[name].poll() is None for name in ("one worker", "two workers"))
        assert processes["an export"].wait(120) == 0
    finally:
        for process in processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)
            assert process.stdout
            process.stdout.close()
    for name in commands:
        assert files(tmp_path / name / "home") == [], name
    if not shutil.which("strace"):
        pytest.skip("strace is not installed: whether a host is looked up was not checked, only what was written")
    for name in commands:
        asked = (tmp_path / name / "trace").read_text(errors="replace").splitlines()
        assert [line for line in asked if OUTSIDE.search(line)] == [], name


IMPORTS = (
    "import normfold.serving.runtime.session",
    "import normfold.export.graphs.runtime",
    "import normfold, onnxruntime",
)


@pytest.mark.parametrize("program", IMPORTS)
def test_the_library_switches_it_off_before_onnxruntime_is_imported(home: Path, program: str) -> None:
    subprocess.run([sys.executable, "-c", program], env=environment(home), check=True, timeout=120)
    assert files(home) == []


def test_without_normfold_onnxruntime_does_write(home: Path) -> None:
    """The control: if this fails, onnxruntime has changed and the tests above prove nothing."""
    version = tuple(map(int, importlib.metadata.version("onnxruntime").split(".")[:2]))
    if version < (1, 32):
        pytest.skip(f"onnxruntime {version[0]}.{version[1]} sends no telemetry")
    subprocess.run([sys.executable, "-c", "import onnxruntime"], env=environment(home), check=True, timeout=120)
    assert any("onnxruntime" in name for name in files(home))


@pytest.mark.parametrize(
    ("before", "after"),
    [(None, "1"), ("", "1"), ("1", "1"), ("yes", "1"), ("0", "0"), ("false", "false"), ("Off", "Off"), ("no", "no")],
)
def test_a_user_who_wants_it_keeps_it(home: Path, before: str | None, after: str) -> None:
    program = "import normfold, os, normfold.telemetry as t; print(os.environ[t.VARIABLE], t.is_off())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(home, before),
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split() == [after, str(after == "1")]
