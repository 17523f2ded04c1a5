"""onnxruntime's errors as sentences: without their numbers, and without the names of its C++ files and functions."""

from __future__ import annotations

import re

from normfold.serving.errors import Hindered, LoadError

#: The beginning of an error, which onnxruntime repeats where one error has another as its cause.
_NUMBER = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")
#: Which node failed; the sentence behind it says why, if there is one.
_NODE = re.compile(r"Non-zero status code returned while running (?P<operator>\S*).*?Status Message: ", re.DOTALL)
_NO_REASON = r"its \g<operator> node fails, and onnxruntime gives no reason"
#: A place in a source file, with the space behind it.
_PLACE = re.compile(r"(?P<folder>\S*/)?\w[\w.-]*\.(?:cc|cpp|cu|cuh|h|hpp):\d+ ")
#: The rest of a signature behind its closing bracket.
_TAIL = re.compile(r"(?: const)?(?: \[with [^\]]*\])? ?")
_WORD = re.compile(r"\w+ ")
#: A condition in C++ that did not hold; the sentence behind it says why.
_CONDITION = re.compile(r"^\S.*? was false\. (?=\S)")

#: The words of our own messages for too little memory.
TOO_LITTLE = "needs more memory than there is"

#: The words of onnxruntime, the C++ library and CUDA for too little memory.
_NO_MEMORY = re.compile(
    r"Failed to allocate memory|bad_alloc|bad allocation|out of memory|memory of \d+ is smaller than requested",
    re.IGNORECASE,
)


def reason(error: Exception) -> str:
    """The sentence in ``error``, on one line.

    >>> reason(Exception("[ONNXRuntimeError] : 1 : FAIL : /x/core/y.cc:9 void ort::A<B>::f(int, g(h)) const no x\\n"))
    'no x'
    >>> reason(Exception("size != 0 && (a % size) == 0 was false. It cannot be reshaped."))
    'It cannot be reshaped.'
    >>> reason(Exception("Non-zero status code returned while running ArgMax node. Name:'' Status Message: "))
    'its ArgMax node fails, and onnxruntime gives no reason'
    """
    whole = _NUMBER.sub("", str(error))
    text = _NODE.sub("", whole) or _NODE.sub(_NO_REASON, whole)
    while place := _PLACE.search(text):
        text = text[: place.start()] + text[_function_end(text, place) :]
    return _CONDITION.sub("", " ".join(text.split()))


def lacks_memory(error: Exception) -> bool:
    """Whether ``error`` says that there is not enough memory."""
    return isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)) is not None


def load_error(error: Exception) -> LoadError:
    """The error of a model that onnxruntime cannot load because of ``error``."""
    if lacks_memory(error):
        return Hindered(f"onnxruntime cannot load the model: it {TOO_LITTLE}")
    return LoadError(f"onnxruntime cannot load the model: {reason(error)}")


def _function_end(text: str, place: re.Match[str]) -> int:
    """The end of the function's name behind ``place``: a whole signature behind a path, one word behind a file."""
    start = place.end()
    if place["folder"] is None:
        word = _WORD.match(text, start)
        return word.end() if word else start
    depth = 0
    for at in range(start, len(text)):
        if text[at] == "(":
            depth += 1
        elif text[at] == ")" and depth:
            depth -= 1
            if not depth:
                tail = _TAIL.match(text, at + 1)
                return tail.end() if tail else at + 1
    return start
