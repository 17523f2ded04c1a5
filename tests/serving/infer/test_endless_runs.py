"""A run without end: health answers, its deadline ends it, and the server can stop."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import grpc
import numpy as np
import pytest
from onnx import defs, parser
from tests.waiting import wait_until

from normfold.protos import grpc_service as pb
from normfold.serving.errors import Unavailable
from normfold.serving.process import children
from normfold.serving.runtime import run_length
from normfold.serving.runtime.devices import Device
from normfold.serving.runtime.gpus import Sessions
from normfold.serving.runtime.session import Session
from normfold.serving.runtime.settings import SessionSettings
from normfold.serving.runtime.stop import stoppable

HEAD = '<ir_version: 9, opset_import: ["": 18]>'
#: As many trips as the input says.
TRIPS = (
    HEAD
    + """ g (int64[1] n, float[4] x) => (float[4] y) {
    trips = Squeeze (n)
    go = Constant <value = bool {1}> ()
    y = Loop (trips, go, x) <body = b (int64 i, bool c, float[4] a) => (bool d, float[4] e) {
      d = Identity (c)
      e = Neg (a)
    }>
}"""
)


def session(graph):
    return Session(parser.parse_model(HEAD + graph).SerializeToString(), Device("cpu"), SessionSettings())


@pytest.mark.parametrize(
    ("graph", "decide"),
    [
        ("g (float[N,4] x) => (float[N,4] y) { y = Neg (x) }", False),
        ("g (int64[N] x) => (float[N] y) { s = Shape (x) y = ConstantOfShape (s) }", False),
        ("g (int64[1] x) => (float[N] y) { y = ConstantOfShape (x) }", True),
        ("g (int64[1] x) => (float[N] y) { z = Neg (x) a = Abs (z) y = ConstantOfShape (a) }", True),
        ("g (float[N] x, int64[1] s) => (float[M] y) { y = Expand (x, s) }", True),
        ("g (float[N] x, float[M] w) => (float[K] y) { s = Shape (w) y = Expand (x, s) }", False),
        ("g (float[N] x) => (float[M] y) <int64[1] s = {8}> { y = Tile (x, s) }", False),
        ("g (int64 x) => (int64[M] y) <int64 a = {0}, int64 b = {1}> { y = Range (a, x, b) }", True),
        (
            "g (float[N] x) => (float[M,M] y) { i = NonZero (x) j = Transpose (i) t = Cast <to = 1> (j) "
            "u = Transpose (t) y = MatMul (t, u) }",
            True,
        ),
        (
            "g (float[N] x, int64[2] s, int64[2] t) => (float[M,K] y) "
            "{ a = Reshape (x, s) b = Reshape (x, t) y = MatMul (a, b) }",
            True,
        ),
        ("g (float[N] x, bool[N] c) => (float[M] y) { y = Compress <axis = 0> (x, c) }", True),
        ("g (float[N] x, bool[N] c) => (float[M] y) <bool[2] k = {1, 0}> { y = Compress <axis = 0> (x, k) }", False),
        ("g (float[N] x) => (float[M] y) { y = Unique (x) }", True),
        ("g (float[N] x, int64[1] k) => (float[M] y) { y, i = TopK (x, k) }", True),
        ("g (float[N] x, int64[1] e) => (float[M] y) <int64[1] b = {0}> { y = Slice (x, b, e) }", True),
        ("g (float[N,4] x, int64[1] a) => (float y) { y = ReduceSum (x, a) }", True),
        ("g (float[N] x, int64[1] a) => (float[A,B] y) { y = Unsqueeze (x, a) }", True),
        ("g (float[N] x, int64[2] p) => (float[M] y) { y = Pad (x, p) }", True),
        (
            "g (float[1,1,8,8] x, float[N,4] r, int64[N] b) => (float[N,1,1,1] y) "
            "{ y = RoiAlign <output_height = 1, output_width = 1> (x, r, b) }",
            True,
        ),
        (
            "g (float[1,1,8,8] x) => (float[1,1,1,1] y) <float[1,4] r = {0, 0, 2, 2}, int64[1] b = {0}> "
            "{ y = RoiAlign <output_height = 1, output_width = 1> (x, r, b) }",
            False,
        ),
        (
            "g (float[T,B,1] x, int32[B] n) => (float[T,1,B,1] y) "
            "<float[1,1,1] w = {1}, float[1,1,1] r = {1}> { y = RNN <hidden_size = 1> (x, w, r, , n) }",
            True,
        ),
        (
            "g (bool c, float[N] x) => (float[N] y) "
            "{ y = If (c) <then_branch = a () => (float[N] p) { p = Neg (x) }, else_branch = b () => (float[N] q) "
            "{ q = Abs (x) }> }",
            True,
        ),
        (
            "g (float[N] x) => (float[N] y) { y = Scan <num_scan_inputs = 1, body = b (float i) => (float o) "
            "{ o = Neg (i) }> (x) }",
            True,
        ),
        # ordinary networks: a Reshape by the shape of its input, a Slice by half its length, an LSTM of full length
        (
            "g (float[N,4,L] x) => (float[N,M] y) <int64[1] rest = {-1}, int64[1] one = {1}, int64[1] none = {0}> "
            "{ s = Shape (x) n = Slice (s, none, one) t = Concat <axis = 0> (n, rest) y = Reshape (x, t) }",
            False,
        ),
        (
            "g (float[N] x) => (float[M] y) <int64[1] none = {0}, int64[1] two = {2}> "
            "{ s = Shape (x) h = Div (s, two) y = Slice (x, none, h) }",
            False,
        ),
        (
            "g (float[T,B,1] x) => (float[T,1,B,1] y) "
            "<float[1,1,1] w = {1}, float[1,1,1] r = {1}> { y = RNN <hidden_size = 1> (x, w, r) }",
            False,
        ),
        (
            "g (float[N] x) => (float[M] y) { s = Shape (x) o = ConstantOfShape (s) i = NonZero (o) "
            "y = Cast <to = 1> (i) }",
            False,
        ),
        (TRIPS.removeprefix(HEAD), True),
    ],
)
def test_it_is_known_where_numbers_decide_how_long_a_run_takes(graph, decide):
    assert session(graph).numbers_decide is decide


@pytest.mark.parametrize(("operator", "decide"), [("Gelu", False), ("ExpandDims", True)])
def test_an_operator_of_another_domain_decides_unless_it_is_known(operator, decide):
    text = (
        '<ir_version: 9, opset_import: ["": 18, "com.microsoft": 1]> g (float[N] x, int32 a) => (float y) '
        f"{{ y = com.microsoft.{operator} (x{', a' if decide else ''}) }}"
    )
    made = Session(parser.parse_model(text).SerializeToString(), Device("cpu"), SessionSettings())
    assert made.numbers_decide is decide


#: Operators whose inputs of int32 or int64 are indices, axes or numbers: the run is as long as their shapes say.
OF_INDICES = {
    "CumProd",
    "CumSum",
    "Gather",
    "GatherElements",
    "GatherND",
    "NegativeLogLikelihoodLoss",
    "QLinearConv",
    "ReverseSequence",
    "RoiAlign",
    "RotaryEmbedding",
    "Scatter",
    "ScatterElements",
    "ScatterND",
    "SoftmaxCrossEntropyLoss",
    "TensorScatter",
    "Trilu",
}


def test_every_operator_that_takes_sizes_is_known():
    """Sizes and lengths are int32 or int64. A newer onnx with further operators fails here until somebody looks."""
    unknown = set()
    for schema in defs.get_all_schemas_with_history():
        if schema.domain or schema.name in OF_INDICES | {"Loop", "Scan"}:
            continue
        known = run_length.DECIDED_BY.get(schema.name, ())
        for place, each in enumerate(schema.inputs):
            if set(each.types) <= {"tensor(int32)", "tensor(int64)"} and place not in known:
                unknown.add((schema.name, place))
    assert unknown == {("MaxUnpool", 1), ("MelWeightMatrix", 2)}  # indices, and a frequency


def test_a_model_with_functions_may_take_any_time():
    text = (
        '<ir_version: 9, opset_import: ["": 18, "own": 1]> g (float[N] x) => (float[N] y) { y = own.twice (x) }'
        '<domain: "own", opset_import: ["": 18]> twice (x) => (y) { y = Add (x, x) }'
    )
    made = Session(parser.parse_model(text).SerializeToString(), Device("cpu"), SessionSettings())
    assert made.numbers_decide


@pytest.mark.parametrize("several", [False, True])
def test_a_run_that_is_stopped_ends_before_its_next_node(several):
    one = Session(parser.parse_model(TRIPS).SerializeToString(), Device("cpu"), SessionSettings())
    run, stop = stoppable((Sessions([(one, 1), (one, 1)]) if several else one).run)()
    timer = threading.Timer(0.2, stop)
    timer.start()
    with pytest.raises(Unavailable, match="the run was stopped"):
        run({"n": np.array([10**11]), "x": np.zeros(4, np.float32)}, ["y"])
    (y,) = one.run({"n": np.array([3]), "x": np.ones(4, np.float32)}, ["y"])
    np.testing.assert_array_equal(y, -np.ones(4))


def request(trips):
    message = pb.ModelInferRequest(model_name="trips")
    message.inputs.add(name="n", datatype="INT64", shape=[1])
    message.inputs.add(name="x", datatype="FP32", shape=[4])
    message.raw_input_contents.extend([np.array([trips]).tobytes(), bytes(16)])
    return message


@pytest.fixture
def endless(serve, tmp_path, models, frontend):
    models.write(tmp_path / "trips", TRIPS, config="instance_group { count: 2 kind: KIND_CPU }")
    models.write(tmp_path / "m", models.scale())
    with serve(tmp_path, frontend=frontend, grace_seconds=0.5) as server:
        for _ in range(5):  # short, as the warm-up with zeros was
            server.infer(request(0))
        yield server


def scheduler(server):
    return server.server.catalog.find("trips", "").scheduler


def test_a_long_run_after_short_ones_leaves_the_loop_free_and_ends_with_its_deadline(endless, ask):
    with pytest.raises(grpc.RpcError) as caught:
        endless.infer(request(10**11), timeout=1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: scheduler(endless)._free == 2)  # the run has ended, too
    waiting = endless.channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer", request_serializer=lambda message: message.SerializeToString()
    ).future(request(10**11))
    wait_until(lambda: scheduler(endless)._free == 1)
    assert endless.call("ServerLive", pb.ServerLiveRequest(), timeout=10).live
    assert endless.infer(ask("m"), timeout=10).model_name == "m"
    waiting.cancel()
    wait_until(lambda: scheduler(endless)._free == 2)


def test_the_end_of_the_server_ends_a_run(endless):
    waiting = endless.channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer", request_serializer=lambda message: message.SerializeToString()
    ).future(request(10**11))
    wait_until(lambda: scheduler(endless)._free == 1)
    assert endless.on_loop(endless.server.shut_down()) is False
    with pytest.raises(grpc.RpcError):
        waiting.result(10)
    wait_until(lambda: not any(thread.is_alive() for thread in endless.server._executor._threads))


#: A server's loop that is stuck while it holds the interpreter; it says so first.
STUCK = """
import asyncio, ctypes, os
from normfold.serving.process import loops
from normfold.serving.process.signals import stop_signal
async def main():
    stop_signal()
    print("stuck", flush=True)
    while True:
        ctypes.PyDLL(None).sleep(60)
loops.run(main())
"""


def signalled(code: str, said: str, number: signal.Signals) -> subprocess.Popen[str]:
    """A process of ``code``, which got a signal once it had ``said`` that it runs."""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=children.environment()
    )
    assert process.stdout.readline() == said
    process.send_signal(number)
    return process


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_second_signal_ends_a_process_that_is_stuck(name):
    number = getattr(signal, name)
    process = signalled(STUCK, "stuck\n", number)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(number)
    assert process.wait(20) == -number


#: A process whose loop runs; it says when it has been asked to stop.
FIRST_OF_ALL = """
import asyncio, os
from normfold.serving.process import loops
from normfold.serving.process.signals import stop_signal
os.getpid = lambda: 1
async def main():
    stop = stop_signal()
    print("runs", flush=True)
    await stop.wait()
    print("stops", flush=True)
    await asyncio.sleep(60)
loops.run(main())
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_second_signal_ends_the_first_process_of_a_container_too(name):
    """There the kernel drops signals with the default action: the second one must still have a handler."""
    number = getattr(signal, name)
    process = signalled(FIRST_OF_ALL, "runs\n", number)
    assert process.stdout.readline() == "stops\n"
    process.send_signal(number)
    assert process.wait(20) == 1
