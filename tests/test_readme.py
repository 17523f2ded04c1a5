"""The session in the README runs as it is written there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from benches.ports import free_port

ADDRESS = "127.0.0.1:8001"


def _block(text: str, language: str) -> str:
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1, f"the session has one {language} block"
    assert ADDRESS in blocks[0]
    return blocks[0]


def test_the_session_prints_what_it_says(root, tmp_path):
    text = (root / "README.md").read_text(encoding="utf-8")
    address = f"127.0.0.1:{free_port()}"
    shell, python = (_block(text, language).replace(ADDRESS, address) for language in ("bash", "python"))
    (tmp_path / "models").symlink_to(root / "models")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    terminal = subprocess.Popen(
        ["bash", "-e", "-c", shell],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        start_new_session=True,
    )  # fmt: skip
    try:
        assert terminal.stdout is not None
        printed = []
        for line in terminal.stdout:
            printed.append(line)
            if line.startswith("listening on"):
                break
        else:
            raise AssertionError("the first terminal ended:\n" + "".join(printed))
        assert printed[-1].startswith(f"listening on {address} (gRPC), ")
        assert printed[-1].endswith(" ready\n")
        assert "not ready" not in printed[-1]
        assert (tmp_path / "repository" / "surnames" / "1" / "model.onnx").is_file()
        answers = subprocess.run(
            [sys.executable, "-c", python], capture_output=True, text=True, timeout=60, env=environment, check=False
        )
        assert answers.returncode == 0, answers.stderr
        said = re.findall(r"^ *print\(.*\)  # (.*)$", python, re.MULTILINE)
        assert len(said) == 2
        assert answers.stdout.splitlines() == said
    finally:
        os.killpg(terminal.pid, signal.SIGTERM)
        terminal.communicate(timeout=40)


def test_the_readme_is_one_page(root):
    text = (root / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert "make demo" in text
    assert "make test" in text


def test_links_between_the_documents_lead_somewhere(root):
    links = [
        (document, target)
        for document in [*root.glob("*.md"), *(root / "docs").glob("*.md")]
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
        if not re.match(r"[a-z]+://", target)
    ]
    assert links
    assert [(doc.name, target) for doc, target in links if not (doc.parent / target).exists()] == []
