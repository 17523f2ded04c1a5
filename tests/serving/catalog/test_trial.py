"""A load that never ends, that takes too much memory, or that crashes: it is ended, and nothing else notices."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from onnx import TensorProto, helper, parser
from tests.waiting import wait_until

from normfold.protos import grpc_service as pb
from normfold.protos import model_config as mc
from normfold.serving.catalog import trial
from normfold.serving.catalog.load import LoadOptions
from normfold.serving.catalog.loader import Loader
from normfold.serving.catalog.repository import SentFolder
from normfold.serving.catalog.trial import LoadLimits, Trials
from normfold.serving.catalog.trial_memory import PROCESS_BYTES, TrialMemory
from normfold.serving.errors import LoadError, Unavailable, UnsafeModel
from normfold.serving.process import children
from normfold.serving.runtime.devices import Device

HEAD = '<ir_version: 9, opset_import: ["": 18]>'
#: 10^12 trips with a number that is in the file.
ENDLESS = (
    HEAD
    + """ g (float[N,4] x) => (float[N,4] y) {
    n = Constant <value = int64 {1000000000000}> ()
    go = Constant <value = bool {1}> ()
    y = Loop (n, go, x) <body = b (int64 i, bool c, float[N,4] a) => (bool d, float[N,4] e) {
      d = Identity (c)
      e = Neg (a)
    }>
}"""
)
#: 3 GB in a few bytes.
LARGE = (
    HEAD
    + """ g (float[N,4] x) => (float[N,4] y) {
    n = Constant <value = int64[1] {800000000}> ()
    z = ConstantOfShape (n)
    m = ReduceMax <keepdims = 0> (z)
    y = Add (x, m)
}"""
)
OPTIONS = LoadOptions(Device("cpu"), cpus=1)


def doubling(times: int) -> bytes:
    """A model of functions, each of which calls the next one twice."""
    functions = []
    for level in range(times):
        inner = f"f{level + 1}" if level + 1 < times else "Neg"
        domain = "own" if level + 1 < times else ""
        nodes = [helper.make_node(inner, [a], [b], domain=domain) for a, b in ("xt", "ty")]
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
        functions.append(helper.make_function("own", f"f{level}", ["x"], ["y"], nodes, opsets))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("f0", ["x"], ["y"], domain="own")], "g", [x], [y])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=9).SerializeToString()


@pytest.fixture
def trials(tmp_path):
    """Trials with the limits of the test."""
    made: list[Trials] = []

    def make(seconds=60.0, mib=0, folder=tmp_path / "loads"):
        made.append(Trials(LoadLimits(seconds, mib << 20), folder))
        return made[-1]

    yield make
    for each in made:
        each.close()


def sent(graph, **files):
    data = graph if isinstance(graph, bytes) else _bytes(graph)
    return SentFolder("m", {"1/model.onnx": data, **files})


def _bytes(graph):
    return parser.parse_model(graph).SerializeToString()


def check(trials, graph):
    trials.check(sent(graph), mc.ModelConfig(), 1, OPTIONS)


def test_a_model_that_loads_passes_and_is_remembered_by_its_content(trials, models, tmp_path, monkeypatch):
    one = trials()
    check(one, models.scale())
    check(one, models.scale(3.0))
    assert len(list((tmp_path / "loads").iterdir())) == 2
    assert len(one._idle) == 1  # one process for both
    (pid,) = (child._process.pid for child in one._idle)
    one.rest()
    assert not Path(f"/proc/{pid}").exists()
    check(one, models.scale(5.0))
    assert not one._idle
    monkeypatch.setattr(trial, "_Child", None)
    check(one, models.scale())
    with pytest.raises(TypeError):
        check(one, models.scale(4.0))
    with pytest.raises(TypeError):
        check(trials(seconds=61.0), models.scale())


def test_what_fails_has_the_reason_of_the_load_and_is_not_remembered(trials, tmp_path):
    one = trials()
    for _ in range(2):
        with pytest.raises(UnsafeModel, match="the file is not an ONNX model"):
            check(one, b"\x08not an onnx file")
    assert not (tmp_path / "loads").exists()
    assert len(one._idle) == 1


@pytest.mark.parametrize("graph", [ENDLESS, doubling(22)], ids=["loop", "functions"])
def test_a_load_without_end_is_ended(trials, models, graph):
    one = trials(seconds=1.0)
    with pytest.raises(LoadError, match=r"loading it took longer than 1 s; --load-seconds allows more"):
        check(one, graph)
    assert not one._idle
    assert not one._busy


def test_a_load_that_takes_too_much_memory_is_ended(trials, models):
    one = trials(mib=500)
    with pytest.raises(LoadError, match=r"loading it needs more memory than 500 MiB; --load-mib allows more"):
        check(one, LARGE)
    check(one, models.scale())


def test_the_default_limit_of_memory_grows_with_the_files():
    assert LoadLimits(1.0).memory_bytes(0) == 2 << 30
    assert LoadLimits(1.0).memory_bytes(1 << 30) == 10 << 30
    assert LoadLimits(1.0, 5).memory_bytes(1 << 30) == 5


def test_a_trial_that_cannot_start_is_the_reason_of_its_model(trials, models, monkeypatch):
    def full(*arguments, **options):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", full)
    with pytest.raises(LoadError, match="its trial cannot start: Resource temporarily unavailable"):
        check(trials(), models.scale())


def test_a_cache_that_cannot_be_looked_at_remembers_nothing_and_stops_no_load(trials, monkeypatch, tmp_path):
    jobs = []

    class Child:
        ended = False

        def carry_out(self, job, *rest):
            jobs.append(job)
            return "", ""

        def end(self):
            self.ended = True

    def refuse(path, *arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(trial, "_Child", Child)
    one = trials(folder=tmp_path / "of another user" / "loads")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "stat", refuse)
        patched.setattr(Path, "mkdir", refuse)
        check(one, b"a model")
        check(one, b"a model")
    assert len(jobs) == 2


def test_a_load_that_crashes_is_the_reason_of_its_model(trials, models, monkeypatch):
    one = trials()
    check(one, models.scale())
    (child,) = one._idle
    real = trial.write_job

    def write(stream, job):
        os.kill(child._process.pid, signal.SIGSEGV)
        real(stream, job)

    monkeypatch.setattr(trial, "write_job", write)
    with pytest.raises(LoadError, match=r"onnxruntime crashed while it loaded the model \(SIGSEGV\)"):
        check(one, models.scale(3.0))
    monkeypatch.undo()
    check(one, models.scale(3.0))


def _ended(trials):
    """The words with which a load without end is ended."""
    with pytest.raises(Unavailable) as caught:
        check(trials, ENDLESS)
    return str(caught.value)


def test_the_end_of_the_server_ends_a_load_under_way(trials, monkeypatch):
    one = trials()
    ended = []
    thread = threading.Thread(target=lambda: ended.append(_ended(one)))
    thread.start()
    while not one._busy:
        time.sleep(0.01)
    one.close()
    thread.join(20)
    assert ended == ["Server exiting"]
    monkeypatch.setattr(trial, "_Child", None)
    with pytest.raises(Unavailable):
        check(one, ENDLESS)


def test_a_long_trial_lets_the_next_ones_begin(trials, models, monkeypatch):
    monkeypatch.setattr(trial, "PATIENCE_SECONDS", 0.1)
    one = trials(seconds=60.0)
    thread = threading.Thread(target=_ended, args=(one,))
    thread.start()
    while not one._busy:
        time.sleep(0.01)
    check(one, models.scale())
    assert thread.is_alive()
    one.close()
    thread.join(20)


#: A process for trials that loads nothing: a model whose name begins with "endless" is never answered.
SLEEPING = """
import json, struct, sys, time
print("ready", flush=True)
while head := sys.stdin.buffer.read(4):
    head = json.loads(sys.stdin.buffer.read(*struct.unpack("<I", head)))
    for size in head["sizes"]:
        sys.stdin.buffer.read(size)
    if head["fields"]["model"].startswith("endless"):
        time.sleep(600)
    print('["", ""]', flush=True)
"""


def test_eight_loads_without_end_keep_no_other_waiting(trials, models, monkeypatch):
    monkeypatch.setattr(trial, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(children, "python", lambda *_: [sys.executable, "-I", "-S", "-c", SLEEPING])
    one = trials(seconds=60.0)

    async def load() -> None:
        with ThreadPoolExecutor(1) as executor:
            loader = Loader(OPTIONS, executor, one)

            def begin(name: str) -> asyncio.Task:
                folder = SentFolder(name, {"1/model.onnx": models.scale()})
                return asyncio.create_task(loader.load_versions(folder, mc.ModelConfig(), {1: ""}, True))

            endless = [begin(f"endless {number}") for number in range(8)]
            while len(one._busy) < 8:
                assert not any(task.done() for task in endless)
                await asyncio.sleep(0.01)
            for name in ("a", "b"):
                loaded, failures = await asyncio.wait_for(begin(name), 50)
                assert (list(loaded), failures) == ([1], {})
            assert not any(task.done() for task in endless)
            assert len(one._busy) == 8
            loader.close()
            for ended in await asyncio.gather(*endless, return_exceptions=True):
                assert isinstance(ended, Unavailable)

    asyncio.run(asyncio.wait_for(load(), 50))


def test_of_several_loads_that_need_too_much_together_the_largest_is_ended(trials, monkeypatch):
    """Each may have 2 GiB; together they have no more than one may have, or than the server has room for."""
    monkeypatch.setattr(trial, "PATIENCE_SECONDS", 0.1)
    looked: Counter[int] = Counter()

    def resident(pid: int) -> int:
        looked[pid] += 1
        return (
            (100 << 20) if looked[pid] == 1 else (1000 << 20) if pid == min(looked, key=started.index) else (1500 << 20)
        )

    started: list[int] = []
    real = subprocess.Popen

    def start(*arguments, **options):
        process = real(*arguments, **options)
        started.append(process.pid)
        return process

    monkeypatch.setattr(trial.subprocess, "Popen", start)
    monkeypatch.setattr(trial.children, "resident_bytes", resident)
    one = trials(seconds=60.0)
    first = threading.Thread(target=_ended, args=(one,))
    first.start()
    wait_until(lambda: looked and max(looked.values()) > 3)
    with pytest.raises(LoadError, match="the models that load now need more memory together than there is"):
        check(one, ENDLESS)
    assert first.is_alive()
    one.close()
    first.join(20)


def test_a_trial_waits_until_the_others_leave_it_memory():
    memory, order, small = TrialMemory(), [], 0
    total = 3 * PROCESS_BYTES
    with memory.place("first", small, total), memory.place("second", small, total):
        assert not memory.too_much("first", 2 * PROCESS_BYTES)

        def third():
            with memory.place("third", small, total):
                order.append("third")

        waiting = threading.Thread(target=third)
        waiting.start()
        waiting.join(0.2)
        order.append("second ends")
    waiting.join(20)
    assert order == ["second ends", "third"]
    with memory.place("alone", 10 * total, total):
        assert not memory.too_much("alone", 100 * total)  # its own limit ends it


def test_a_large_model_that_needs_what_was_expected_ends_no_small_one_beside_it():
    memory, large = TrialMemory(), 40 * PROCESS_BYTES
    total = 10 * large
    with memory.place("small", 0, 2 * PROCESS_BYTES), memory.place("large", large, total):
        assert not memory.too_much("large", 3 * large)
        assert not memory.too_much("small", PROCESS_BYTES + 1)
        assert memory.too_much("large", total + 1 - PROCESS_BYTES)
        assert not memory.too_much("small", PROCESS_BYTES + 1)


def test_a_trial_ends_with_the_process_that_wanted_it():
    script = (
        "import os, subprocess, sys, time\n"
        "from normfold.serving.process import children\n"
        "loops = 'import sys; from normfold.serving.process import children; children.end_with(int(sys.argv[1]));"
        " print(1, flush=True); [None for _ in iter(int, 1)]'\n"
        "child = subprocess.Popen([sys.executable, '-c', loops, str(os.getpid())], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=children.environment()
    )
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    end = time.monotonic() + 20
    while _runs(pid):
        assert time.monotonic() < end
        time.sleep(0.01)


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_other_models_load_and_answer_while_one_never_ends(serve, tmp_path, models, ask, frontend):
    models.write(tmp_path / "m", models.scale())
    models.write(tmp_path / "endless", ENDLESS)
    with serve(tmp_path, load_models=("m",), load_seconds=30.0, frontend=frontend) as server:
        load = server.channel.unary_unary(
            "/inference.GRPCInferenceService/RepositoryModelLoad",
            request_serializer=lambda message: message.SerializeToString(),
        ).future(pb.RepositoryModelLoadRequest(model_name="endless"), timeout=60)
        states: set[str] = set()
        while "LOADING" not in states:
            assert not load.done()
            states = {row.state for row in server.call("RepositoryIndex", pb.RepositoryIndexRequest()).models}
        with pytest.raises(grpc.RpcError) as caught:
            server.infer(ask("endless"))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        server.call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="m"))
        assert server.infer(ask("m")).model_name == "m"
        assert server.call("ServerReady", pb.ServerReadyRequest()).ready
        assert not load.done()
        server.on_loop(server.server.shut_down())
        with pytest.raises(grpc.RpcError) as caught:
            load.result()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
