"""The programs on the pages about clients, built and run as they are printed, against a server.

``make interop`` fetches Go, grpc-go and grpc-js. For C++ and Java the packages of Debian must be installed that their
pages name. Without them the tests are skipped, and the skip is printed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .test_interop import PROGRAMS, program

ROOT = Path(__file__).resolve().parents[2]
PROTOS = ROOT / "protos"
#: x = 1 2 3 4 through version 2 of model m: y = 3 x, z = -x.
ANSWERS = ("3 6 9 12", "-1 -2 -3 -4")
pytestmark = pytest.mark.interop


def on_the_page(page: str, language: str) -> str:
    """The only block of code in this language."""
    (code,) = re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)
    for short in ("10*time.Second", "+ 10000", "seconds(10)", "withDeadlineAfter(10"):  # a busy machine
        code = code.replace(short, short.replace("10", "100", 1))
    return str(code)


def installed(*programs: str) -> None:
    """Skip the test if a program is missing; the page names its package."""
    for each in programs:
        if shutil.which(each) is None:
            pytest.skip(f"no {each}: the page names Debian's packages")


def run(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def numbers(printed: str) -> str:
    """The numbers in what a program has printed, with a space between them."""
    return re.sub(r"[^-0-9 \n]", "", printed.replace(",", " ")).replace("  ", " ")


def test_the_client_in_node(address, tmp_path):
    program("node_modules/@grpc/grpc-js")
    (tmp_path / "client.js").write_text(on_the_page("clients-node.md", "js"))
    command = ["node", "client.js", address, str(PROTOS)]
    printed = numbers(run(command, tmp_path, {"NODE_PATH": str(PROGRAMS / "node_modules")}))
    assert all(answer in printed for answer in ANSWERS), printed


def test_the_client_in_go(address, tmp_path):
    program("root/usr/lib/go-1.19/bin/go")
    source = tmp_path / "src" / "example"
    (source / "inference").mkdir(parents=True)
    (source / "main.go").write_text(on_the_page("clients-go.md", "go"))
    root = PROGRAMS / "root/usr"
    go = {
        "GOROOT": str(root / "lib/go-1.19"),
        "GOPATH": f"{tmp_path}:{root / 'share/gocode'}",
        "GO111MODULE": "off",
        "GOCACHE": str(PROGRAMS / "go-cache"),
        "CGO_ENABLED": "0",
    }
    binary = str(root / "lib/go-1.19/bin/go")
    generator = (
        "github.com/golang/protobuf/protoc-gen-go"  # of the time of Debian's grpc-go, which makes the same names
    )
    run([binary, "build", "-o", str(tmp_path / "protoc-gen-go"), generator], tmp_path, go)
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", "grpc_service.proto", "model_config.proto"]
    made = f"--go_out=plugins=grpc,import_path=inference:{source / 'inference'}"
    run([*protoc, f"--plugin={tmp_path / 'protoc-gen-go'}", made], tmp_path, {})
    printed = numbers(run([binary, "run", "example", address], tmp_path, go))
    assert all(answer in printed for answer in ANSWERS), printed


def build(page: str, folder: Path) -> None:
    """Run the page's commands in ``folder``, but those that install packages or start the client."""
    block = re.search(r"\n\n```\n(.*?)^```$", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)
    assert block is not None
    lines = [line for line in block[1].splitlines() if not line.startswith(("apt-get", "java "))]
    run(["sh", "-ec", "\n".join(lines).replace("-I protos", f"-I {PROTOS}")], folder, {})


@pytest.fixture(scope="session")
def client_in_cpp(tmp_path_factory):
    """The program, compiled once."""
    installed("g++", "protoc", "grpc_cpp_plugin", "pkg-config")
    if subprocess.run(["pkg-config", "--exists", "grpc++", "protobuf"], check=False).returncode:
        pytest.skip("no headers of grpc++ and protobuf: the page names Debian's packages")
    folder = tmp_path_factory.mktemp("cpp")
    (folder / "client.cc").write_text(on_the_page("clients-cpp.md", "cpp"))
    build("clients-cpp.md", folder)
    return folder / "client"


def test_the_client_in_cpp(client_in_cpp, address):
    printed = run([str(client_in_cpp), address], client_in_cpp.parent, {})
    assert all(answer in printed for answer in ANSWERS), printed


@pytest.fixture(scope="session")
def client_in_java(tmp_path_factory):
    """The folder of the program, compiled once."""
    installed("javac", "java", "protoc", "grpc_java_plugin")
    if not all(Path("/usr/share/java", f"{jar}.jar").exists() for jar in ("grpc-netty", "netty-all", "protobuf")):
        pytest.skip("no jars of grpc-java in /usr/share/java: the page names Debian's packages")
    folder = tmp_path_factory.mktemp("java")
    (folder / "Client.java").write_text(on_the_page("clients-java.md", "java"))
    build("clients-java.md", folder)
    return folder


def test_the_client_in_java(client_in_java, address):
    printed = run(["java", "-cp", "out:/usr/share/java/*", "Client", address], client_in_java, {})
    assert [float(line) for line in printed.split()] == [3.0, 6.0, 9.0, 12.0], printed
