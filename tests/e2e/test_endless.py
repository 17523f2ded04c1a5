"""A load or a run without end in a real server: the other models answer, and signals are followed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import grpc
import numpy as np
import pytest
from benches.ports import free_port
from tests.waiting import wait_until

from normfold.protos import grpc_service as pb
from normfold.serving.load.processes import tree

from .conftest import HEAD, SCALE, write_model

TRIAL = b"normfold.serving.catalog.trial_process"
LOOP = """
    go = Constant <value = bool {1}> ()
    y = Loop (trips, go, x) <body = b (int64 i, bool c, float[N,4] a) => (bool d, float[N,4] e) {
      d = Identity (c)
      e = Neg (a)
    }>
}"""
ENDLESS = HEAD + "g (float[N,4] x) => (float[N,4] y) { trips = Constant <value = int64 {1000000000000}> ()" + LOOP
TRIPS = HEAD + "g (float[N,4] x, int64[1] n) => (float[N,4] y) { trips = Squeeze (n)" + LOOP


class Starting:
    """``normfold serve`` from its first moment, on a port that is known."""

    def __init__(self, repository, *options):
        self.address = f"127.0.0.1:{free_port()}"
        command = ["-m", "normfold", "serve", "--repository", str(repository), "--listen", self.address, *options]
        # A file and no pipe: nobody reads it before the end.
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  closed with the server
        self.process = subprocess.Popen([sys.executable, *command], stdout=self._log, stderr=subprocess.STDOUT)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._log.close()

    def ended(self):
        """Wait until the server has ended; all that it printed."""
        self.process.wait(120)
        self._log.seek(0)
        return self._log.read()

    def trials(self):
        """The processes that try a load, whose parents may have ended."""
        return [pid for pid in tree([self.process.pid]) if _runs(pid, TRIAL)]

    def infer(self, model):
        """The status and the details of an inference; OK for an answer."""
        with connected(self.address) as infer:
            try:
                infer(request(model), timeout=60)
            except grpc.RpcError as error:
                return error.code(), error.details()
        return grpc.StatusCode.OK, ""


@contextlib.contextmanager
def connected(address):
    """ModelInfer, on a connection of its own."""
    with grpc.insecure_channel(address, options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
        yield channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer", request_serializer=lambda message: message.SerializeToString()
        )


def request(model, **inputs):
    message = pb.ModelInferRequest(model_name=model)
    for name, array in {"x": np.ones((1, 4), np.float32), **inputs}.items():
        datatype = "INT64" if array.dtype == np.int64 else "FP32"
        message.inputs.add(name=name, datatype=datatype, shape=array.shape)
        message.raw_input_contents.append(array.tobytes())
    return message


def _runs(pid, command):
    try:
        return command in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@pytest.fixture
def own(tmp_path):
    write_model(tmp_path / "m", SCALE.replace("FACTOR", "2.0"))
    write_model(tmp_path / "endless", ENDLESS)
    return tmp_path


@pytest.mark.parametrize("many", ["1", "2"])
def test_a_load_without_end_is_unavailable_and_then_a_reason_while_the_others_answer(own, many):
    with Starting(own, "--workers", many, "--load-seconds", "4") as server:
        seen = {name: [] for name in ("m", "endless")}

        def ended():
            for name, answers in seen.items():
                answers.append(server.infer(name))
            return seen["endless"][-1][0] is grpc.StatusCode.NOT_FOUND

        wait_until(ended)
        assert "took longer than 4 s; --load-seconds allows more" in seen["endless"][-1][1]
        assert {status for status, _ in seen["endless"][:-1]} == {grpc.StatusCode.UNAVAILABLE}
        statuses = [status for status, _ in seen["m"]]
        assert statuses == sorted(statuses, key=lambda status: status is grpc.StatusCode.OK)
        assert set(statuses) <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.OK}
        wait_until(lambda: server.infer("m")[0] is grpc.StatusCode.OK)
        server.process.terminate()
        output = server.ended()
    assert server.process.returncode == 0
    assert output.splitlines()[-1] == "stopped"


@pytest.mark.parametrize("many", ["1", "2"])
def test_a_signal_during_a_load_is_followed_at_once(own, many):
    with Starting(own, "--workers", many, "--drain-delay", "600") as server:
        trials = wait_until(server.trials)
        server.process.terminate()
        output = server.ended()
    assert server.process.returncode == 0, output
    assert output.splitlines()[-1] == "stopped"
    assert "Traceback" not in output
    wait_until(lambda: not any(_runs(pid, TRIAL) for pid in trials))


@pytest.fixture
def running(start, tmp_path, many):
    """A server with a run without end."""
    write_model(tmp_path / "trips", TRIPS)

    def begin(grace):
        return start(tmp_path, "--workers", many, "--grace-seconds", str(grace))

    return begin


@contextlib.contextmanager
def asking(server):
    """A call whose run never ends, once the run has begun."""
    with connected(server.address) as infer:
        infer(request("trips", n=np.array([1])), timeout=60)
        spent = _cpu_seconds(server)
        call = infer.future(request("trips", n=np.array([10**11])))
        wait_until(lambda: _cpu_seconds(server) > spent + 0.3)
        yield call


def _cpu_seconds(server):
    total = 0
    for pid in tree([server.process.pid]):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("many", ["1", "2"])
def test_a_run_without_end_ends_with_the_grace(running):
    with running(1) as server, asking(server) as call:
        assert server.stop() == 1
        with pytest.raises(grpc.RpcError):
            call.result(30)
    assert server.lines[-1] == "Error: stopped with requests unanswered after 1 s"


@pytest.mark.parametrize("many", ["1", "2"])
def test_a_second_signal_ends_a_run_without_end_at_once(running, many):
    with running(600) as server, asking(server):
        below = tree([server.process.pid])
        server.process.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(1)
        assert server.stop() == (1 if many == "2" else -signal.SIGTERM)
        wait_until(lambda: not any(_runs(pid, b"normfold") for pid in below))
