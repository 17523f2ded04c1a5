"""The programs on the pages about clients in Go and Node, built and run as they are printed, against a server.

``make interop`` fetches Go, grpc-go and grpc-js. Without them the tests are skipped, and the skip is printed.
"""

from __future__ import annotations

import os
import re
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
    return str(code).replace("10*time.Second", "100*time.Second").replace("+ 10000", "+ 100000")  # a busy machine


def run(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return re.sub(r"[^-0-9 \n]", "", done.stdout.replace(",", " ")).replace("  ", " ")


def test_the_client_in_node(address, tmp_path):
    program("node_modules/@grpc/grpc-js")
    (tmp_path / "client.js").write_text(on_the_page("clients-node.md", "js"))
    command = ["node", "client.js", address, str(PROTOS)]
    printed = run(command, tmp_path, {"NODE_PATH": str(PROGRAMS / "node_modules")})
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
    printed = run([binary, "run", "example", address], tmp_path, go)
    assert all(answer in printed for answer in ANSWERS), printed
