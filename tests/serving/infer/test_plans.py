"""Requests like an earlier one are answered without a message; the answers must be those that the message gets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normfold.protos import grpc_service as pb
from normfold.protos.datatypes import by_name
from normfold.serving.catalog.catalog import Catalog
from normfold.serving.catalog.contract import TensorSpec
from normfold.serving.catalog.load import LoadOptions
from normfold.serving.catalog.repository import Repository
from normfold.serving.errors import Overloaded, ServingError
from normfold.serving.infer.inference import Inference
from normfold.serving.infer.parameters import RequestParameters
from normfold.serving.infer.plans import HEADS, Plans
from normfold.serving.infer.shared_memory import SharedMemory
from normfold.serving.infer.tracing import TraceSettings
from normfold.serving.rpc.caller import CALLER
from normfold.serving.rpc.pieces import Pieces
from normfold.serving.runtime.devices import Device
from normfold.serving.scheduling.inline import TRIED_RUNS, RunTimes
from normfold.serving.wire.outer_fields import text_field
from normfold.serving.wire.request_bytes import id_text, parts

S = grpc.StatusCode


def _y(answer: pb.ModelInferResponse) -> list[float]:
    return np.frombuffer(answer.raw_output_contents[0], np.float32).tolist()


def test_a_request_seen_before_gets_the_answer_of_its_own_numbers(server, ask):
    for factor in (1, 2, -3):
        answer = server.infer(ask(x=[[factor, 2, 3, 4]]))
        assert _y(answer) == [3 * factor, 6, 9, 12]
        assert (answer.model_name, answer.model_version, answer.id) == ("m", "2", "")
        assert [(o.name, o.datatype, list(o.shape)) for o in answer.outputs] == [
            ("y", "FP32", [1, 4]),
            ("z", "FP32", [1, 4]),
        ]


@pytest.mark.parametrize("identifier", ["", "a", "b" * 200, "ä"])
def test_every_request_gets_its_own_id_back(server, ask, identifier):
    request = ask()
    request.id = identifier
    for _ in range(2):
        answer = server.infer(request)
        assert answer.id == identifier
        assert _y(answer) == [3, 6, 9, 12]


def test_heads_of_every_length_give_the_same_numbers(server, ask):
    # The raw contents begin at every alignment, and each request is asked twice: by message, then by plan.
    for length in range(9):
        request = ask()
        request.parameters["p" * (length + 1)].bool_param = True
        assert _y(server.infer(request)) == _y(server.infer(request)) == [3, 6, 9, 12]


def test_wrong_sizes_are_refused_after_a_right_request_too(server, ask):
    server.infer(ask())
    for change, said in ((lambda r: r.raw_input_contents.append(b""), "entries"), (_shorten, "byte size mismatch")):
        request = ask()
        change(request)
        with pytest.raises(grpc.RpcError) as caught:
            server.infer(request)
        assert caught.value.code() is S.INVALID_ARGUMENT
        assert said in caught.value.details()


def test_outputs_whose_shapes_depend_on_the_numbers_are_answered_rightly(serve, models, ask, tmp_path):
    models.write(
        tmp_path / "m", '<ir_version: 9, opset_import: ["": 18]> g (float[N,4] x) => (int64[2,M] y) { y = NonZero (x) }'
    )
    with serve(tmp_path) as one:
        for x in [[[1, 0, 1, 0]]] * 6 + [[[1, 1, 1, 0]], [[0, 0, 0, 0]], [[1, 0, 1, 0]]] * 2:
            answer = one.infer(ask(x=x))
            y = np.frombuffer(answer.raw_output_contents[0], np.int64).reshape(answer.outputs[0].shape)
            np.testing.assert_array_equal(y, np.nonzero(np.array(x)))


def test_rows_that_depend_on_the_numbers_end_batches_on_each_path(serve, models, ask, tmp_path, caplog):
    graph = "g (float[N,L] x) => (int64[M,2] y) { z = NonZero (x) y = Transpose (z) }"
    config = "max_batch_size: 8 dynamic_batching {}"
    models.write(tmp_path / "m", f'<ir_version: 9, opset_import: ["": 18]> {graph}', config=config)
    x = np.zeros((1, 9000), np.float32)
    with serve(tmp_path) as one:
        for nonzero in [1] * 5 + [2]:
            assert "run alone" not in caplog.text
            x[0, :nonzero] = 1
            assert list(one.infer(ask(x=x)).outputs[0].shape) == [nonzero, 2]
    assert "requests for 'y' run alone" in caplog.text


def _shorten(request: pb.ModelInferRequest) -> None:
    request.raw_input_contents[0] = request.raw_input_contents[0][:-1]


def test_a_new_version_answers_requests_seen_before(serve, models, ask, tmp_path):
    models.write(tmp_path / "m", models.scale(2.0))
    with serve(tmp_path) as one:
        assert _y(one.infer(ask())) == _y(one.infer(ask())) == [2, 4, 6, 8]
        models.write(tmp_path / "m", models.scale(5.0), 2)
        one.call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="m"))
        assert _y(one.infer(ask())) == _y(one.infer(ask())) == [5, 10, 15, 20]
        one.call("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="m"))
        with pytest.raises(grpc.RpcError) as caught:
            one.infer(ask())
        assert caught.value.code() is S.NOT_FOUND


def test_requests_with_and_without_a_plan_are_counted_alike(serve, models, ask, tmp_path):
    models.write(tmp_path / "m", models.scale(2.0))
    with serve(tmp_path) as one:
        for _ in range(3):
            one.infer(ask(x=[[1, 2, 3, 4], [1, 2, 3, 4]]))
        (stats,) = one.call("ModelStatistics", pb.ModelStatisticsRequest(name="m")).model_stats
    counted = stats.inference_stats
    assert stats.execution_count == 3
    assert counted.success.count == counted.queue.count == counted.compute_input.count == 3
    assert counted.compute_infer.count == counted.compute_output.count == 3
    assert 0 < counted.compute_infer.ns < counted.success.ns


def _keep(data: bytes, plans: Plans | None = None) -> Plans:
    """``plans`` (None: new ones) with one for ``data``, of a model that takes x and y."""
    x = TensorSpec("x", by_name("FP32"), (-1,))
    model = SimpleNamespace(
        contract=SimpleNamespace(inputs={"x": x, "y": x}), scheduler=SimpleNamespace(times=RunTimes())
    )
    request = pb.ModelInferRequest.FromString(data)
    feeds = {t.name: np.zeros(t.shape, np.float32) for t in request.inputs}
    plans = Plans() if plans is None else plans
    plans.keep(data, request, model, feeds, 1, [], RequestParameters())
    return plans


def _request(model: str = "m", identifier: str = "", sizes: tuple[int, ...] = (1, 2), fill: bytes = b"0") -> bytes:
    message = pb.ModelInferRequest(model_name=model, id=identifier)
    for name, size in zip("xy", sizes, strict=False):
        message.inputs.add(name=name, datatype="FP32", shape=[size])
        message.raw_input_contents.append(fill * 4 * size)
    return message.SerializeToString()


def test_a_plan_is_found_for_other_numbers_and_other_ids_and_for_nothing_else():
    plans = _keep(_request(identifier="seven"))
    for like in (_request(identifier=""), _request(identifier="x" * 127, fill=b"9"), _request(identifier="seven")):
        plan, identifier = plans.find(like)
        assert id_text(identifier) == pb.ModelInferRequest.FromString(like).id
        feeds = plan.feeds(like, len(identifier))
        assert {name: array.tobytes() for name, array in feeds.items()} == dict(
            zip("xy", pb.ModelInferRequest.FromString(like).raw_input_contents, strict=True)
        )
    for other in (_request("n"), _request(sizes=(2, 1)), _request(sizes=(3,)), _request(identifier="x" * 128)):
        assert plans.find(other) is None
    assert plans.find(_request(identifier="ä")) is None
    assert plans.find(_request()[:-1]) is None
    plans.forget()
    assert plans.find(_request()) is None


def test_another_split_of_the_same_bytes_between_the_inputs_has_no_plan():
    # The same head and length, but the second raw content begins earlier than the plan's.
    good = _request(sizes=(3, 3))
    plans = _keep(good)
    _, second = parts(good).spans
    bad = bytearray(good)
    bad[second[0] - 1] -= 1
    assert plans.find(bytes(bad)) is None


def test_the_head_of_one_request_with_the_length_of_another_has_no_plan():
    # Both heads have the same length, so each total length leads to it; what is behind the numbers is no request.
    short, long = _request(sizes=(1,)), _request(sizes=(3,))
    plans = _keep(short)
    _keep(long, plans)
    assert plans.find(short) is not None
    assert plans.find(long) is not None
    assert plans.find(short + b"12345678") is None
    assert plans.find(long[:-8]) is None


def test_models_that_were_unloaded_leave_room_for_the_plans_of_others():
    plans = Plans()
    for number in range(HEADS + 2):  # requests of one length, whose heads have different lengths
        data = _request("m" * (4 * number + 1), sizes=(1, 15 - number))
        _keep(data, plans)
        found = plans.find(data)
        assert found is not None, number
        plans.drop(found[0].model)
        assert plans.find(data) is None


@given(st.binary(max_size=80))
def test_no_other_bytes_are_taken_for_a_request_seen_before(data):
    good = _request()
    plans = _keep(good)
    if plans.find(data) is not None:
        other, known = pb.ModelInferRequest.FromString(data), pb.ModelInferRequest.FromString(good)
        assert list(other.inputs) == list(known.inputs)


@pytest.fixture(scope="module", params=[1.0, 1e-9], ids=["on the event loop", "on another thread"])
def both(models, tmp_path_factory, request) -> Iterator[Callable[[bytes], list[Any]]]:
    """Asks the same model twice, with the plans of all requests before and without any; both outcomes."""
    root = tmp_path_factory.mktemp("plans")
    models.write(root / "m", models.scale())
    with ThreadPoolExecutor(1) as executor, asyncio.Runner() as runner:
        options = LoadOptions(Device("cpu"), 1, inline_seconds=request.param)
        planned, plain = (Catalog(Repository(root), options, executor) for _ in range(2))
        ways = [Inference(catalog, SharedMemory(False), TraceSettings()) for catalog in (planned, plain)]
        runner.run(planned.load_all())
        runner.run(plain.load_all())

        def ask(data: bytes) -> list[Any]:
            plain.changed()  # which makes it forget its plans
            return [runner.run(_outcome(way, data)) for way in ways]

        yield ask


def test_what_waited_too_long_on_its_connection_is_refused_where_it_would_run_at_once(models, tmp_path, ask):
    models.write(tmp_path / "m", models.scale())
    data = ask().SerializeToString()
    with ThreadPoolExecutor(1) as executor, asyncio.Runner() as runner:
        catalog = Catalog(Repository(tmp_path), LoadOptions(Device("cpu"), 1, inline_seconds=1.0), executor)
        inference = Inference(catalog, SharedMemory(False), TraceSettings())
        runner.run(catalog.load_all())

        async def asked(seconds: float) -> Any:
            token = CALLER.set(SimpleNamespace(connection=None, left_seconds=lambda: None, waited_seconds=seconds))
            try:
                found = inference.answer(data)
                return found if isinstance(found, bytes) else await found
            finally:
                CALLER.reset(token)

        for _ in range(TRIED_RUNS + 1):
            runner.run(asked(0.0))
        assert isinstance(runner.run(asked(0.1)), bytes)
        with pytest.raises(Overloaded) as caught:
            runner.run(asked(0.3))
        assert data[: caught.value.alike].startswith(b"\n\x01m")
        assert catalog.find("m", "").statistics.message("m", "1").inference_stats.fail.count == 1


def test_a_plan_leaves_the_answers_of_a_response_cache_to_it(models, tmp_path, ask):
    models.write(tmp_path / "m", models.scale(), config="response_cache { enable: true }")
    with ThreadPoolExecutor(1) as executor, asyncio.Runner() as runner:
        catalog = Catalog(Repository(tmp_path), LoadOptions(Device("cpu"), 1, inline_seconds=1.0), executor)
        inference = Inference(catalog, SharedMemory(False), TraceSettings())
        runner.run(catalog.load_all())
        for number in range(TRIED_RUNS + 2):  # from now on such runs are carried out at once
            runner.run(_outcome(inference, ask(x=[[number, 2, 3, 4]]).SerializeToString()))
        runner.run(_outcome(inference, ask(x=[[0, 2, 3, 4]]).SerializeToString()))
        assert catalog.find("m", "").statistics.executions == TRIED_RUNS + 2


def test_a_model_that_is_replaced_during_a_run_leaves_no_plan(models, tmp_path, ask, monkeypatch):
    models.write(tmp_path / "m", models.scale(2.0))
    data = ask().SerializeToString()
    with ThreadPoolExecutor(1) as executor, asyncio.Runner() as runner:
        catalog = Catalog(Repository(tmp_path), LoadOptions(Device("cpu"), 1), executor)
        inference = Inference(catalog, SharedMemory(False), TraceSettings())
        runner.run(catalog.load_all())
        old = catalog.find("m", "")
        run = old.infer

        async def replaced(*args: Any) -> Any:
            answer = await run(*args)
            models.write(tmp_path / "m", models.scale(5.0), 2)
            await catalog.load("m")
            return answer

        monkeypatch.setattr(old, "infer", replaced)
        answers = [runner.run(_outcome(inference, data)) for _ in range(2)]
        assert [_y(answer) for answer in answers] == [[2, 4, 6, 8], [5, 10, 15, 20]]


async def _outcome(inference: Inference, data: bytes) -> Any:
    try:
        return pb.ModelInferResponse.FromString(await _awaited(inference, data))
    except ServingError as error:
        return type(error), str(error)


@st.composite
def changed(draw: Callable[[Any], Any], good: bytes) -> bytes:
    """``good`` with some of its bytes replaced, removed, doubled or put in between."""
    data = good
    for _ in range(draw(st.integers(0, 3))):
        at, count = draw(st.integers(0, len(data))), draw(st.integers(0, 3))
        kept = draw(st.sampled_from([data[at : at + count], b"", data[at : at + count] * 2]))
        data = data[:at] + kept + draw(st.binary(max_size=4)) + data[at + count :]
    return data


def _good(rows: int) -> bytes:
    ones = np.ones((rows, 4), np.float32)
    request = pb.ModelInferRequest(model_name="m", id="seven", raw_input_contents=[ones.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=ones.shape)
    return request.SerializeToString()


#: Good requests with 2, 3 and 200 rows. The heads of the first two have the same length.
GOOD = [_good(2), _good(3), _good(200)]


@st.composite
def as_long_as_another(draw: Callable[[Any], Any]) -> bytes:
    """A good request that was cut or lengthened to the length of another good one."""
    one, other = draw(st.permutations(GOOD))[:2]
    more = draw(st.binary(max_size=4)) + draw(st.sampled_from(GOOD)) * 9
    return (one + more)[: len(other)]


@settings(deadline=None)
@given(st.sampled_from(GOOD[:2]).flatmap(changed) | as_long_as_another())
def test_any_bytes_have_the_same_answer_with_a_plan_and_without(both, data):
    for good in GOOD:
        known, again = both(good)
        assert known == again
        assert set(_y(known)) == {2.0}
    planned, plain = both(data)
    assert planned == plain


def test_a_large_answer_is_sent_from_the_arrays_of_the_run_unless_they_are_parts_of_larger_ones(models, tmp_path):
    models.write(tmp_path / "m", models.scale())
    x = np.arange(4 * 70_000, dtype=np.float32).reshape(-1, 4)
    request = pb.ModelInferRequest(model_name="m", id="seven", raw_input_contents=[x.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=x.shape)
    data = request.SerializeToString()
    with ThreadPoolExecutor(1) as executor, asyncio.Runner() as runner:
        catalog = Catalog(Repository(tmp_path), LoadOptions(Device("cpu"), 1), executor)
        inference = Inference(catalog, SharedMemory(False), TraceSettings())
        runner.run(catalog.load_all())
        first, second = [runner.run(_awaited(inference, data)) for _ in range(2)]
        for answer in (first, second):
            assert isinstance(answer, Pieces)
            assert pb.ModelInferResponse.FromString(bytes(answer)).raw_output_contents[0] == (2 * x).tobytes()
            assert text_field(bytes(answer.parts[0]), 2) == "1"  # the version, for the access log
        assert pb.ModelInferResponse.FromString(bytes(second)) == pb.ModelInferResponse.FromString(bytes(first))
        plan, identifier = inference._plans.find(data)
        whole = np.zeros((2 * len(x), 4), np.float32)
        parts = [whole[: len(x)], whole[len(x) :]]
        assert plan.answer(parts, identifier) == plan.response(parts, identifier)


@pytest.mark.parametrize("in_order", ["true", "false"])
def test_where_the_order_is_preserved_no_plan_is_run_before_a_request_that_came_first(models, tmp_path, in_order):
    graph = '<ir_version: 9, opset_import: ["": 18]> g (float[N,L] x) => (float[N,L] y) { y = Neg (x) }'
    config = f"max_batch_size: 8 dynamic_batching {{ preserve_ordering: {in_order} }}"
    models.write(tmp_path / "m", graph, config=config)
    first, second = [
        pb.ModelInferRequest(
            model_name="m",
            inputs=[{"name": "x", "datatype": "FP32", "shape": [1, length]}],
            raw_input_contents=[bytes(4 * length)],
        ).SerializeToString()
        for length in (5, 4)
    ]
    with ThreadPoolExecutor(1) as executor, asyncio.Runner() as runner:
        catalog = Catalog(Repository(tmp_path), LoadOptions(Device("cpu"), 1), executor)
        inference = Inference(catalog, SharedMemory(False), TraceSettings())
        runner.run(catalog.load_all())

        async def both() -> bool:
            """Whether the second request is answered before the first has had its turn."""
            answers = [inference.answer(first), inference.answer(second)]
            await asyncio.gather(*[answer for answer in answers if not isinstance(answer, bytes)])
            return isinstance(answers[1], bytes)

        runner.run(_awaited(inference, second))
        inference._plans.find(second)[0].run_time.inline = True
        assert runner.run(both()) is (in_order == "false")


async def _awaited(inference: Inference, data: bytes) -> Any:
    answer = inference.answer(data)
    return answer if isinstance(answer, bytes) else await answer
