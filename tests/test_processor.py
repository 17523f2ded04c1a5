"""The processor's name, from texts of /proc/cpuinfo such as x86 and ARM machines have."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from normfold.processor import processor_name

X86 = """\
processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 1
model name\t: AMD EPYC 7R13 Processor
stepping\t: 1
flags\t\t: fpu vme de pse tsc msr pae mce cx8

processor\t: 1
vendor_id\t: AuthenticAMD
model name\t: another
"""
INTEL = X86.replace("AMD EPYC 7R13 Processor", "Intel(R) Core(TM) i7-1185G7 @ 3.00GHz")
ARM = """\
processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: 0xd40
CPU revision\t: 1

processor\t: 1
CPU implementer\t: 0x41
CPU variant\t: 0x3
CPU part\t: 0xd0c
"""
#: Linux before 3.8 describes the ARM core once, below the list of processors.
OLD_ARM = """\
processor\t: 0
BogoMIPS\t: 38.40

Features\t: swp half thumb fastmult vfp edsp neon vfpv3
CPU implementer\t: 0x41
CPU variant\t: 0x4
CPU part\t: 0xc07
"""


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        (X86, "AMD EPYC 7R13 Processor"),
        (INTEL, "Intel Core i7-1185G7 @ 3.00GHz"),
        (ARM, "aarch64, CPU implementer 0x41, CPU part 0xd40, CPU variant 0x1"),
        (OLD_ARM, "aarch64, CPU implementer 0x41, CPU part 0xc07, CPU variant 0x4"),
        (ARM.replace("CPU variant\t: 0x1\n", "CPU variant\t:\n"), "aarch64, CPU implementer 0x41, CPU part 0xd40"),
        ("", "aarch64"),
        (None, "aarch64"),
    ],
    ids=["x86", "marks of the owner", "arm", "old arm", "without a variant", "empty", "no file"],
)
def test_a_processor_without_a_name_goes_by_its_numbers(
    cpuinfo: str | None, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    file = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        file.write_text(cpuinfo)
    assert processor_name(file) == name


def test_this_processor_has_a_name() -> None:
    assert processor_name()
