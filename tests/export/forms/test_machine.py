from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest

from normfold.export.forms import machine
from normfold.export.forms.machine import Machine, this_machine


def test_the_machine_is_its_processor_its_onnxruntime_and_the_threads_that_ran() -> None:
    here = this_machine()
    assert here.processor
    assert here.onnxruntime == onnxruntime.__version__
    assert (here.providers, here.threads) == (("CPUExecutionProvider",), 1)
    assert str(Machine("A CPU", "1.32.0", (), 1)) == "A CPU, onnxruntime 1.32.0, 1 thread"
    assert str(Machine("A CPU", "1.32.0", (), 4)).endswith("4 threads")


@pytest.mark.parametrize(
    ("cpuinfo", "processor"),
    [
        ("processor\t: 0\nmodel name\t: AMD EPYC 7R13\n\nprocessor\t: 1\nmodel name\t: another\n", "AMD EPYC 7R13"),
        (
            "processor\t: 0\nCPU implementer\t: 0x41\nCPU variant\t: 0x1\nCPU part\t: 0xd40\n",
            "arm64, CPU implementer 0x41, CPU part 0xd40, CPU variant 0x1",
        ),
        ("", "arm64"),
        (None, "arm64"),
    ],
)
def test_a_processor_without_a_name_goes_by_its_numbers(
    cpuinfo: str | None, processor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine.platform, "machine", lambda: "arm64")
    assert this_machine().processor == processor
