"""Large runs: in parts with the same answers, refused where they cannot fit, and without memory that stays."""

from __future__ import annotations

import re
import threading
from unittest.mock import Mock

import grpc
import numpy as np
import pytest
from onnx import numpy_helper, parser

from normfold.protos import grpc_service as pb
from normfold.serving.catalog import sized_run
from normfold.serving.catalog.sized_run import PART_BYTES, SizedRun
from normfold.serving.errors import InvalidRequest, NoMemory
from normfold.serving.infer import outputs
from normfold.serving.process import memory_limit
from normfold.serving.process.memory import allocated_bytes
from normfold.serving.process.memory_limit import MemoryBudget
from normfold.serving.runtime import run_memory
from normfold.serving.runtime.devices import Device
from normfold.serving.runtime.run_memory import RunMemory
from normfold.serving.runtime.session import Session
from normfold.serving.runtime.settings import SessionSettings
from normfold.serving.wire import lifted, tensors

MIB = 1 << 20
pytestmark = pytest.mark.skipif(allocated_bytes() is None, reason="the C library does not count its memory")

#: Each row of 4 L bytes becomes two activations of 64 channels: 512 L bytes.
CHANNELS = 64
GRAPH = """<ir_version: 9, opset_import: ["": 18]>
    wide (float[N,1,L] x) => (float[N,1] y) {
        a = Conv <pads = [1, 1]> (x, w)
        b = Relu (a)
        c = Conv <pads = [1, 1]> (b, v)
        d = Relu (c)
        e = ReduceMean <keepdims = 0> (d, axes)
        y = MatMul (e, o)
    }"""


@pytest.fixture(scope="module")
def wide() -> bytes:
    """A convolution network whose run takes far more memory than its input."""
    model = parser.parse_model(GRAPH)
    random = np.random.default_rng(0)
    for name, shape in (("w", (CHANNELS, 1, 3)), ("v", (CHANNELS, CHANNELS, 3)), ("o", (CHANNELS, 1))):
        values = random.standard_normal(shape).astype(np.float32) / 8
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    model.graph.initializer.append(numpy_helper.from_array(np.array([2], np.int64), "axes"))
    return model.SerializeToString()


@pytest.fixture
def session(wide) -> Session:
    return Session(wide, Device("cpu"), SessionSettings())


def rows(count: int, length: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((count, 1, length)).astype(np.float32)}


def measured(session: Session) -> RunMemory:
    memory = run_memory.measure(session, rows(1, 32), ["y"], 64, {"x": [2]})
    assert memory is not None
    return memory


def test_the_memory_of_a_run_is_foretold_for_other_rows_and_lengths(session):
    memory = measured(session)
    for count, length in ((64, 256), (8, 4096), (1, 1 << 15)):
        feeds = rows(count, length)
        need = memory.of(count, feeds["x"].nbytes)
        least = 2 * CHANNELS * 4 * length * count  # what goes into a convolution and what comes out exist together
        assert least / 2 <= need <= 8 * least
    assert memory.most_input_bytes(need) == pytest.approx(feeds["x"].nbytes, rel=0.5)


def test_attention_is_expected_to_grow_faster_than_its_length(monkeypatch):
    monkeypatch.setattr(run_memory, "MOST_SECONDS", 5.0)  # a busy machine has time for fewer lengths otherwise
    graph = """<ir_version: 9, opset_import: ["": 18]> pairs (float[N,L,8] x) => (float[N,L,8] y) {
        t = Transpose <perm = [0, 2, 1]> (x)
        s = MatMul (x, t)
        p = Softmax (s)
        y = MatMul (p, x)
    }"""
    session = Session(parser.parse_model(graph).SerializeToString(), Device("cpu"), SessionSettings())
    feeds = {"x": np.zeros((1, 64, 8), np.float32)}
    memory = run_memory.measure(session, feeds, ["y"], 0, {"x": [0, 1]})
    assert memory is None or memory.power >= 1
    memory = run_memory.measure(session, feeds, ["y"], 8, {"x": [1]})
    assert memory is not None
    assert memory.power > 1.5


def test_what_is_too_small_to_be_measured_is_not_guessed():
    graph = '<ir_version: 9, opset_import: ["": 18]> g (float[N] x) => (float[N] y) { y = Relu (x) }'
    session = Session(parser.parse_model(graph).SerializeToString(), Device("cpu"), SessionSettings())
    memory = run_memory.measure(session, {"x": np.zeros(16, np.float32)}, ["y"], 0, {"x": [0]})
    assert memory is None or memory.of(1, 100 * MIB) < 1000 * MIB
    assert run_memory.measure(session, {}, ["y"], 0, {"x": [0]}) is None


def test_an_input_without_numbers_is_not_made_longer_for_ever():
    """make fuzz found float[N,0] beside two other numbers: it was doubled until no array could be so large."""
    text = (
        '<ir_version: 9, opset_import: ["": 18]> g (float[N,0] x, int64[2] s) => (float[M,K] y) { y = Reshape (x, s) }'
    )
    made = Session(parser.parse_model(text).SerializeToString(), Device("cpu"), SessionSettings())
    feeds = {"x": np.zeros((1, 0), np.float32), "s": np.array([1, 0])}
    assert isinstance(run_memory.measure(made, feeds, ["y"], 0, {"x": [0]}), RunMemory | None)


def test_a_batch_in_parts_has_the_same_answers_bit_for_bit(session, monkeypatch):
    sized = SizedRun(session, measured(session), MemoryBudget(1 << 40), batched=True, sample=rows(1, 32))
    feeds = rows(37, 2048)
    whole = session.run(feeds, ["y"])
    seen = []
    run = session.run
    monkeypatch.setattr(
        session, "run", lambda f, o, give_back=False, **_: seen.append(len(f["x"])) or run(f, o, give_back)
    )
    monkeypatch.setattr(sized_run, "PART_BYTES", PART_BYTES // 16)
    sized = SizedRun(session, sized._memory, MemoryBudget(1 << 40), batched=True, sample=rows(1, 32))
    np.testing.assert_array_equal(sized(feeds, ["y"])[0], whole[0])
    assert len(seen) > 3
    assert sum(seen) == 37
    assert max(seen) <= sized.part_rows(37, feeds["x"].nbytes) < 37


def test_a_small_run_is_run_as_it_is(session, monkeypatch):
    sized = SizedRun(session, measured(session), MemoryBudget(0), batched=True, sample=rows(1, 32))
    seen = []
    monkeypatch.setattr(session, "run", lambda *arguments, **options: seen.append((arguments, options)))
    feeds = rows(4, 32)
    sized.check(feeds, 4)
    sized(feeds, ["y"])
    assert seen == [((feeds, ["y"]), {"stop": None})]


def test_one_long_row_gives_its_memory_back(session, monkeypatch):
    monkeypatch.setattr(sized_run, "PART_BYTES", PART_BYTES // 8)
    sized = SizedRun(session, measured(session), MemoryBudget(1 << 40), batched=True, sample=rows(1, 32))
    sized(rows(1, 32), ["y"])
    before = allocated_bytes()
    feeds = rows(2, 1 << 15)  # a row: 16 MiB in two activations
    sized(feeds, ["y"])
    assert allocated_bytes() - before < 5 * MIB
    session.run(feeds, ["y"])
    assert allocated_bytes() - before > 25 * MIB


def test_an_idle_server_gives_back_what_ordinary_runs_have_kept(session):
    sized = SizedRun(session, measured(session), MemoryBudget(1 << 40), batched=True, sample=rows(2, 32))
    sized(rows(1, 32), ["y"])
    before = allocated_bytes()
    sized(rows(8, 4096), ["y"])  # 16 MiB in two activations
    assert allocated_bytes() - before > 8 * MIB
    sized.give_back()
    assert allocated_bytes() - before < 4 * MIB


def test_an_idle_server_gives_back_what_answers_took_that_waited_together(session, monkeypatch):
    """Each of them alone is of an ordinary run."""
    sized = SizedRun(session, measured(session), MemoryBudget(1 << 40), batched=True, sample=rows(2, 32))
    given = []
    run = session.run
    monkeypatch.setattr(session, "run", lambda f, o, give_back=False, **_: given.append(give_back) or run(f, o))
    feeds = rows(1, 2048)  # 1 MiB in two activations
    for _ in range(2 * sized_run.KEPT_ANSWERS):  # one after the other
        sized(feeds, ["y"])
    answers = []
    for count, gives_back in ((sized_run.KEPT_ANSWERS, False), (1, True), (0, False)):
        answers += [sized(feeds, ["y"]) for _ in range(count)]
        given.clear()
        sized.give_back()
        assert given == [True] * gives_back


def test_a_session_of_small_runs_is_left_alone(session, monkeypatch):
    sized = SizedRun(session, measured(session), MemoryBudget(1 << 40), batched=True, sample=rows(2, 32))
    sized(rows(1, 32), ["y"])
    monkeypatch.setattr(session, "run", None)
    sized.give_back()


def test_a_row_that_cannot_fit_is_refused_before_it_is_run(session, monkeypatch):
    sized = SizedRun(session, measured(session), MemoryBudget(100 * MIB), batched=True, sample=rows(1, 32))
    monkeypatch.setattr(session, "run", None)
    with pytest.raises(NoMemory, match=r"one row of this request \(4194304 bytes\) would take about \d+ MiB") as caught:
        sized.check(rows(3, 1 << 20), 3)
    assert "this server has 100 MiB for runs" in str(caught.value)
    assert caught.value.retry_seconds == -1
    sized.check(rows(64, 1 << 12), 64)  # the whole does not fit, its rows do


def test_a_model_without_a_batch_axis_is_refused_as_a_whole(session):
    sized = SizedRun(session, measured(session), MemoryBudget(100 * MIB), batched=False, sample=rows(1, 32))
    with pytest.raises(NoMemory, match=r"this request \(\d+ bytes\)"):
        sized.check(rows(64, 1 << 14), 1)


def test_an_output_without_rows_is_no_batch(session, monkeypatch):
    sized = SizedRun(session, measured(session), MemoryBudget(1 << 40), batched=True, sample=rows(1, 32))
    monkeypatch.setattr(session, "run", lambda feeds, outputs, **_: [np.zeros(())])
    with pytest.raises(InvalidRequest, match="an output does not have the"):
        sized(rows(2, 1 << 18), ["y"])


def test_an_output_whose_rows_are_as_long_as_the_longest_of_their_part_is_refused(session, monkeypatch):
    sized = SizedRun(session, measured(session), MemoryBudget(1 << 40), batched=True, sample=rows(1, 32))
    monkeypatch.setattr(session, "run", lambda feeds, outputs, **_: [np.zeros((len(feeds["x"]), len(feeds["x"])))])
    with pytest.raises(InvalidRequest, match=r"an output has rows of \[2\] in one part of the batch and of \[1\] in"):
        sized(rows(3, 1 << 18), ["y"])


@pytest.mark.parametrize(("length", "most", "counts"), [(1 << 18, 1, [2, 1, 1]), (1 << 14, 8, [7, 8, 1])])
def test_an_output_with_the_rows_of_every_part_by_chance_is_no_batch(session, monkeypatch, length, most, counts):
    """Such as a mean of the batch: it would be there once for each part."""
    memory = RunMemory(row_bytes=PART_BYTES / 8, row_input_bytes=4 << 14)
    sized = SizedRun(session, memory, MemoryBudget(1 << 40), batched=True, sample=rows(1, 32))
    feeds, seen = rows(sum(counts), length), []
    monkeypatch.setattr(session, "run", lambda feeds, outputs, **_: [np.zeros((most, 1))])
    for _ in range(2):
        with pytest.raises(InvalidRequest, match=f"an output does not have the {counts[0]} rows"):
            sized(feeds, ["y"])
    monkeypatch.setattr(session, "run", lambda feeds, outputs, **_: seen.append(len(feeds["x"])) or [feeds["x"]])
    for _ in range(2):
        np.testing.assert_array_equal(sized(feeds, ["y"])[0], feeds["x"])
    again = [most] * (sum(counts) // most) + [sum(counts) % most] * (sum(counts) % most > 0)
    assert seen == [*counts, *again]


@pytest.mark.parametrize(("count", "parts"), [(14, [8, 6]), (15, [8, 7]), (16, [7, 8, 1]), (17, [8, 8, 1])])
def test_an_output_of_any_fixed_number_of_rows_is_found_out_by_the_parts(session, monkeypatch, count, parts):
    """Parts of one size would hide an output that always has as many rows."""
    memory = RunMemory(row_bytes=PART_BYTES / 8, row_input_bytes=4 << 14)
    sized = SizedRun(session, memory, MemoryBudget(1 << 40), batched=True, sample=rows(1, 32))
    feeds, seen = rows(count, 1 << 14), []
    for fixed in range(1, 10):
        monkeypatch.setattr(session, "run", lambda feeds, outputs, size=fixed, **_: [np.zeros((size, 1))])
        with pytest.raises(InvalidRequest, match="an output does not have the"):
            sized(feeds, ["y"])
    monkeypatch.setattr(session, "run", lambda feeds, outputs, **_: seen.append(len(feeds["x"])) or [feeds["x"]])
    sized(feeds, ["y"])
    assert seen == parts


def test_two_rows_that_are_too_large_for_a_part_run_together_once(session, monkeypatch):
    """Both together need twice the memory, and show that the outputs have the rows of the inputs."""
    memory = RunMemory(row_bytes=PART_BYTES / 8, row_input_bytes=4 << 14)
    sized = SizedRun(session, memory, MemoryBudget(1 << 40), batched=True, sample=rows(1, 32))
    seen = []
    monkeypatch.setattr(session, "run", lambda feeds, outputs, **_: seen.append(len(feeds["x"])) or [feeds["x"]])
    for length in (1 << 17, 1 << 17, 1 << 16, 1 << 16):
        sized(rows(2 if length == 1 << 17 else 4, length), ["y"])
    assert seen == [2, 1, 1, 1, 2, 1, 2, 2]


def test_large_runs_wait_until_the_memory_of_others_is_free(monkeypatch):
    budget = MemoryBudget(100)
    begun, end = threading.Event(), threading.Event()
    order: list[str] = []

    def large(name: str, size: int) -> None:
        with budget.reserved(size):
            order.append(name)
            begun.set()
            assert end.wait(20)

    first = threading.Thread(target=large, args=("first", 70))
    first.start()
    assert begun.wait(20)
    second = threading.Thread(target=large, args=("second", 70))
    second.start()
    with budget.reserved(20):
        order.append("small")
    assert order == ["first", "small"]
    end.set()
    second.join(20)
    first.join(20)
    assert order == ["first", "small", "second"]
    with budget.reserved(1000):  # alone: what was too large was refused before
        pass


def test_a_server_refuses_what_does_not_fit_and_goes_on(serve, tmp_path, models, ask, wide, frontend):
    config = 'max_batch_size: 64 input { name: "x" data_type: TYPE_FP32 dims: 1 dims: -1 }'
    config += ' output { name: "y" data_type: TYPE_FP32 dims: 1 }'
    models.write(tmp_path / "wide", wide, config=config)
    with serve(tmp_path, frontend=frontend, memory_limit_bytes=1 << 40) as served:
        model = served.server.catalog.find("wide", "")
        room = model._sized._budget
        room.limit_bytes = room._base + 100 * MIB
        with pytest.raises(grpc.RpcError) as caught:
            served.infer(ask("wide", x=np.zeros((2, 1, 1 << 20), np.float32)))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "send a shorter input, or start the server with a larger --memory-limit" in caught.value.details()
        assert dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"] == "-1"
        served.infer(ask("wide", x=np.zeros((2, 1, 64), np.float32)))


def test_packed_numbers_that_do_not_fit_are_refused_before_they_are_read(serve, tmp_path, models, monkeypatch):
    """Each takes one byte in a request, and eight in memory."""
    models.write(tmp_path / "m", models.scale())
    request = pb.ModelInferRequest(model_name="m")
    request.inputs.add(name="x", datatype="INT64", shape=[1, 8 * MIB]).contents.int64_contents.extend([1] * 8 * MIB)
    with serve(tmp_path, memory_limit_bytes=1 << 40) as served:
        budget = served.server._stock._budget
        with pytest.raises(grpc.RpcError) as caught:
            served.infer(request)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # of another datatype: it was read
        budget.limit_bytes = budget._base + 60 * MIB
        monkeypatch.setattr(lifted, "unpacked", Mock(side_effect=AssertionError))
        with pytest.raises(grpc.RpcError) as caught:
            served.infer(request)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "would take 64 MiB of memory, and this server has 60 MiB for runs" in caught.value.details()
        assert not served.server._admission.under_way.bytes


@pytest.mark.parametrize("way", ["raw", "typed", "shared"])
def test_strings_that_do_not_fit_are_refused_before_they_are_read(serve, tmp_path, models, monkeypatch, way):
    """Each of these takes four or six bytes in a request, and 170 in memory."""
    models.write(tmp_path / "text", models.identity(8, ["N"]))
    count, data = 1_000_000, b"\2\0\0\0ab" * 1_000_000
    request = pb.ModelInferRequest(model_name="text")
    tensor = request.inputs.add(name="x", datatype="BYTES", shape=[count])
    with serve(tmp_path, memory_limit_bytes=1 << 40) as served:
        if way == "raw":
            request.raw_input_contents.append(data)
        elif way == "typed":
            tensor.contents.bytes_contents.extend([b"ab"] * count)
        else:
            regions = served.server._regions
            monkeypatch.setattr(regions, "check", Mock())
            monkeypatch.setattr(regions, "read", lambda *region: data)
            tensor.parameters["shared_memory_region"].string_param = "r"
            tensor.parameters["shared_memory_byte_size"].int64_param = len(data)
        budget = served.server._stock._budget
        budget.limit_bytes = budget._base + 60 * MIB
        for module, reads in ((tensors, "split_elements"), (tensors, "_objects")):
            monkeypatch.setattr(module, reads, Mock(side_effect=AssertionError))
        with pytest.raises(grpc.RpcError) as caught:
            served.infer(request)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert re.search("the inputs of this request would take 3[46]. MiB", caught.value.details())  # half for answers
        assert not served.server._admission.under_way.bytes


def test_a_long_string_counts_as_often_as_it_is_in_memory(serve, tmp_path, models, monkeypatch):
    """As it came, as text of four bytes a character, as onnxruntime's string; and again for the answer."""
    models.write(tmp_path / "text", models.identity(8, ["N"]))
    size = 5 * MIB
    request = pb.ModelInferRequest(model_name="text", raw_input_contents=[size.to_bytes(4, "little") + b"a" * size])
    request.inputs.add(name="x", datatype="BYTES", shape=[1])
    with serve(tmp_path, memory_limit_bytes=1 << 40) as served:
        budget = served.server._stock._budget
        budget.limit_bytes = budget._base + 50 * MIB
        with pytest.raises(grpc.RpcError) as caught:
            served.infer(request)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "the inputs of this request would take 60 MiB of memory" in caught.value.details()
        budget.limit_bytes = budget._base + 100 * MIB
        more = Mock(side_effect=served.server._admission.more)
        monkeypatch.setattr(served.server._admission, "more", more)
        assert served.infer(request).raw_output_contents[0] == request.raw_input_contents[0]
    # while it waits for its run it is not text yet, and takes less of --max-queue-bytes
    assert [call.args[2] for call in more.call_args_list] == [2 * (168 + size)]


#: Takes rows of 100 strings; its file says any number, so it is not measured.
OF_100 = """<ir_version: 9, opset_import: ["": 20]> g (string[N,L] x) => (string[N,L] y) <int64[2] s = {-1,100}> {
    a = Reshape (x, s)
    y = StringConcat (x, a)
}"""


def test_strings_for_a_model_that_was_not_measured_have_the_same_limit(serve, tmp_path, models, monkeypatch):
    models.write(tmp_path / "text", OF_100)
    request = pb.ModelInferRequest(model_name="text", raw_input_contents=[b"\2\0\0\0ab" * 1_000_000])
    request.inputs.add(name="x", datatype="BYTES", shape=[10_000, 100])
    with serve(tmp_path, memory_limit_bytes=1 << 40) as served:
        assert served.server.catalog.find("text", "")._sized is None
        budget = served.server._stock._budget
        budget.limit_bytes = budget._base + 60 * MIB
        monkeypatch.setattr(tensors, "split_elements", Mock(side_effect=AssertionError))
        with pytest.raises(grpc.RpcError) as caught:
            served.infer(request)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "the inputs of this request would take 343 MiB of memory" in caught.value.details()


TEXT = '<ir_version: 9, opset_import: ["": 20]>'
DOUBLED = " ".join(f"t{i + 1} = StringConcat (t{i}, t{i})" for i in range(16))


@pytest.mark.parametrize(
    ("graph", "config", "count"),
    [
        (f"(string[N] t0) => (string[N] t16) {{ {DOUBLED} }}", "", 1),
        (f"(string[N,1] t0) => (string[N,1] t16) {{ {DOUBLED} }}", "max_batch_size: 8", 1),
        ("(string[1] t0) => (string[M] t16) <int64[1] s = {20000}> { t16 = Expand (t0, s) }", "", 1),
        (
            "(string[N] t0) => (string[N,M] t16) <int64[1] i={1}> { b = Unsqueeze(t0, i) t16 = StringConcat(t0, b) }",
            "",
            60,
        ),
    ],
)
def test_strings_that_the_graph_makes_count_before_they_are_made(serve, tmp_path, models, graph, config, count):
    """A request of some kilobytes took gigabytes."""
    models.write(tmp_path / "m", f"{TEXT} g {graph}", config=config)
    with serve(tmp_path, memory_limit_bytes=1 << 40) as served:
        model = served.server.catalog.find("m", "")
        budget = model._sized._budget
        budget.limit_bytes = budget._base + 512 * MIB

        def ask(length: int) -> pb.ModelInferRequest:
            request = pb.ModelInferRequest(model_name="m")
            request.inputs.add(name="t0", datatype="BYTES", shape=[count, 1] if config else [count])
            request.raw_input_contents.append((length.to_bytes(4, "little") + b"a" * length) * count)
            return request

        runs = Mock(side_effect=model.session.run)
        model.session.run = runs
        with pytest.raises(grpc.RpcError) as caught:
            served.infer(ask(1 << 16))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "with the strings that the model makes, would take about" in caught.value.details()
        assert not runs.called
        answer = served.infer(ask(3))
        assert len(answer.raw_output_contents[0]) > 1 << 14


def test_large_strings_that_the_graph_makes_have_the_memory_for_themselves():
    """Several such runs together must not need more than there is."""
    model = parser.parse_model(f"{TEXT} g (string[N] t0) => (string[N] t16) {{ {DOUBLED} }}")
    made = Session(model.SerializeToString(), Device("cpu"), SessionSettings())
    budget = Mock(MemoryBudget(1 << 40))
    sized = SizedRun(made, RunMemory(8.0, 8.0), budget, batched=False, sample={"t0": np.array([b"a"], object)})
    made.run = Mock(return_value=[np.zeros(1)])
    budget.reserved.return_value.__enter__ = budget.reserved.return_value.__exit__ = Mock(return_value=False)
    sized({"t0": np.array([b"a"], object)}, ["t16"])
    assert not budget.reserved.called
    sized({"t0": np.array([b"a" * 10_000], object)}, ["t16"])
    (need,) = budget.reserved.call_args.args
    assert need > 10_000 << 16


LABELLED = """<ir_version: 9, opset_import: ["": 20, "ai.onnx.ml": 3]>
    labelled (float[N,L] x) => (string[N,1] y) {
        i = ArgMax <axis = 1> (x)
        y = ai.onnx.ml.LabelEncoder <keys_int64s = [0], values_strings = ["LABEL"]> (i)
    }"""


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize(("length", "more"), [(64, 0), (1 << 20, 6 << 20)])
def test_labels_are_counted_by_the_shape_of_the_answer(batched, length, more):
    """Each place in memory counted as a label: a network with one label for an image needed six times as much."""
    text = LABELLED.replace("LABEL", "a" * length)
    made = Session(
        parser.parse_model(text if batched else text.replace("N", "1")).SerializeToString(),
        Device("cpu"),
        SessionSettings(),
    )
    budget, feeds = MemoryBudget(300 * MIB + more), {"x": np.zeros((1, 64), np.float32)}
    sized = SizedRun(made, RunMemory(1 << 20, 256), budget, batched, feeds)
    sized.check({"x": np.zeros((1, 300 * 64), np.float32)}, 1)
    budget.limit_bytes -= MIB
    with pytest.raises(NoMemory):
        sized.check({"x": np.zeros((1, 300 * 64), np.float32)}, 1)


def test_a_string_that_is_made_of_one_counts_once():
    """The least memory that is measured has places for thousands."""
    made = Session(
        parser.parse_model(
            f'{TEXT} g (string[N,1] t0) => (string[N,1] y) <string[1] s = {{"!"}}> {{ y = StringConcat (t0, s) }}'
        ).SerializeToString(),
        Device("cpu"),
        SessionSettings(),
    )
    feeds = {"t0": np.array([["a" * MIB]], object)}
    sized = SizedRun(made, RunMemory(1 << 14, 8), MemoryBudget(8 * MIB), True, feeds)
    sized.check(feeds, 1)
    with pytest.raises(NoMemory):
        sized.check({"t0": np.array([["a" * 2 * MIB]], object)}, 1)


@pytest.mark.parametrize(("node", "warned"), [("Expand (x, s)", True), ("Identity (x)", False)])
def test_the_log_says_where_nobody_can_know_what_strings_take(serve, tmp_path, models, caplog, node, warned):
    models.write(
        tmp_path / "m",
        f"{TEXT} g (string[N] x, int64[1] s) => (string[M] y, int64[1] z) {{ y = {node} z = Identity (s) }}",
    )
    with serve(tmp_path, memory_limit_bytes=1 << 40):
        said = [record for record in caplog.records if "they count to no memory limit" in record.message]
        assert len(said) == warned


def test_classes_that_do_not_fit_are_refused_before_they_are_written(serve, tmp_path, models, ask, monkeypatch):
    """Each takes four bytes as a number, and 128 as a text."""
    models.write(tmp_path / "same", models.identity(1, ["N"]))
    request = ask("same", x=np.zeros(MIB, np.float32))
    request.outputs.add(name="y").parameters["classification"].int64_param = 1 << 40
    with serve(tmp_path, memory_limit_bytes=1 << 40) as served:
        budget, admission = served.server._stock._budget, served.server._admission
        budget.limit_bytes = budget._base + 60 * MIB
        with monkeypatch.context() as patch:
            patch.setattr(outputs, "classify", Mock(side_effect=AssertionError))
            with pytest.raises(grpc.RpcError) as caught:
                served.infer(request)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "the classes of this answer would take 128 MiB of memory" in caught.value.details()
        assert not admission.under_way.bytes
        request.outputs[0].parameters["classification"].int64_param = 3
        assert served.infer(request).outputs[0].shape == [3]


def test_a_change_of_the_models_while_requests_are_under_way_leaves_the_room(serve, tmp_path, models, monkeypatch):
    """The room was lower until the next change, and rows that fit were refused for good."""
    models.write(tmp_path / "m", models.scale())
    resident = [200 * MIB]
    monkeypatch.setattr(memory_limit, "resident_bytes", lambda: resident[0])
    with serve(tmp_path, memory_limit_bytes=1000 * MIB) as served:
        budget, admission = served.server._stock._budget, served.server._admission
        assert budget.room_bytes == 800 * MIB
        resident[0] = 700 * MIB
        admission.enter(None, "a connection", 500 * MIB)
        served.call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="m"))
        assert budget.room_bytes > 750 * MIB
        admission.leave(None, "a connection", 500 * MIB)
        served.call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="m"))
        assert budget.room_bytes == 300 * MIB  # nobody says that these are of a request, ...
        resident[0] = 250 * MIB
        assert budget.fits(600 * MIB)  # ... but they are gone when a run needs them
