"""config.pbtxt with mistakes: where they are, and what was probably meant."""

from __future__ import annotations

import pytest
from google.protobuf import text_format

from normfold.protos import model_config as mc
from normfold.protos.config_text import parse_config


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("max_batchsize: 4", 'has no field named "max_batchsize". Did you mean max_batch_size?'),
        ("input { datatype: TYPE_FP32 }", 'has no field named "datatype". Did you mean data_type?'),
        ("input { data_type: FP32 }", "has no value named FP32. Did you mean TYPE_FP32?"),
        ("input { data_type: float16 }", "has no value named float16. Did you mean TYPE_FP16?"),
        ("input { data_type: TYPE_FLOAT32 }", "has no value named TYPE_FLOAT32. Did you mean TYPE_FP32?"),
        ("instance_group { kind: GPU }", "has no value named GPU. Did you mean KIND_GPU?"),
        ("input { data_type: TYPE_BFLOAT16 }", "has no value named TYPE_BFLOAT16. Did you mean TYPE_BF16?"),
        ("input { data_type: TYPE_DOUBLE }", "Expected one of TYPE_INVALID, " + ", ".join(mc.DataType.keys()[1:])),
        ("instance_group { kind: KIND_CUDA }", "Expected one of KIND_AUTO, KIND_GPU, KIND_CPU, KIND_MODEL"),
        ("instance_group { kind: x }", "Expected one of KIND_AUTO, KIND_GPU, KIND_CPU, KIND_MODEL"),
        ('input [{ name: "x" }', "Expected \",\". The file has 1 '[' and 0 ']'"),
        ('input { name: "x"', "Expected \"}\". The file has 1 '{' and 0 '}'"),
        ("inputs {}", 'has no field named "inputs". Did you mean input?'),
        ("max_queue_size: 1", 'has no field named "max_queue_size".'),
        ("input { shape: 1 }", 'has no field named "shape".'),
        ("qqqq: 1", 'has no field named "qqqq".'),
        ("max_batch_size = 4", 'Expected ":".'),
        ("max_batch_size = 4 # {", 'Expected ":".'),
        ("name: \"{\" default_model_filename: '[' max_batch_size = 4", 'Expected ":".'),
    ],
)
def test_a_mistake_is_named_with_what_was_probably_meant(text: str, end: str) -> None:
    with pytest.raises(text_format.ParseError) as error:
        parse_config(f"# a comment\n{text}")
    assert str(error.value).startswith("2:")
    assert str(error.value).endswith(end)
    assert error.value.GetLine() == 2
