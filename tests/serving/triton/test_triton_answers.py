"""Every answer of a real Triton 2.51.0, recorded, against this server's answer to the same request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.serving.triton.cases import cases
from tests.serving.triton.record import ask, recorded
from tests.serving.triton.repository import build

RECORDING = Path(__file__).with_name("answers.jsonl")

#: Where this server says something else on purpose: the status it gives, and why.
OTHERWISE = (
    {
        "extra raw": ("INVALID_ARGUMENT", "contents that no input takes are a client's mistake; Triton drops them"),
        f"shape [{2**62}, 4]": ("INVALID_ARGUMENT", "Triton's byte count overflows, and the model gets 4 elements"),
        "batch 0": ("OK", "an empty batch has an answer: an empty one"),
        "INT8 300": ("INVALID_ARGUMENT", "Triton wraps it to 44"),
        "BOOL 2": ("INVALID_ARGUMENT", "neither true nor false"),
        "classes of id_fp16": ("OK", "FP16 scores can be ordered, too"),
        "classes of id_bool": ("OK", "BOOL scores can be ordered, too"),
    }
    | {
        f"parameter {parameter} of {model}": ("INVALID_ARGUMENT", why)
        for model in "mq"
        for parameter, why in (
            ("timeout {'int64_param': -1}", "Triton takes a negative time for a very long one"),
            ("binary_data_output {'int64_param': 1}", "a key that means something here has one kind"),
        )
    }
    | {
        "output parameters {'binary_data': {'int64_param': 1}}": ("INVALID_ARGUMENT", "the same"),
    }
)

#: Cases whose words are others, not only more, and what to look for in them.
REWORDED = {
    "trace 1: 'nope'  ()": "Request for unknown model : 'nope'",
    "trace 2: '' trace_rate ('abc',)": "trace_rate must be one number from -1 to 4294967295, got 'abc'",
    "register cuda": "GPUs not supported",
    "log log_verbose_level {'string_param': '1'}": "'log_verbose_level' must be given as uint32_param",
    "shape [-1, 4]": "All input dimensions should be specified for input 'x' for model 'm', got [-1,4]",
    "shape [1, -4]": "All input dimensions should be specified for input 'x' for model 'm', got [1,-4]",
    "two batches": "batch size does not match other inputs for 'two'",
    "two for one": "expected 1 inputs but got 2 inputs for model 'm'. Got input(s) ['x','b']",
    "strings, cut": "expecting string of length 5 but only 2 bytes available",
    "strings, huge": "expecting string of length 4294967295 but only 2 bytes available",
    "datatype 'fp32'": "data-type is 'fp32', which the protocol does not have: names are in capitals, but model 'm'",
    "datatype ''": "data-type is '', which the protocol does not have, but model 'm' expects 'FP32'",
    "datatype 'FLOAT'": "data-type is 'FLOAT', which the protocol does not have, but model 'm' expects 'FP32'",
    "load, broken": "load failed for model 'bad': version 1 is at UNAVAILABLE state: ",
}

#: What Triton's Python backend answers otherwise than a backend for ONNX, or what only a GPU build fills in.
OF_THE_BACKEND = {"backend", "platform", "defaultModelFilename", "optimization", "reason"}


@pytest.fixture(scope="module")
def answers(tmp_path_factory, serve):
    """This server's answers by case, asked in the order of the recording."""
    with serve(build(tmp_path_factory.mktemp("triton"))) as running:
        yield {name: ask(running.channel, rpc, request) for name, rpc, request in cases()}


@pytest.mark.parametrize("triton", list(recorded(RECORDING)), ids=lambda line: line["case"])
def test_the_answer_is_tritons(triton: dict[str, Any], answers: dict[str, dict[str, Any]]):
    case, ours = triton["case"], answers[triton["case"]]
    if case in OTHERWISE:
        assert ours["status"] == OTHERWISE[case][0]
        return
    assert ours["status"] == triton["status"], ours
    if "details" in triton:
        assert REWORDED.get(case, begun(triton["details"])) in ours["details"]
    else:
        assert comparable(triton["answer"], ours["answer"])


def begun(words: str) -> str:
    """Triton's words up to where it goes on to advise; this server may go on otherwise."""
    return words.split(" NOTE: ")[0].rstrip(". ")


def comparable(triton: Any, ours: Any) -> bool:
    """Whether two answers say the same, words by their beginning, without what is of the backend."""
    if isinstance(triton, dict):
        keys = set(triton) | set(ours)
        return all(k in triton and k in ours and comparable(triton[k], ours[k]) for k in keys - OF_THE_BACKEND)
    if isinstance(triton, list):
        return len(triton) == len(ours) and all(map(comparable, triton, ours))
    return str(ours).startswith(begun(triton)) if isinstance(triton, str) else bool(triton == ours)


def test_every_deviation_is_one(answers):
    triton = {line["case"]: line for line in recorded(RECORDING)}
    overflows = f"shape [{2**62}, 4]"  # the element count wraps there, and the model fails
    assert all(OTHERWISE[case][0] != triton[case]["status"] for case in OTHERWISE.keys() - {overflows})
    assert all(begun(triton[case]["details"]) not in answers[case]["details"] for case in REWORDED)


def test_nothing_is_recorded_that_is_not_asked():
    assert [line["case"] for line in recorded(RECORDING)] == [name for name, _, _ in cases()]
