"""BYTES elements as the strings that onnxruntime takes, and back, without losing a byte.

onnxruntime's Python strings are Unicode; a BYTES element is any bytes. Text that is UTF-8 goes through as itself. A
byte that is not part of UTF-8 becomes the private-use character U+10FF00 + byte (0x80 to 0xFF), and so, to stay
unambiguous, does every byte of a genuine character from that range. The idea is PEP 383's, with characters that can be
encoded.

>>> to_text(b"caf\\xc3\\xa9"), to_bytes(to_text(b"\\xff\\x00"))
('café', b'\\xff\\x00')
"""

from __future__ import annotations

#: The memory of an element beside its own bytes: an object of Python and its place in a list, the same as text for
#: onnxruntime, its places in two arrays, and onnxruntime's own string. 10 million of 2 bytes were measured.
ELEMENT_BYTES = 168
#: Its own bytes are in memory this many times during a run: as they are, as text of up to four bytes a character, as
#: onnxruntime's. While a request waits for its run they are there once.
OWN_TIMES = 6

#: The private-use range whose characters mean single bytes: U+10FF80 to U+10FFFF.
_BASE = 0x10FF00
_RANGE = range(_BASE + 0x80, _BASE + 0x100)

#: How the UTF-8 of every character in that range starts.
_MARKS = (b"\xf4\x8f\xbe", b"\xf4\x8f\xbf")

_ESCAPE = {0xDC00 + byte: _BASE + byte for byte in range(0x80, 0x100)} | {
    char: "".join(chr(_BASE + byte) for byte in chr(char).encode()) for char in _RANGE
}
_UNESCAPE = {_BASE + byte: 0xDC00 + byte for byte in range(0x80, 0x100)}
_LOWEST = chr(_RANGE[0])


def to_text(data: bytes) -> str:
    """The string that represents ``data``. Different bytes have different strings."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return data.decode(errors="surrogateescape").translate(_ESCAPE)
    return text.translate(_ESCAPE) if any(mark in data for mark in _MARKS) else text


def to_bytes(text: str) -> bytes:
    """The bytes that ``text`` represents."""
    if text and max(text) >= _LOWEST:
        return text.translate(_UNESCAPE).encode(errors="surrogateescape")
    return text.encode()
