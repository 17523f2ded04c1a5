"""Plain files are read and extended; what may hang is refused at once."""

from __future__ import annotations

import os
import socket

import pytest

from normfold.plain_file import append_plain_text, read_plain_file, why_no_pair


def test_text_is_written_behind_the_end_and_a_missing_file_is_made(tmp_path):
    file = tmp_path / "traces"
    append_plain_text(file, "é\n")
    append_plain_text(file, "b\n")
    assert file.read_text(encoding="utf-8") == "é\nb\n"


@pytest.mark.parametrize("read", [False, True])
def test_a_pipe_is_neither_read_nor_extended_with_or_without_a_reader(tmp_path, read):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK) if read else -1
    try:
        with pytest.raises(OSError, match="it is not a plain file"):
            append_plain_text(pipe, "a")
        with pytest.raises(OSError, match="it is not a plain file"):
            read_plain_file(pipe)
    finally:
        if read:
            os.close(reader)


def test_a_socket_a_device_and_a_folder_are_not_extended(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        with pytest.raises(OSError, match="it is not a plain file"):
            append_plain_text(tmp_path / "socket", "a")
    with pytest.raises(OSError, match="it is not a plain file"):
        append_plain_text(type(tmp_path)(os.devnull), "a")
    with pytest.raises(IsADirectoryError):
        append_plain_text(tmp_path, "a")


@pytest.mark.parametrize("reason", ["KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED"])
def test_a_key_of_another_certificate_is_named_so_whatever_its_kind(reason):
    assert why_no_pair(reason) == "the key is not that of the certificate"
    assert why_no_pair("BAD_BASE64_DECODE") == "bad base64 decode"
