"""The tests that press Ctrl-C work in a background job of a script, too."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

#: A background job of a shell without job control, as a script starts it.
IN_BACKGROUND = ["bash", "-c", '"$@" & wait $!', "bash"]
SHOW = "import signal; print(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)"


def test_a_background_job_of_a_script_ignores_sigint():
    printed = subprocess.check_output([*IN_BACKGROUND, sys.executable, "-c", SHOW], text=True, timeout=60)
    assert printed == "True\n"


def test_this_process_and_its_children_can_be_interrupted():
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    printed = subprocess.check_output([sys.executable, "-c", SHOW], text=True, timeout=60)
    assert printed == "False\n"


def test_tests_that_are_started_in_the_background_can_be_interrupted(root):
    test = "tests/test_interrupt.py::test_this_process_and_its_children_can_be_interrupted"
    command = [*IN_BACKGROUND, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
