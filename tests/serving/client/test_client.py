"""Client and AsyncClient: what they take, what they say of a mistake, and what they ask the server for."""

from __future__ import annotations

import asyncio
import copy
import pickle

import grpc
import numpy as np
import pytest

from normfold.protos import grpc_service as pb
from normfold.serving.client import client as sync
from normfold.serving.client.arguments import LONGEST_SECONDS
from normfold.serving.client.async_client import AsyncClient
from normfold.serving.client.calls import arrays, labelled
from normfold.serving.client.client import Client, ClientError
from normfold.serving.client.connection import ClientTls
from normfold.serving.client.errors import advised
from normfold.serving.client.metadata import ModelMetadata, TensorMetadata
from normfold.serving.client.plans import MessagePlans
from normfold.serving.client.transport.choice import TRANSPORTS
from normfold.serving.errors import Status

X = np.array([[1, 2, 3, 4]], np.float32)


class Async:
    """An AsyncClient with the methods of a Client."""

    def __init__(self, address: str, **options) -> None:
        self.address, self.options = address, options

    def __getattr__(self, name):
        async def ask(*arguments, **options):
            async with AsyncClient(self.address, **self.options) as client:
                return await getattr(client, name)(*arguments, **options)

        return lambda *arguments, **options: asyncio.run(asyncio.wait_for(ask(*arguments, **options), 60))


@pytest.fixture(params=TRANSPORTS)
def transport(request):
    return request.param


@pytest.fixture(params=["blocking", "async", "stream"])
def client(server, request, transport):
    if request.param == "blocking":
        with Client(server.server.address, transport=transport) as one:
            yield one
    else:
        yield Async(server.server.address, stream=request.param == "stream", transport=transport)


def test_the_numbers_of_an_answer_are_read_only_and_a_copy_of_them_is_not(client):
    answer = client.infer("m", X)["y"]
    with pytest.raises(ValueError, match="read-only"):
        answer += 1
    answer = answer.copy()
    answer += 1


@pytest.mark.parametrize("x", [X, X.tolist(), [[1, 2, 3, 4]], ((1, 2, 3, 4),)])
def test_an_array_without_a_name_is_the_only_input_and_a_list_gets_the_models_datatype(client, x):
    np.testing.assert_array_equal(client.infer("m", x, version=1)["y"], 2 * X)
    np.testing.assert_array_equal(client.infer("m", {"x": x}, "y", version="1")["y"], 2 * X)
    assert [[one.label for one in row] for row in client.classify("m", x, top=2)] == [["d", "c"]]


@pytest.mark.parametrize("x", [{"x": X}, {"x": X.tolist()}], ids=["planned", "protobuf"])
def test_the_answer_tells_which_version_answered(client, x):
    for version, asked in (("1", 1), ("2", "")):
        answer = client.infer("m", x, version=asked)
        assert (answer.model, answer.version) == ("m", version)
    copied = copy.deepcopy(answer)  # as pickle does it
    assert (copied.model, copied.version, list(copied)) == ("m", "2", list(answer))


def test_text_in_a_list_is_text(client):
    assert client.infer("text", [["é", b"b"]])["y"].tolist() == [["é".encode(), b"b"]]


def test_an_array_for_a_model_of_several_inputs_is_refused_with_their_names(client):
    with pytest.raises(ValueError, match=r"'two' has 2 inputs: a FP32\[-1,4\], b FP32\[-1,4\]; give a dict .*'a': …"):
        client.infer("two", X)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (None, "the input is None"),
        ({"x": None}, "the input is None"),
        ({"x": np.array([[1, None, 3, 4]])}, r"'x' holds None \(null\)"),
        ({"x": np.array([[1, 2], [3]], object)}, "array of objects: it holds list, and only text"),
        ({"x": np.array([[1, 2, 3, 4]], object)}, r"x\.astype\('float32'\)"),
        ({"x": [[1, 2, 3, 4], [1, 2]]}, "its rows have different lengths"),
        ({"x": X.astype(complex)}, "dtype complex128, which the protocol has no name for"),
        ({"x": np.ma.masked_equal(X, 2)}, r"masked array.*x\.filled\(0\)"),
        ({"x": [["1", "2", "3", "4"]]}, "'x' is not FP32: it holds text"),
        ({0: X}, "the key 0 is not the name of an input"),
    ],
)
def test_what_is_no_tensor_is_refused_before_it_is_sent(client, inputs, said):
    with pytest.raises(ValueError, match=said):
        client.infer("m", inputs)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"version": "latest"}, "version 'latest' is not a number from 1 up; leave it out"),
        ({"version": "9" * 5000}, "is not a number from 1 up; leave it out"),
        ({"version": -1}, "version -1 is not"),
        ({"version": True}, "version True is not"),
        ({"timeout": 0}, "timeout 0 is not a number of seconds above 0"),
        ({"timeout": "5"}, "timeout '5' is not"),
        ({"timeout": -1e300}, "is not a number of seconds above 0"),
        ({"timeout": float("nan")}, "timeout nan is not"),
        ({"timeout": True}, "timeout True is not"),
        ({"timeout": np.array([5.0])}, r"timeout array\(\[5.\]\) is not"),
        ({"outputs": [1]}, "1 is not the name of an output"),
        ({"outputs": 3}, r"outputs 3 is not a list of names: give the names of outputs, such as \['y'\]"),
        ({"outputs": ["\ud800"]}, r"output '\\ud800' cannot be sent: its character 0"),
        ({"request_id": 5}, "request_id 5 is not a text: give a str, such as '5'"),
        (
            {"request_id": "a\ud800"},
            r"request_id 'a\\ud800' cannot be sent: its character 1, '\\ud800', is half of one",
        ),
    ],
)
def test_a_wrong_argument_is_refused_before_it_is_sent(client, options, said):
    with pytest.raises(ValueError, match=said):
        client.infer("m", {"x": X}, **options)


def test_a_version_to_put_in_service_that_is_no_number_is_refused_before_anything_is_asked(client):
    with pytest.raises(ValueError, match="version 'latest' is not a number such as 1"):
        client.use("not in the repository", "latest")


@pytest.mark.parametrize("x", [X, X.astype(">f4")], ids=["little", "big"])
def test_the_names_of_outputs_may_come_from_a_generator(client, x):
    assert list(client.infer("m", {"x": x}, (name for name in ["z"]), version=1)) == ["z"]


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda client: client.infer("\ud800", X), r"model '\\ud800' cannot be sent: .* give the whole character"),
        (lambda client: client.infer("m", {"\ud800": X}), r"input '\\ud800' cannot be sent"),
        (lambda client: client.infer("m", {"\ud800": X.astype(">f4")}), r"input '\\ud800' cannot be sent"),
        (lambda client: client.infer("text", [["a", "\ud800"]]), r"input 'x': the text '\\ud800' cannot be sent"),
        (lambda client: client.model_metadata("\udfff"), "cannot be sent"),
        (lambda client: client.load("m", {"backend": "x"}), r"config is a dict, not a text: .* json\.dumps\(config\)"),
        (lambda client: client.load("m", "\ud800"), "config .* cannot be sent"),
        (lambda client: client.call(5, pb.ServerLiveRequest(), pb.ServerLiveResponse), "method 5 is not the name"),
        (lambda client: client.call("\ud800", pb.ServerLiveRequest(), pb.ServerLiveResponse), "is not the name"),
    ],
)
def test_a_text_that_cannot_be_sent_is_refused_in_words(client, ask, said):
    with pytest.raises(ValueError, match=said):
        ask(client)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tls": True}, r"tls True is not a ClientTls: write tls=ClientTls\(\) .* or tls=ClientTls\(ca='ca.pem'\)"),
        ({"tls": False}, "leave it out to connect in plain text"),
        ({"tls": "ca.pem"}, r"for a file of certificates write tls=ClientTls\(ca='ca.pem'\)"),
        ({"tls": ClientTls(ca=5)}, "ca .* 5 cannot be read"),
        ({"tls": ClientTls(server_name=5)}, "server_name 5 is not the name of a host"),
        ({"address": "h\ud800:1"}, "address .* cannot be sent"),
    ],
)
def test_a_wrong_option_of_a_client_is_refused_in_words(kind, transport, options, said):
    with pytest.raises(ValueError, match=said):
        kind(**{"address": "127.0.0.1:1", "transport": transport, **options})


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_client_that_goes_to_another_process_says_what_to_do(kind, transport):
    with pytest.raises(TypeError, match=f"{kind.__name__} has connections, .* make one in each process"):
        pickle.dumps(kind("127.0.0.1:1", transport=transport))


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_class_of_the_callers_own_says_how_it_is_pickled(kind):
    class Own(kind):  # type: ignore[misc]
        def __getstate__(self):
            return self.address

    assert Own("127.0.0.1:1").__reduce_ex__(pickle.HIGHEST_PROTOCOL)[2] == "127.0.0.1:1"


@pytest.mark.parametrize("timeout", [1e9, float("inf"), 1e300, 10**400, np.float32(30), np.int64(30)], ids=str)
def test_a_timeout_that_means_none_is_none_and_a_number_of_numpy_is_a_number(client, timeout):
    for x in (X, {"x": X}):
        np.testing.assert_array_equal(client.infer("m", x, version=1, timeout=timeout)["y"], 2 * X)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_client_takes_the_same_timeouts_as_its_calls(kind, transport):
    assert kind("127.0.0.1:1", transport=transport, timeout=np.float32(5), keepalive=np.float32(9)).timeout == 5.0
    longest = [kind("127.0.0.1:1", transport=transport, timeout=long).timeout for long in (float("inf"), 10**400)]
    assert longest == [LONGEST_SECONDS] * 2
    with pytest.raises(ValueError, match="timeout nan is not a number of seconds above 0"):
        kind("127.0.0.1:1", transport=transport, timeout=float("nan"))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("timeout", [-1, "5", float("nan")])
def test_a_bad_timeout_of_the_first_call_does_not_spoil_the_next(server, transport, stream, timeout):
    async def ask():
        async with AsyncClient(server.server.address, transport=transport, stream=stream) as client:
            with pytest.raises(ValueError, match="is not a number of seconds above 0"):
                await client.infer("m", X, timeout=timeout)
            return await client.infer("m", X, version=1)

    np.testing.assert_array_equal(asyncio.run(asyncio.wait_for(ask(), 60))["y"], 2 * X)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_and_its_turns_are_used_on_one_event_loop_after_another(server, transport, stream):
    client = AsyncClient(server.server.address, in_flight=1, transport=transport, stream=stream)

    async def ask():
        return await asyncio.gather(*(client.infer("m", X, version=1) for _ in range(5)))

    for _ in range(2):
        assert len(asyncio.run(asyncio.wait_for(ask(), 60))) == 5


@pytest.mark.parametrize("top", [0, -1, 1.5, True, "3"])
def test_a_number_of_classes_is_at_least_one(client, top):
    with pytest.raises(ValueError, match="is not a number of classes: give 1 or more"):
        client.classify("m", X, top=top)


@pytest.mark.parametrize("model", ["", None, 5, ["m"]])
def test_a_model_has_a_name(client, model):
    with pytest.raises(ValueError, match="is not a name; give the name of a served model"):
        client.infer(model, {"x": X})
    with pytest.raises(ValueError, match="is not a name"):
        client.classify(model, X, top=1)


def test_an_array_in_the_wrong_place_is_not_the_whole_message(client):
    large = np.ones((30, 30), np.float32)
    with pytest.raises(ValueError, match="is not a name") as swapped:
        client.infer({"x": large}, "m")
    with pytest.raises(ValueError, match="is not a number of classes") as no_top:
        client.classify("m", X, top=large)
    with pytest.raises(ValueError, match="is not a number from 1 up") as no_version:
        client.infer("m", X, version=large)
    assert all(len(str(raised.value)) < 250 for raised in (swapped, no_top, no_version))


@pytest.mark.parametrize(
    ("model", "inputs", "cure"),
    [
        ("m", {"x": X.astype(np.float64)}, "use x.astype('float32')"),
        ("m", {"x": X.T}, "transposed? x.swapaxes(-1, -2) has the shape [1, 4], which fits"),
        ("m", {"x": X[0]}, "without the axis of the batch? x[None] has the shape [1, 4], which fits"),
        ("m", {"x": X[None, :1]}, "an axis too many? x[0] has the shape [1, 4], which fits"),
        ("m", {"x": np.array([["a", "b", "c", "d"]])}, "the input holds text, and the model takes numbers"),
        ("f16", {"x": np.ones((1, 2), np.float32)}, "use x.astype('float16')"),
        ("f16", {"x": np.zeros((1, 2), "V2")}, "use x.view(ml_dtypes.bfloat16).astype('float16')"),
        ("text", {"x": np.ones((1, 2), np.float32)}, "the model takes text: an array of str or bytes"),
    ],
)
def test_a_refused_array_comes_back_with_its_cure_and_without_the_note_on_configurations(client, model, inputs, cure):
    with pytest.raises(ClientError) as raised:
        client.infer(model, inputs)
    assert raised.value.status is grpc.StatusCode.INVALID_ARGUMENT
    assert raised.value.details.endswith(f"; {cure}")
    assert "NOTE" not in raised.value.details
    assert "id_unknown" not in raised.value.details


def test_a_shape_that_no_change_makes_fit_keeps_the_servers_words():
    request = pb.ModelInferRequest()
    request.inputs.add(name="x", datatype="FP32", shape=[8, 250, 3])
    metadata = ModelMetadata("m", (), "", (TensorMetadata("x", "FP32", (-1, 2, -1)),), ())
    error = ClientError(grpc.StatusCode.INVALID_ARGUMENT, "no. NOTE: x")
    assert advised(error, request, metadata) is error
    request.inputs[0].shape[2] = 2
    assert advised(error, request, metadata).details == (
        "no; transposed? x.swapaxes(-1, -2) has the shape [8, 2, 250], which fits"
    )
    request.inputs[0].shape[:] = [250, 2]
    assert "x.swapaxes(-1, -2)[None] has the shape [1, 2, 250]" in advised(error, request, metadata).details


def test_the_metadata_is_asked_for_once_and_again_after_a_refusal(server, monkeypatch):
    asked = []
    honest = sync.Client._send
    monkeypatch.setattr(
        sync.Client, "_send", lambda self, method, *rest: (asked.append(method), honest(self, method, *rest))[1]
    )
    with Client(server.server.address) as client:
        client.infer("m", {"x": X})
        for _ in range(3):
            client.infer("m", X)
        assert asked == ["ModelMetadata"] + 4 * ["ModelInfer"]
        with pytest.raises(ClientError):
            client.infer("m", X[:, :3])
        client.infer("m", X)
        assert asked[5:] == ["ModelInfer", "ModelMetadata", "ModelInfer"]


def test_many_calls_at_once_ask_for_the_metadata_once(server, monkeypatch):
    asked = []
    honest = AsyncClient._send

    async def counted(self, method, *rest):
        asked.append(method)
        return await honest(self, method, *rest)

    async def ask():
        async with AsyncClient(server.server.address) as client:
            with pytest.raises(ClientError):
                await client.infer("nope", X)
            first = asyncio.create_task(client.infer("m", X))
            await asyncio.sleep(0)
            others = [asyncio.create_task(client.infer("m", i * X, version="")) for i in range(20)]
            await asyncio.sleep(0)
            first.cancel()
            return await asyncio.gather(*others)

    monkeypatch.setattr(AsyncClient, "_send", counted)
    for i, answer in enumerate(asyncio.run(asyncio.wait_for(ask(), 60))):
        np.testing.assert_array_equal(answer["z"], -i * X)
    assert asked.count("ModelMetadata") == 2  # of 'nope' and of 'm'


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://127.0.0.1:8001", "leave out http://, an address is host:port: '127.0.0.1:8001'"),
        ("https://example.org/v2", "leave out https://, an address is host:port: 'example.org:8001'"),
        ("127.0.0.1", "it has no port.*'127.0.0.1:8001'"),
        ("8001", "it has no host, such as '127.0.0.1:8001'"),
        ("unix:", "'unix:' ends after unix:, expected a place, such as unix:/run/server.sock"),
        ("dns:///", "ends after dns:, expected a place"),
        ("127.0.0.1:99999", "'99999' is not a port from 1 to 65535"),
        ("127.0.0.1:0", "'0' is not a port"),
        (f"127.0.0.1:{'9' * 5000}", "is not a port from 1 to 65535"),
        ("127.0.0.1:http", "'http' is not a port"),
        (":8001", "it has no host, such as '127.0.0.1:8001'"),
        ("::1", r"in brackets: '\[::1\]:8001'"),
        ("::1:9001", r"in brackets: '\[::1\]:9001', or '\[::1:9001\]:8001'$"),
        ("1:2:3:4:5:6:7:8", r"in brackets: '\[1:2:3:4:5:6:7:8\]:8001'$"),
        ("::1:99999", "'99999' is not a port from 1 to 65535$"),
        ("1.2.3.4:5:6", "is not host:port: '1.2.3.4:5' is no host$"),
        ("a:1,b:2", "several places.*write 'ipv4:a:1,b:2'.*a balancer in front of them"),
        ("[::1]:1, [::2]:2", r"several places.*write 'ipv6:\[::1\]:1,\[::2\]:2'"),
        ("dns:///a:1,b:2", "several places.*write 'ipv4:a:1,b:2'"),
        ("", "is not host:port"),
        (None, "is not host:port"),
    ],
)
def test_an_address_that_grpc_would_misread_is_refused(kind, address, said):
    with pytest.raises(ValueError, match=said):
        kind(address)


@pytest.mark.parametrize(
    "address", ["localhost:1", "[::1]:8001", "unix:/run/x", "dns:///a:1", "ipv4:127.0.0.1:1,127.0.0.2:1"]
)
def test_the_targets_that_grpc_reads_are_taken(address):
    with Client(address) as client:
        assert client.address == address


def test_a_host_that_no_one_knows_is_said():
    with (
        Client("no-such-host.invalid:8001", timeout=20) as client,
        pytest.raises(ClientError, match=r"the host in no-such-host\.invalid:8001 is not known here"),
    ):
        client.is_live()


def test_scores_from_a_server_that_does_not_classify_are_said():
    scores = pb.ModelInferResponse(raw_output_contents=[np.ones(3, np.float32).tobytes()])
    scores.outputs.add(name="y", datatype="FP32", shape=[1, 3])
    with pytest.raises(ClientError, match="it does not classify; call infer") as raised:
        labelled(scores, "y")
    assert raised.value.status is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(("datatype", "raw"), [("FP33", b"\0\0\0\0"), ("FP32", b"\0"), ("BYTES", b"\xff\0\0\0")])
def test_an_answer_that_cannot_be_read_is_an_error_that_names_the_output(datatype, raw):
    response = pb.ModelInferResponse(raw_output_contents=[raw])
    response.outputs.add(name="y", datatype=datatype, shape=[1])
    with pytest.raises(ClientError, match=rf"output 'y' {datatype}\[1\] cannot be read"):
        arrays(response)


@pytest.mark.parametrize(
    ("datatype", "shape", "contents", "raw"),
    [
        ("INT8", [1], {"int_contents": [300]}, []),
        ("UINT16", [1], {"uint_contents": [70_000]}, []),
        ("FP16", [1], {"fp32_contents": [1.0]}, []),
        ("BF16", [1], {}, []),
        ("FP32", [1 << 62, 1 << 62, 0], {}, [b""]),
        ("FP32", [1] * 65, {}, [b"1234"]),
        ("BYTES", [1 << 40], {}, [b""]),
        ("BYTES", [1 << 32, 1 << 32], {}, [b""]),
    ],
    ids=str,
)
def test_an_answer_whose_numbers_or_shape_no_array_can_have_is_an_error_that_names_the_output(
    datatype, shape, contents, raw
):
    response = pb.ModelInferResponse(raw_output_contents=raw)
    output = response.outputs.add(name="y", datatype=datatype, shape=shape)
    for field, values in contents.items():
        getattr(output.contents, field).extend(values)
    with pytest.raises(ClientError, match=rf"output 'y' {datatype}\[.*\] cannot be read"):
        MessagePlans().arrays(response.SerializeToString())


@pytest.mark.parametrize("status", [grpc.StatusCode.NOT_FOUND, Status.NOT_FOUND])
def test_an_error_survives_a_process_pool_and_has_its_status_with_and_without_grpcio(status):
    error = pickle.loads(pickle.dumps(ClientError(status, "no")))  # noqa: S301  it was made here
    assert (error.status, error.details, str(error)) == (grpc.StatusCode.NOT_FOUND, "no", "NOT_FOUND: no")
    assert error.status is grpc.StatusCode.NOT_FOUND
    assert error.code is Status.NOT_FOUND
