"""Readiness, metadata, configuration and statistics, asked over the wire."""

from __future__ import annotations

import time

import grpc
import pytest

from normfold.protos import grpc_service as pb
from normfold.protos import model_config as mc

S = grpc.StatusCode


def test_live_and_ready(server):
    assert server.call("ServerLive", pb.ServerLiveRequest()).live
    assert server.call("ServerReady", pb.ServerReadyRequest()).ready


def test_one_failed_model_makes_a_strict_server_not_ready(serve, repository):
    with serve(repository) as strict:
        assert not strict.call("ServerReady", pb.ServerReadyRequest()).ready
        assert strict.call("ServerLive", pb.ServerLiveRequest()).live


def test_a_server_that_shuts_down_is_unavailable_to_readiness(serve, repository):
    with serve(repository, strict_readiness=False) as one:
        one.loop.call_soon_threadsafe(one.server.catalog.leave)
        with pytest.raises(grpc.RpcError) as caught:
            one.call("ServerReady", pb.ServerReadyRequest())
    assert (caught.value.code(), caught.value.details()) == (S.UNAVAILABLE, "Server exiting")


@pytest.mark.parametrize(
    ("name", "version", "ready"),
    [
        ("m", "", True),
        ("m", "2", True),
        ("m", "3", False),
        ("bad", "", False),
        ("bad", "1", False),
        ("nope", "", False),
    ],
)
def test_model_ready_is_an_answer_also_for_unknown_models(server, name, version, ready):
    assert server.call("ModelReady", pb.ModelReadyRequest(name=name, version=version)).ready is ready


def test_model_ready_for_a_version_that_is_no_number_is_an_error(server):
    with pytest.raises(grpc.RpcError) as caught:
        server.call("ModelReady", pb.ModelReadyRequest(name="m", version="x"))
    assert caught.value.code() is S.INVALID_ARGUMENT


def test_server_metadata_tells_only_what_is_there(server, serve, repository):
    metadata = server.call("ServerMetadata", pb.ServerMetadataRequest())
    assert metadata.name == "normfold"
    assert metadata.version
    assert list(metadata.extensions) == [
        "classification",
        "model_repository",
        "model_repository(unload_dependents)",
        "schedule_policy",
        "model_configuration",
        "system_shared_memory",
        "binary_tensor_data",
        "parameters",
        "statistics",
        "trace",
        "logging",
    ]
    options = {"model_control": "none", "shared_memory": False, "server_name": "triton", "strict_readiness": False}
    with serve(repository, **options) as bare:
        metadata = bare.call("ServerMetadata", pb.ServerMetadataRequest())
    assert metadata.name == "triton"
    assert not {"model_repository", "system_shared_memory"} & set(metadata.extensions)


def test_model_metadata_has_the_batch_dimension_where_the_model_batches(server):
    metadata = server.call("ModelMetadata", pb.ModelMetadataRequest(name="m"))
    assert (metadata.name, list(metadata.versions), metadata.platform) == ("m", ["1", "2"], "onnxruntime_onnx")
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [("x", "FP32", [-1, 4])]
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.outputs] == [
        ("y", "FP32", [-1, 4]),
        ("z", "FP32", [-1, 4]),
    ]
    assert list(server.call("ModelMetadata", pb.ModelMetadataRequest(name="m", version="1")).versions) == ["1"]
    text = server.call("ModelMetadata", pb.ModelMetadataRequest(name="text"))
    assert [(t.name, t.datatype, list(t.shape)) for t in text.inputs] == [("x", "BYTES", [-1, 2])]


@pytest.mark.parametrize("method", ["ModelMetadata", "ModelConfig"])
def test_metadata_and_config_of_an_unknown_model_are_not_found(server, method):
    with pytest.raises(grpc.RpcError) as caught:
        server.call(method, getattr(pb, f"{method}Request")(name="nope"))
    assert caught.value.code() is S.NOT_FOUND
    assert "Request for unknown model: 'nope' is not found" in caught.value.details()


def test_model_config_is_the_one_in_force(server):
    config = server.call("ModelConfig", pb.ModelConfigRequest(name="m")).config
    assert (config.name, config.platform, config.backend) == ("m", "onnxruntime_onnx", "onnxruntime")
    assert (config.max_batch_size, config.default_model_filename) == (8, "model.onnx")
    assert config.version_policy.HasField("all")
    assert list(config.dynamic_batching.preferred_batch_size) == [8]
    assert [(g.name, g.kind) for g in config.instance_group] == [("m_0", mc.ModelInstanceGroup.KIND_CPU)]
    assert config.instance_group[0].count >= 1
    derived = server.call("ModelConfig", pb.ModelConfigRequest(name="text")).config
    assert [(i.name, i.data_type, list(i.dims)) for i in derived.input] == [("x", mc.TYPE_STRING, [-1, 2])]


def _statistics(server, name, version="") -> pb.ModelStatistics:
    answer = server.call("ModelStatistics", pb.ModelStatisticsRequest(name=name, version=version))
    assert len(answer.model_stats) == 1
    return answer.model_stats[0]


def test_statistics_count_requests_rows_runs_and_failures(server, ask):
    before, then_ms = _statistics(server, "two"), time.time() * 1000
    for rows in (1, 3):
        server.infer(ask("two", a=[[1, 2, 3, 4]] * rows, b=[[1, 2, 3, 4]] * rows))
    with pytest.raises(grpc.RpcError):
        server.infer(ask("two", a=[[1, 2, 3]], b=[[1, 2, 3]]))
    after = _statistics(server, "two")
    assert (after.name, after.version) == ("two", "1")
    assert after.inference_count - before.inference_count == 4
    assert after.execution_count - before.execution_count == 2
    stats, old = after.inference_stats, before.inference_stats
    assert stats.success.count - old.success.count == 2
    assert stats.fail.count - old.fail.count == 1
    for part in ("queue", "compute_input", "compute_infer", "compute_output"):
        assert getattr(stats, part).count - getattr(old, part).count == 2
    parts = sum(getattr(stats, p).ns for p in ("queue", "compute_input", "compute_infer", "compute_output"))
    assert 0 < parts <= stats.success.ns
    assert {b.batch_size for b in after.batch_stats} >= {1, 3}
    assert after.last_inference >= int(then_ms)


def test_statistics_of_all_models_and_of_one_version(server):
    every = server.call("ModelStatistics", pb.ModelStatisticsRequest()).model_stats
    assert {("m", "1"), ("m", "2"), ("nb", "1")} <= {(s.name, s.version) for s in every}
    assert _statistics(server, "m", "1").version == "1"


@pytest.mark.parametrize(
    ("name", "version", "words"),
    [
        ("nope", "", "requested model 'nope' is not available"),
        ("m", "7", "requested model version is not available for model 'm'"),
    ],
)
def test_statistics_of_what_is_not_there_are_an_invalid_argument(server, name, version, words):
    with pytest.raises(grpc.RpcError) as caught:
        server.call("ModelStatistics", pb.ModelStatisticsRequest(name=name, version=version))
    assert (caught.value.code(), words in caught.value.details()) == (S.INVALID_ARGUMENT, True)


def test_the_response_cache_answers_equal_requests_without_a_run(server, ask):
    for _ in range(3):
        assert list(server.infer(ask("cached", x=[[7, 7, 7, 7]])).outputs[0].shape) == [1, 4]
    stats = _statistics(server, "cached")
    assert (stats.execution_count, stats.inference_count) == (1, 3)
    assert (stats.inference_stats.cache_hit.count, stats.inference_stats.cache_miss.count) == (2, 1)
    assert stats.inference_stats.success.count == 3


def test_a_stream_answers_in_order_and_survives_errors(server, ask):
    good, wrong = ask("m"), ask("m", x=[[1, 2, 3]])
    good.id, wrong.id = "good", "wrong"
    call = server.channel.stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=pb.ModelStreamInferResponse.FromString,
    )
    answers = list(call(iter([good, wrong, ask("nope"), good] * 100), timeout=60))
    assert len(answers) == 400
    for first, second, third, fourth in zip(*[iter(answers)] * 4, strict=True):
        assert first.infer_response.id == fourth.infer_response.id == "good"
        assert first.infer_response.parameters["triton_final_response"].bool_param
        assert first.error_message == fourth.error_message == ""
        assert "unexpected shape for input 'x'" in second.error_message
        assert second.infer_response.id == "wrong"
        assert "Request for unknown model: 'nope' is not found" in third.error_message
