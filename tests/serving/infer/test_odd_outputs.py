"""Outputs of other shapes than the model's file and config.pbtxt say: onnxruntime passes them on, and so may we."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest

from normfold.protos import grpc_service as pb
from normfold.protos.datatypes import by_name
from normfold.serving.catalog.contract import TensorSpec
from normfold.serving.errors import InvalidRequest
from normfold.serving.infer.outputs import Wanted
from normfold.serving.infer.parameters import RequestParameters
from normfold.serving.infer.plans import RequestPlan
from normfold.serving.scheduling.inline import RunTimes

#: y = x, as the file says; but twice as wide, or without any dimension, where the first number is above 0 or 9.
ODD = """<ir_version: 9, opset_import: ["": 18]> odd (float[N,3] x) => (float[N,3] y)
    <float nought = {0}, float nine = {9}> {
    highest = ReduceMax <keepdims = 0> (x)
    wide = Greater (highest, nought)
    none = Greater (highest, nine)
    y = If (none) <
        then_branch = t () => (float y0) { y0 = ReduceMax <keepdims = 0> (x) },
        else_branch = e () => (float[N, M] y1) {
            y1 = If (wide) <
                then_branch = tt () => (float[N, M] y2) { y2 = Concat <axis = 1> (x, x) },
                else_branch = ee () => (float[N, M] y3) { y3 = Identity (x) }
            >
        }
    >
}"""
RESHAPED = 'max_batch_size: 8 output { name: "y" data_type: TYPE_FP32 dims: [3, 1] reshape { shape: [3] } }'


@pytest.fixture(scope="module")
def odd(tmp_path_factory, models, serve):
    root = tmp_path_factory.mktemp("odd")
    queued = RESHAPED + " dynamic_batching { max_queue_delay_microseconds: 1 }"
    for name, config in (("plain", "max_batch_size: 8"), ("reshaped", RESHAPED), ("queued", queued)):
        models.write(root / name, ODD, config=config)
    with serve(root) as one:
        yield one


@pytest.mark.parametrize("model", ["reshaped", "queued"])
def test_an_output_that_cannot_be_reshaped_is_refused_also_where_the_request_has_a_plan(odd, ask, model):
    for _ in range(3):  # the second and third are answered by the plan of the first
        assert list(odd.infer(ask(model, x=[[-1, -2, -3]])).outputs[0].shape) == [1, 3, 1]
    failed = _failures(odd, model)
    for x, shape in (([[1, 2, 3]], r"[1,6]"), ([[10, 2, 3]], r"[]")):
        with pytest.raises(grpc.RpcError) as caught:
            odd.infer(ask(model, x=x))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert f"output 'y' has the shape {shape} for this input" in caught.value.details()
    assert _failures(odd, model) == failed + 2


def test_a_plan_keeps_no_place_for_an_output_that_cannot_be_reshaped():
    wide = np.ones((1, 6), np.float32)
    bound = SimpleNamespace(views=[], outputs=[wide], run=lambda: None)
    session = SimpleNamespace(bind=lambda feeds, answers: bound)
    scheduler = SimpleNamespace(run_alone=lambda: None)
    model: Any = SimpleNamespace(
        name="m", version=1, session=session, scheduler=scheduler, run=lambda feeds, outputs: [wide]
    )
    wanted = [Wanted(TensorSpec("y", by_name("FP32"), (-1, 3, 1), reshape=(-1, 3)))]
    plan = RequestPlan(model, 0, [], [], 1, wanted, RequestParameters(), RunTimes().of({}))
    for _ in range(2):
        with pytest.raises(InvalidRequest, match=r"has the shape \[1,6\]"):
            plan.run(b"", b"")


def test_an_output_without_rows_is_not_classified(odd, ask):
    request = ask("plain", x=[[10, 2, 3]])
    assert list(odd.infer(request).outputs[0].shape) == []
    request.outputs.add(name="y").parameters["classification"].int64_param = 1
    with pytest.raises(grpc.RpcError) as caught:
        odd.infer(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "output 'y' has no rows for this input and cannot be classified"


def _failures(server, model: str) -> int:
    found = server.call("ModelStatistics", pb.ModelStatisticsRequest(name=model)).model_stats[0]
    return found.inference_stats.fail.count
