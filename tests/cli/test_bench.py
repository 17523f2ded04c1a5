"""The bench command against real servers: what it prints, what it writes, how it exits."""

from __future__ import annotations

import datetime
import json
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from click.testing import CliRunner

from normfold.cli import png
from normfold.cli.bench import bench
from normfold.cli.bench_picture import drawing
from normfold.processor import processor_name
from normfold.protos import grpc_service as pb
from normfold.serving.load.generator import Load, Slice
from normfold.serving.load.histogram import Histogram
from normfold.serving.load.rounds import Target

FEW = ["--seconds", "0.3", "--rounds", "2"]
IN_FLIGHT = ["--in-flight", "1,4", *FEW]


@pytest.fixture(scope="module")
def make_server():
    """Starts servers that take x FP32[-1,4], and fail every n-th inference if asked to; gives the address."""
    servers = []

    def start(failing=0, slow=0.0, status=grpc.StatusCode.RESOURCE_EXHAUSTED, asked_for_a_while=None):
        count = iter(range(10**9))
        begun = []

        def infer(data, context):
            if asked_for_a_while is not None:
                begun.append(time.monotonic())
                if begun[-1] > begun[0] + 2:  # seconds; a round of the test that waits for this has 0.2
                    asked_for_a_while.set()
            time.sleep(slow)
            number = next(count)
            if failing and number % failing == failing - 1:
                context.abort(status, "enough")
            return pb.ModelInferResponse(model_name="m").SerializeToString()

        def metadata(data, context):
            response = pb.ModelMetadataResponse(name=pb.ModelMetadataRequest.FromString(data).name)
            response.inputs.add(name="x", datatype="FP32", shape=[-1, 4])
            return response.SerializeToString()

        server = grpc.server(ThreadPoolExecutor(4))
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(function)
            for name, function in (("ModelInfer", infer), ("ModelMetadata", metadata))
        }
        service = grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers)
        server.add_generic_rpc_handlers((service,))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None).wait()


@pytest.fixture(scope="module")
def address(make_server):
    return make_server()


def run(*arguments):
    return CliRunner().invoke(bench, [str(one) for one in arguments])


def test_the_table_has_a_row_for_each_load_and_the_exit_code_is_0(address):
    result = run(address, "-m", "m", *IN_FLIGHT, "--rate", "50")
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines()]
    assert [row[0] for row in rows[1:4]] == ["1", "4", "50/s"]
    assert rows[0][:6] == ["load", "p50", "p90", "p99", "p99.9", "max"]
    assert (rows[0][-1], [row[-1] for row in rows[1:4]]) == ("failed", ["0", "0", "0"])


def test_json_has_every_figure_of_every_round(address):
    result = run(address, "-m", "m", *IN_FLIGHT, "--json")
    (server,) = json.loads(result.stdout)["servers"]
    assert server["address"] == address
    for load, in_flight in zip(server["loads"], (1, 4), strict=True):
        assert load["in_flight"] == in_flight
        assert len(load["rounds"]) == 2
        assert sum(one["answered"] for one in load["rounds"]) == load["answered"] > 0
        assert sum(count for _, count in load["histogram_ns"]) == load["answered"]
        assert load["p50_ms"] <= load["p99_ms"] <= load["p99.9_ms"] <= load["max_ms"]
        assert load["server_cpu_us"] > 0  # the server is this very process


def test_two_servers_are_compared(address, make_server):
    result = run(address, make_server(slow=0.02), "-m", "m", *FEW, "--in-flight", "1", "--json")
    fast, slow = json.loads(result.stdout)["servers"]
    assert fast["loads"][0]["p50_ms"] < 20 <= slow["loads"][0]["p50_ms"]
    table = run(address, make_server(slow=0.02), "-m", "m", *FEW, "--in-flight", "1").stdout
    assert f"over {address}, median of the rounds" in table


def test_failed_requests_are_counted_by_status_and_end_with_code_3(make_server):
    result = run(make_server(failing=5), "-m", "m", *FEW, "--in-flight", "1")
    assert result.exit_code == 3
    assert "requests failed with RESOURCE_EXHAUSTED" in result.stdout


@pytest.mark.parametrize("suffix", ["svg", "html"])
def test_the_picture_is_a_file_that_needs_no_other(address, tmp_path, suffix):
    out = tmp_path / f"report.{suffix}"
    assert run(address, "-m", "m", *IN_FLIGHT, "--out", out).exit_code == 0
    text = out.read_text(encoding="utf-8")
    svg = ElementTree.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])
    names = [element.tag.rpartition("}")[2] for element in svg.iter()]
    assert names.count("polyline") == 2  # p50 and p99
    assert names.count("circle") == 2  # a point for each load
    words = list(svg.itertext())
    assert words.count(f"Latency against throughput: {address}") == 1
    assert {"1 in flight", "4 in flight"} <= set(words)
    assert text.count("<td>0</td>") == (2 if suffix == "html" else 0)  # none failed
    assert "href" not in text
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_a_picture_as_png_has_the_text_of_the_drawing(address, tmp_path):
    out = tmp_path / "report.png"
    result = run(address, "-m", "m", *FEW, "--in-flight", "1", "--out", out)
    try:
        png._font()
    except LookupError:
        assert (result.exit_code, out.exists()) == (2, False)
        assert "install one, for example fonts-dejavu-core, or write" in result.output
        return
    assert result.exit_code == 0, result.output
    picture = out.read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert struct.unpack(">II", picture[16:24]) == (2 * 760, 2 * 460)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (
            lambda patch: patch.setitem(sys.modules, "resvg_py", None),
            "pip install 'normfold[png]', or write report.svg",
        ),
        (
            lambda patch: patch.setattr(png, "FONTS", ("No Such Font",)),
            "none of these fonts is installed: No Such Font",
        ),
    ],
    ids=["package", "font"],
)
def test_what_a_png_needs_is_missed_before_the_measurement(address, monkeypatch, missing, said):
    missing(monkeypatch)
    result = run(address, "-m", "m", "--seconds", "3600", "--out", "report.png")
    assert result.exit_code == 2
    assert said in result.output


def test_arrays_from_a_file_are_asked_with(address, tmp_path):
    np.savez(tmp_path / "in.npz", x=np.zeros((2, 4), np.float32))
    assert run(address, "-m", "m", *FEW, "--in-flight", "1", "-i", tmp_path / "in.npz").exit_code == 0
    (tmp_path / "bad.npz").write_text("no arrays")
    result = run(address, "-m", "m", "-i", tmp_path / "bad.npz")
    assert result.exit_code == 2
    assert "is not an .npz file" in result.output
    np.save(tmp_path / "one.npy", np.zeros((2, 4), np.float32))
    result = run(address, "-m", "m", "-i", tmp_path / "one.npy")
    assert result.exit_code == 2
    assert "it holds one array without a name; write np.savez(file, NAME=array)" in result.output


def test_a_picture_in_a_folder_that_is_missing_is_refused_before_anything_is_measured(tmp_path):
    result = run("127.0.0.1:1", "-m", "m", "--out", tmp_path / "nowhere" / "a.svg")  # no server is asked there
    assert result.exit_code == 2
    assert f"there is no folder {tmp_path / 'nowhere'}; make it first" in result.output


def test_arrays_of_another_datatype_are_refused_with_the_cure(make_server, tmp_path):
    np.savez(tmp_path / "in.npz", x=np.zeros((2, 4)))
    refusing = make_server(failing=1, status=grpc.StatusCode.INVALID_ARGUMENT)
    result = run(refusing, "-m", "m", *FEW, "-i", tmp_path / "in.npz")
    assert result.exit_code == 1
    assert "INVALID_ARGUMENT: enough; use x.astype('float32')" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--in-flight", "0"], "such as 1,4,16,64"),
        (["--in-flight", "1,x"], "such as 1,4,16,64"),
        (["--rate", "-1"], "such as 100,1000"),
        (["--shape", "x"], "is not NAME=SIZES"),
        (["--shape", "x=2,3"], "shape 2,3 does not fit any,4"),
        (["--shape", "z=1"], "has no input 'z'; it has x"),
        (["--out", "report.pdf"], "must end in .svg, .png or .html"),
        (["--server-pid", "1", "--server-pid", "2"], "give one each"),
        (["--server-pid", "999999999"], "no such process"),
        (["--seconds", "0.3", "--rounds", "50"], "below 0.1 s"),
    ],
)
def test_a_wrong_command_is_told_what_to_type(address, arguments, said):
    result = run(address, "-m", "m", *arguments)
    assert result.exit_code == 2
    assert said in result.output
    assert "Traceback" not in result.output


def test_an_address_where_nobody_listens_is_code_1_and_one_of_another_form_code_2(address):
    nobody = run("127.0.0.1:9", "-m", "m")
    assert nobody.exit_code == 1
    assert "no server answers at 127.0.0.1:9" in nobody.output
    for wrong in ("localhost", "http://localhost:8001", "localhost:99999", "dns:///localhost:8001"):
        assert run(wrong, "-m", "m").exit_code == 2
    assert "leave out http://" in run("http://localhost:8001", "-m", "m").output
    assert run(address, address, "-m", "m").exit_code == 2


def test_ctrl_c_prints_what_was_measured_until_then(make_server):
    asked = threading.Event()
    address = make_server(asked_for_a_while=asked)
    command = [sys.executable, "-m", "normfold", "bench", address, "-m", "m", "--json"]
    command += ["--in-flight", "1", "--seconds", "40", "--rounds", "200"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        assert asked.wait(120)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in errors
    (load,) = json.loads(out)["servers"][0]["loads"]
    assert 0 < len(load["rounds"]) < 200


def test_a_label_names_a_server_in_drawing_and_json(make_server, address, tmp_path):
    out = tmp_path / "report.svg"
    names = ("--label", "ours", "--label", "theirs & co")
    result = run(address, make_server(), "-m", "m", *FEW, "--in-flight", "1", *names, "--out", out, "--json")
    assert result.exit_code == 0
    svg = "".join(ElementTree.fromstring(out.read_text(encoding="utf-8")).itertext())
    assert "ours" in svg
    assert "theirs & co" in svg
    assert address not in svg
    assert f"CPUs ({processor_name()}); {datetime.date.today()}" in svg
    found = json.loads(result.stdout)["servers"]
    assert [server["label"] for server in found] == ["ours", "theirs & co"]
    assert found[0]["address"] == address
    refused = run(address, "-m", "m", "--label", "a", "--label", "b")
    assert "--label gives 2 names for 1 address; give one each" in refused.output


def test_the_axes_end_where_the_data_ends():
    load = Load(in_flight=1)
    one = Target("a", None)
    one.slices[load] = [Slice(answered=102, seconds=1.0, latencies=Histogram([2_000_000] * 99 + [40_000_000] * 3))]
    svg = drawing([one], [load], "t")
    marks = re.findall(r'text-anchor="(?:middle|end)" font-size="13">([0-9,.]+)<', svg)
    assert marks == ["0", "20", "40", "60", "80", "100", "2", "5", "10", "20"]
    assert re.search(r'<circle cx="730.0"', svg), "the point with the most requests is at the right end"
    assert "prefers-color-scheme:dark" in svg


def test_json_has_no_latency_where_no_call_was_answered():
    from normfold.cli.benching import _summary

    figures = _summary(Slice(seconds=1.0))
    assert {figures[name] for name in figures if name.endswith("_ms")} == {None}
    assert figures["per_second"] == 0
    assert _summary(Slice(latencies=Histogram([1_000_000]), answered=1, seconds=1.0))["p50_ms"] == pytest.approx(
        1.0, 0.01
    )
