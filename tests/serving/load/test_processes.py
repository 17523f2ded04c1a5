"""Who listens, and the CPU time of a process tree, from a /proc written by hand and from the real one."""

from __future__ import annotations

import os
import socket

import pytest

from normfold.serving.load import processes

TICKS = os.sysconf("SC_CLK_TCK")


@pytest.fixture
def proc(tmp_path):
    """Process 10 (child 11, grandchild 12) listens on port 8001; 20 is a stranger; 30 connects to port 8001."""
    (tmp_path / "net").mkdir()
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    row = "   0: 0100007F:{} 00000000:0000 {} 00000000:00000000 00:00000000 00000000  0        0 {} 1 0\n"
    listens, connected = row.format("1F41", "0A", 555), row.format("1F41", "01", 556)
    (tmp_path / "net" / "tcp").write_text(head + connected + listens)
    unix = "0000000000000000: 00000002 00000000 00010000 0001 01 777 /run/n.sock\n"
    (tmp_path / "net" / "unix").write_text("Num RefCount Protocol Flags Type St Inode Path\n" + unix)
    for pid, parent, ticks, inode in (
        (10, 1, 100, 555),
        (11, 10, 20, 777),
        (12, 11, 3, 1),
        (20, 1, 7, 2),
        (30, 1, 1, 556),
    ):
        (tmp_path / str(pid) / "fd").mkdir(parents=True)
        (tmp_path / str(pid) / "fd" / "3").symlink_to(f"socket:[{inode}]")
        fields = ["S", str(parent), *["0"] * 9, str(ticks), str(ticks), *["0"] * 30]
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (odd ) name) " + " ".join(fields))
    return tmp_path


def test_the_listener_is_found_and_not_who_is_connected(proc):
    assert processes.listeners("127.0.0.1:8001", proc) == [10]
    assert processes.listeners("unix:/run/n.sock", proc) == [11]
    assert processes.listeners("127.0.0.1:8002", proc) == []


def test_a_server_elsewhere_is_not_looked_for_here(proc):
    assert processes.listeners("192.0.2.1:8001", proc) == []


def test_cpu_time_is_that_of_the_whole_tree(proc):
    assert processes.cpu_seconds([10], proc) == pytest.approx(2 * (100 + 20 + 3) / TICKS)
    assert processes.cpu_seconds([11, 12], proc) == pytest.approx(2 * (20 + 3) / TICKS)
    assert processes.cpu_seconds([99], proc) is None
    assert processes.cpu_seconds([], proc) is None


def test_this_process_is_found_as_the_listener_of_its_own_sockets(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket(socket.AF_UNIX) as local:
        local.bind(str(tmp_path / "s"))
        local.listen()
        for address in (f"127.0.0.1:{listening.getsockname()[1]}", f"unix:{tmp_path / 's'}"):
            assert processes.listeners(address) == [os.getpid()]
    assert processes.cpu_seconds([os.getpid()]) > 0
    assert processes.resident_bytes([os.getpid()])[0] > 1 << 20
