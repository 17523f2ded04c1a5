"""The harness itself: its table, its page, and that it notices a wrong answer."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from tests.reliability import load, outcomes, page
from tests.reliability.load import wrong

from normfold.protos import grpc_service as pb


@pytest.mark.parametrize("module", [load, outcomes, page], ids=lambda module: module.__name__)
def test_the_examples_run(module):
    found = doctest.testmod(module)
    assert found.attempted
    assert found.failed == 0


def test_a_section_is_written_again_and_the_others_stay(tmp_path):
    file = tmp_path / "reliability.md"
    page.write_section("Chaos", "one", file)
    page.write_section("Overload", "other", file)
    page.write_section("Chaos", "two", file)
    assert file.read_text() == f"{page.TOP}\n## Chaos\n\ntwo\n\n## Overload\n\nother\n"


def answer(version: int, **outputs: np.ndarray) -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(model_name="good", model_version=str(version))
    for name, array in outputs.items():
        response.outputs.add(name=name, datatype="FP32", shape=array.shape)
        response.raw_output_contents.append(array.tobytes())
    return response


def test_a_wrong_answer_is_noticed():
    x = np.array([[1, 2, 3, 4]], np.float32)
    assert wrong(answer(1, y=2 * x, z=-x), x) == ""
    assert wrong(answer(2, y=2 * x, z=-x), x) == "y of version 2 has wrong numbers or a wrong shape"
    assert wrong(answer(1, y=2 * x), x) == "the outputs are ['y']"
    assert "z of version 1" in wrong(answer(1, y=2 * x, z=-x.reshape(2, 2)), x)
