"""A server refuses sizes that a model's export did not prove, on every path, and says which it takes."""

from __future__ import annotations

import json
import re

import grpc
import numpy as np
import pytest
from click.testing import CliRunner
from onnx import parser

from normfold.cli.infer import infer
from normfold.protos import grpc_service as pb
from normfold.serving.wire.proved_sizes import ALLOWED, PROVED

S = grpc.StatusCode

#: y = a + b, for any rows and lengths.
SUM = '<ir_version: 9, opset_import: ["": 18]> g (float[N,L] a, float[N,M] b) => (float[N,L] y) { y = Add (a, b) }'
ROWS = {"low": 1, "high": 6, "step": 1, "tried": [1, 2, 5]}
LENGTHS = {"low": 8, "high": 64, "step": 4, "tried": [8, 32]}
SIZES = {"schema": 1, "dimensions": {"N": ROWS, "L": LENGTHS}, "inputs": {"a": ["N", "L"], "b": ["N", "L"]}}
TAKES = "this model takes L from 8 to 64, in steps of 4; it was proved for 8 to 32"


def proved(text):
    """The model with ``text`` in its metadata."""
    model = parser.parse_model(SUM)
    model.metadata_props.add(key=PROVED, value=text)
    return model.SerializeToString()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, models):
    root = tmp_path_factory.mktemp("proved")
    models.write(root / "sum", proved(json.dumps(SIZES)), config="max_batch_size: 8 dynamic_batching {}")
    models.write(root / "cached", proved(json.dumps(SIZES)), config="max_batch_size: 8 response_cache { enable: true }")
    models.write(root / "foreign", SUM, config="max_batch_size: 8")
    return root


@pytest.fixture(scope="module", params=["grpcio", "http2"])
def one(request, serve, folder):
    with serve(folder, frontend=request.param) as server:
        yield server


def ones(ask, rows, length, other=None, model="sum"):
    """A request with two arrays of ones; ``other`` is the length of the second."""
    return ask(model, a=np.ones((rows, length)), b=np.ones((rows, other or length)))


def refusal(server, request):
    with pytest.raises(grpc.RpcError) as caught:
        server.infer(request)
    assert caught.value.code() is S.INVALID_ARGUMENT
    return re.sub(r"^\[request id: .*?\] ", "", caught.value.details())


@pytest.mark.parametrize("model", ["sum", "cached"])
@pytest.mark.parametrize("length", [4, 10, 68])
def test_a_length_that_was_not_proved_is_refused(one, ask, model, length):
    assert refusal(one, ones(ask, 1, length, model=model)) == f"input 'a': L is {length}; {TAKES}"
    assert one.infer(ones(ask, 1, 64, model=model)).outputs[0].shape == [1, 64]


def test_inputs_that_share_a_length_must_agree(one, ask):
    words = "input 'b': L is 12, but 8 in input 'a'; both must be equal"
    assert refusal(one, ones(ask, 1, 8, 12)) == words


def test_a_plan_answers_no_other_length_than_its_own(one, ask):
    for _ in range(3):
        assert one.infer(ones(ask, 2, 8)).outputs[0].shape == [2, 8]
        assert refusal(one, ones(ask, 2, 4)) == f"input 'a': L is 4; {TAKES}"


def test_a_stream_refuses_one_request_and_answers_the_others(one, ask):
    call = one.channel.stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=pb.ModelStreamInferResponse.FromString,
    )
    answers = list(call(iter([ones(ask, 1, length) for length in (8, 4, 8)]), timeout=30))
    assert [TAKES in answer.error_message for answer in answers] == [False, True, False]


def test_a_request_of_a_sequence_is_refused_too(one, ask):
    request = ones(ask, 1, 4)
    request.parameters["sequence_id"].int64_param = 7
    request.parameters["sequence_start"].bool_param = True
    assert refusal(one, request) == f"input 'a': L is 4; {TAKES}"


def test_the_batch_does_not_exceed_what_was_proved(one, ask):
    config = one.call("ModelConfig", pb.ModelConfigRequest(name="sum")).config
    assert (config.max_batch_size, list(config.dynamic_batching.preferred_batch_size)) == (6, [6])
    assert "batch-size must be <= 6" in refusal(one, ones(ask, 7, 8))
    assert one.infer(ones(ask, 0, 8)).outputs[0].shape == [0, 8]


def test_a_foreign_file_behaves_as_before(one, ask):
    assert one.infer(ones(ask, 8, 4, model="foreign")).outputs[0].shape == [8, 4]
    assert "cannot take" in refusal(one, ones(ask, 1, 4, 7, model="foreign"))
    assert PROVED not in one.call("ModelConfig", pb.ModelConfigRequest(name="foreign")).config.parameters
    assert not one.call("ModelMetadata", pb.ModelMetadataRequest(name="foreign")).properties


def test_config_and_metadata_show_what_was_proved(one):
    config = one.call("ModelConfig", pb.ModelConfigRequest(name="sum")).config
    metadata = one.call("ModelMetadata", pb.ModelMetadataRequest(name="sum"))
    assert json.loads(config.parameters[PROVED].string_value) == json.loads(metadata.properties[PROVED]) == SIZES
    assert ALLOWED not in config.parameters
    assert ALLOWED not in metadata.properties


def test_a_server_may_answer_all_sizes(serve, folder, ask):
    with serve(folder, allow_unproved_sizes=True) as server:
        assert server.infer(ones(ask, 8, 4)).outputs[0].shape == [8, 4]
        config = server.call("ModelConfig", pb.ModelConfigRequest(name="sum")).config
        assert (config.max_batch_size, config.parameters[ALLOWED].string_value) == (8, "1")
        assert server.call("ModelMetadata", pb.ModelMetadataRequest(name="sum")).properties[ALLOWED] == "1"
        done = _infer(server, 1, 4)
        assert done.exit_code == 0, done.output
        assert f"note: input 'a': L is 4; {TAKES}" in done.stderr


def _infer(server, rows, length):
    text = json.dumps(np.ones((rows, length)).tolist())
    return CliRunner().invoke(infer, ["sum", "-i", f"a={text}", "-i", f"b={text}", "-a", server.server.address])


def test_infer_says_so_before_it_sends(one):
    statistics = pb.ModelStatisticsRequest(name="sum")
    before = one.call("ModelStatistics", statistics).model_stats[0].inference_stats.fail.count
    done = _infer(one, 1, 4)
    assert (done.exit_code, done.output) == (1, f"Error: input 'a': L is 4; {TAKES}\n")
    assert one.call("ModelStatistics", statistics).model_stats[0].inference_stats.fail.count == before
    done = _infer(one, 1, 64)
    assert done.exit_code == 0, done.output
    answered = "answered by sum version 1\n"
    assert done.stderr == f"note: input 'a': L is 64; it was proved for 8 to 32\n{answered}"
    assert _infer(one, 1, 32).stderr == answered


def test_a_configuration_that_comes_back_from_a_client_changes_nothing(serve, folder, ask):
    from google.protobuf import json_format

    with serve(folder, model_control="explicit") as server:
        config = server.call("ModelConfig", pb.ModelConfigRequest(name="sum")).config
        config.parameters[ALLOWED].string_value = "1"
        config.parameters[PROVED].string_value = "{}"
        load = pb.RepositoryModelLoadRequest(model_name="sum")
        load.parameters["config"].string_param = json_format.MessageToJson(config)
        server.call("RepositoryModelLoad", load)
        parameters = server.call("ModelConfig", pb.ModelConfigRequest(name="sum")).config.parameters
        assert json.loads(parameters[PROVED].string_value) == SIZES
        assert ALLOWED not in parameters
        assert refusal(server, ones(ask, 1, 4)) == f"input 'a': L is 4; {TAKES}"
