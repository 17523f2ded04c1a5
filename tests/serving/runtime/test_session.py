"""Sessions, devices and threads: what is asked of onnxruntime and what it really gave."""

from __future__ import annotations

import contextlib
import weakref

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, parser

from normfold.protos.datatypes import by_name
from normfold.serving.errors import (
    ConfigError,
    DeviceUnavailable,
    InvalidRequest,
    LoadError,
    OutOfMemory,
    RuntimeMissing,
    StartError,
)
from normfold.serving.process.cpus import available_cpus, cgroup_quota
from normfold.serving.process.memory import allocated_bytes, resident_bytes
from normfold.serving.runtime import devices, limited_arena, placement
from normfold.serving.runtime.devices import CPU_PROVIDER, CUDA_PROVIDER, Device
from normfold.serving.runtime.session import Session
from normfold.serving.runtime.settings import ModelTensor, SessionSettings

CPU = Device("cpu")


def session(graph: str | bytes, settings: SessionSettings | None = None, device: Device = CPU) -> Session:
    data = graph if isinstance(graph, bytes) else parser.parse_model(graph).SerializeToString()
    return Session(data, device, settings or SessionSettings())


HEAD = '<ir_version: 9, opset_import: ["": 18]>'


def test_a_session_knows_what_the_file_declares(models):
    made = session(models.identity(TensorProto.FLOAT, ["N", 3, None]))
    assert made.inputs == (ModelTensor("x", by_name("FP32"), (-1, 3, -1)),)
    assert made.outputs == (ModelTensor("y", by_name("FP32"), (-1, 3, -1)),)
    assert made.device == "cpu"
    assert session(models.identity(TensorProto.FLOAT, None)).inputs[0].shape is None
    assert session(models.identity(TensorProto.FLOAT, [])).inputs[0].shape == ()


def test_an_input_with_a_default_is_optional():
    made = session(HEAD + " g (float[N] x, float[1] s) => (float[N] y) <float[1] s = {2.0}> { y = Mul (x, s) }")
    assert [(t.name, t.optional) for t in made.inputs] == [("x", False), ("s", True)]
    x = np.array([1, 2], np.float32)
    np.testing.assert_array_equal(made.run({"x": x}, ["y"])[0], 2 * x)
    np.testing.assert_array_equal(made.run({"x": x, "s": np.array([5], np.float32)}, ["y"])[0], 5 * x)


@pytest.mark.parametrize("shape", [(), (0, 3), (2, 2)])
@pytest.mark.parametrize("number", [TensorProto.BFLOAT16, TensorProto.FLOAT16, TensorProto.STRING])
def test_types_that_numpy_lacks_come_back_bit_for_bit(models, number, shape):
    made = session(models.identity(number, None))
    if number == TensorProto.STRING:
        x = np.empty(shape, object)
        x.fill(b"\xff\0z")
    else:
        dtype = np.float16 if number == TensorProto.FLOAT16 else np.uint16
        x = np.random.default_rng(0).integers(0, 0x7C00, shape).astype(np.uint16).view(dtype)
    (y,) = made.run({"x": x}, ["y"])
    assert y.shape == shape
    assert y.tolist() == x.tolist()
    assert y.dtype == x.dtype


def test_strings_and_bfloat16_go_into_one_model():
    made = session(
        HEAD.replace("18", "20")
        + """ g (string[N] s, bfloat16[N] b, float[N] f) => (string[N] t, float[N] c, float[N] d) {
            t = StringConcat (s, s)
            c = Cast <to: int = 1> (b)
            d = Neg (f)
        }"""
    )
    strings = np.array([b"a\xff", b"", b"\0"], object)
    feeds = {"s": strings, "b": np.array([0x3F80, 0xC000, 0], np.uint16), "f": np.float32([1, 2, 3])}
    t, c, d = made.run(feeds, ["t", "c", "d"])
    assert t.tolist() == [b"a\xffa\xff", b"", b"\0\0"]
    assert c.tolist() == [1, -2, 0]
    assert d.tolist() == [-1, -2, -3]


def test_strings_of_a_model_that_are_not_utf8_are_its_fault():
    model = parser.parse_model(HEAD + " g (int64[N] x) => (string[N] y) { y = Gather (texts, x) }")
    model.graph.initializer.append(helper.make_tensor("texts", TensorProto.STRING, [2], ["caf\xe9".encode(), b"\xff"]))
    made = session(model.SerializeToString())
    assert made.run({"x": np.int64([0, 0])}, ["y"])[0].tolist() == ["caf\xe9".encode()] * 2
    with pytest.raises(InvalidRequest, match="the model has strings or names that are not UTF-8"):
        made.run({"x": np.int64([0, 1])}, ["y"])


def test_an_error_of_a_node_whose_name_is_not_utf8_does_not_blame_the_answer():
    model = parser.parse_model(HEAD + " g (float[N] x, int64[1] s) => (float[M] y) { y = Reshape (x, s) }")
    model.graph.node[0].name = "node"
    made = session(model.SerializeToString().replace(b"\x1a\x04node", b"\x1a\x04n\xf6de"))
    with pytest.raises(InvalidRequest, match="the model has strings or names that are not UTF-8"):
        made.run({"x": np.ones(3, np.float32), "s": np.int64([5])}, ["y"])


def test_a_model_from_strings_to_bfloat16_is_a_load_error():
    graph = " g (string[N] s) => (bfloat16[N] b) { x = Cast <to: int = 1> (s) b = Cast <to: int = 16> (x) }"
    with pytest.raises(LoadError, match=r"'s' is BYTES and the output 'b' is BF16.*cast that output to FP32"):
        session(HEAD + graph)


def test_a_model_with_strings_that_have_a_default_answers_with_bfloat16():
    body = "b = Cast <to: int = 16> (x) t = Identity (s)"
    model = parser.parse_model(f"{HEAD} g (float[1] x, string[1] s) => (bfloat16[1] b, string[1] t) {{ {body} }}")
    model.graph.initializer.append(helper.make_tensor("s", TensorProto.STRING, [1], [b"default"]))
    made = session(model.SerializeToString())
    b, t = made.run({"x": np.float32([1])}, ["b", "t"])
    assert (b.tolist(), t.tolist()) == ([0x3F80], [b"default"])
    feeds = {"x": np.float32([1]), "s": np.array([b"sent"], object)}
    assert made.run(feeds, ["t"])[0].tolist() == [b"sent"]
    with pytest.raises(InvalidRequest, match="bfloat16"):  # onnxruntime cannot give both
        made.run(feeds, ["b"])


def test_a_bound_run_gives_the_answers_of_a_run(models):
    graph = models.scale(3.0)
    one = session(graph)
    x = np.array([[1, 2, 3, 4]], np.float32)
    answers = dict(zip("yz", one.run({"x": x}, ["y", "z"]), strict=True))
    bound = one.bind({"x": x}, answers)
    for factor in (1, -2):
        bound.views[0][:] = (factor * x).tobytes()
        bound.run()
        np.testing.assert_array_equal(bound.outputs, [factor * 3 * x, factor * -x])


def test_a_bound_output_whose_shape_depends_on_the_numbers_is_an_error_and_not_a_wrong_answer():
    one = session(HEAD + " g (float[N] x) => (int64[1,M] y) { y = NonZero (x) }")
    x = np.array([1, 0, 1], np.float32)
    bound = one.bind({"x": x}, {"y": one.run({"x": x}, ["y"])[0]})
    bound.views[0][:] = np.array([1, 1, 1], np.float32).tobytes()
    with pytest.raises(Exception, match="shape"):
        bound.run()


def test_an_input_that_is_an_output_as_it_is_is_not_bound_because_onnxruntime_would_not_write_it():
    one = session(HEAD + " g (float[2] x) => (float[2] x, float[2] y) { y = Neg (x) }")
    feeds = {"x": np.float32([1, 2])}
    answers = dict(zip("xy", one.run(feeds, ["x", "y"]), strict=True))
    assert answers["x"].tolist() == [1, 2]
    assert one.bind(feeds, answers) is None


def test_an_output_that_is_an_input_as_it_is_has_memory_of_its_own_beside_bfloat16():
    """The memory of the input is freed and used again before the answer is sent."""
    one = session(HEAD + " g (float[2] x, bfloat16[2] b) => (float[2] x, bfloat16[2] b, float[2] y) { y = Neg (x) }")
    feeds = {"x": np.float32([1, 2]), "b": np.uint16([3, 4])}
    answers = one.run(feeds, ["x", "b", "y"])
    for array in feeds.values():
        array[:] = 0
    assert [array.tolist() for array in answers] == [[1, 2], [3, 4], [-1, -2]]


@pytest.mark.parametrize("number", [TensorProto.BFLOAT16, TensorProto.STRING])
def test_what_numpy_has_no_numbers_for_is_not_bound(models, number):
    one = session(models.identity(number, [2]))
    x = np.zeros(2, np.uint16) if number == TensorProto.BFLOAT16 else np.array([b"a", b"b"], object)
    assert one.bind({"x": x}, {"y": x}) is None


def test_a_model_that_cannot_take_the_input_says_so_in_onnxruntimes_words():
    made = session(HEAD + " g (float[N,3,L] x, float[4,3,5] w) => (float[N,4,M] y) { y = Conv (x, w) }")
    feeds = {"x": np.zeros((1, 3, 2), np.float32), "w": np.zeros((4, 3, 5), np.float32)}
    with pytest.raises(InvalidRequest, match=r"^the model cannot take this input: Invalid input shape: \{2\}$"):
        made.run(feeds, ["y"])


@pytest.mark.parametrize(
    "graph",
    [
        HEAD + " g (float[N] x) => (float[N] y) { y = Nope (x) }",
        '<ir_version: 9, opset_import: ["": 99999]> g (float[N] x) => (float[N] y) { y = Relu (x) }',
    ],
)
def test_a_model_that_onnxruntime_refuses_is_a_load_error(graph):
    with pytest.raises(LoadError, match=r"^onnxruntime cannot load the model: \S") as caught:
        session(graph)
    assert "\n" not in str(caught.value)
    assert "/onnxruntime" not in str(caught.value)


def test_a_type_without_a_name_in_the_protocol_is_a_load_error(models):
    with pytest.raises(LoadError, match=r"'x' has the type tensor\(complex64\)|cannot load the model"):
        session(models.identity(TensorProto.COMPLEX64, ["N"]))


def test_damaged_files_are_load_errors_or_load(models):
    data = models.scale()
    random = np.random.default_rng(0)
    for _ in range(200):
        broken = bytearray(data)
        broken[random.integers(len(data))] ^= 1 << int(random.integers(8))
        with contextlib.suppress(LoadError):
            session(bytes(broken))


@pytest.fixture
def asked(monkeypatch):
    """The options of every onnxruntime session that is made."""
    found = []
    real = ort.InferenceSession

    def create(data, options, **rest):
        found.append(options)
        return real(data, options, **rest)

    monkeypatch.setattr(ort, "InferenceSession", create)
    return found


@pytest.mark.parametrize("level", ["all", "extended", "basic", "none"])
def test_settings_reach_the_session(models, asked, level):
    settings = SessionSettings(2, 2, parallel=True, graph_level=level, arena=False, memory_pattern=False)
    session(models.scale(), settings)
    session(models.scale(), SessionSettings(intra_op_spinning=True))
    options, spinning = asked
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 2)
    assert options.execution_mode.name == "ORT_PARALLEL"
    level_of = {"all": "ALL", "extended": "EXTENDED", "basic": "BASIC", "none": "DISABLE_ALL"}
    assert options.graph_optimization_level.name.endswith(level_of[level])
    assert options.enable_cpu_mem_arena is options.enable_mem_pattern is False
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert spinning.get_session_config_entry("session.intra_op.allow_spinning") == "1"
    assert spinning.get_session_config_entry("session.inter_op.allow_spinning") == "0"


def test_memory_is_given_back_where_the_settings_say_so(models, asked):
    made = session(models.scale(), SessionSettings(arena_shrinkage="cpu:0", device_allocator=True))
    x = np.ones((1, 4), np.float32)
    np.testing.assert_array_equal(made.run({"x": x}, ["z"])[0], -x)
    (options,) = asked
    assert options.get_session_config_entry("session.use_device_allocator_for_initializers") == "1"


@pytest.mark.parametrize(
    ("text", "arena", "there"),
    [
        ("zzz:9;", True, "the session on cpu has cpu:0"),
        ("gpu:0", True, "the session on cpu has cpu:0"),
        ("cpu:0;cpu:1", True, "the session on cpu has cpu:0"),
        ("cpu:0", False, "enable_mem_arena is 0"),
    ],
)
def test_an_arena_that_is_not_there_is_refused_at_the_load_and_not_at_each_run(models, text, arena, there):
    with pytest.raises(ConfigError, match=there):
        session(models.scale(), SessionSettings(arena_shrinkage=text, arena=arena))


@pytest.mark.skipif(allocated_bytes() is None, reason="the C library does not count its memory")
@pytest.mark.parametrize(("device", "arena"), [(CPU, True), (CPU, False), (Device("auto"), True)])
def test_a_run_whose_numbers_ask_for_more_than_there_is_ends_and_none_leaves_memory_behind(device, arena, monkeypatch):
    """Sixteen bytes asked for gigabytes and got them, and an idle server kept them."""
    monkeypatch.setattr(placement, "prepare", lambda *_: [CPU_PROVIDER])  # "auto" finds no GPU
    limit = resident_bytes() + (64 << 20)
    made = session(
        HEAD
        + """ zeros (float[1] x) => (float y) {
            n = Cast <to = 7> (x)
            z = ConstantOfShape (n)
            y = ReduceSum <keepdims = 0> (z)
        }""",
        SessionSettings(arena=arena, limit_bytes=limit),
        device,
    )
    few, many = ({"x": np.full(1, count, np.float32)} for count in (1 << 23, 1 << 30))
    made.run({"x": np.ones(1, np.float32)}, ["y"])
    before = allocated_bytes()
    for _ in range(2):
        assert made.run(few, ["y"])[0] == 0
        with pytest.raises(OutOfMemory, match="has not enough memory to run the model on this input"):
            made.run(many, ["y"])
    assert allocated_bytes() - before < 8 << 20


@pytest.mark.parametrize("wrong", [{"intra_op_threads": 0}, {"inter_op_threads": 0}, {"graph_level": "most"}])
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError, match=r"must be"):
        SessionSettings(**wrong)


@pytest.mark.parametrize(
    ("text", "device"),
    [("cpu", CPU), ("auto", Device("auto")), ("cuda", Device("cuda")), ("cuda:3", Device("cuda", 3))],
)
def test_devices_are_read(text, device):
    assert devices.parse_device(text) == device


@pytest.mark.parametrize("text", ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0"])
def test_other_devices_are_refused(text):
    with pytest.raises(StartError, match="use cpu, cuda, cuda:N"):
        devices.parse_device(text)


def test_providers_are_explicit():
    both = [CUDA_PROVIDER, CPU_PROVIDER]
    assert devices.providers(CPU, both) == [(CPU_PROVIDER, {})]
    ((name, options),) = devices.providers(Device("cuda", 2), both, {"use_tf32": "1"})
    assert (name, options["device_id"], options["use_tf32"]) == (CUDA_PROVIDER, "2", "1")
    assert options["cudnn_conv_algo_search"] == "HEURISTIC"
    assert [name for name, _ in devices.providers(Device("auto"), both)] == both
    assert devices.providers(Device("auto"), [CPU_PROVIDER]) == [(CPU_PROVIDER, {})]
    with pytest.raises(DeviceUnavailable, match="built without CUDA"):
        devices.providers(Device("cuda"), [CPU_PROVIDER])


class FakeSession:
    def __init__(self, *got: str) -> None:
        self.got = got

    def get_providers(self):
        return list(self.got)

    def get_provider_options(self):
        return {CUDA_PROVIDER: {"device_id": "1"}}


def test_a_session_that_fell_back_is_found_out():
    assert devices.check_provider(Device("cuda", 1), FakeSession(CUDA_PROVIDER, CPU_PROVIDER)) == "cuda:1"
    assert devices.check_provider(Device("auto"), FakeSession(CPU_PROVIDER)) == "cpu"
    with pytest.raises(DeviceUnavailable, match="fell back to CPUExecutionProvider"):
        devices.check_provider(Device("cuda"), FakeSession(CPU_PROVIDER))


@pytest.mark.skipif(allocated_bytes() is None, reason="the C library does not count its memory")
def test_the_first_run_in_the_arena_with_a_limit_leaves_no_memory_there_either():
    zeros = " g (int64[1] n) => (float y) { z = ConstantOfShape (n) y = ReduceSum <keepdims = 0> (z) }"
    made = session(HEAD + zeros, SessionSettings(limit_bytes=resident_bytes() + (512 << 20)))
    before = allocated_bytes()
    assert made.run({"n": np.array([1 << 25])}, ["y"])[0] == 0
    assert allocated_bytes() - before < 8 << 20
    assert limited_arena._smallest.get_session_options().intra_op_num_threads == 1  # it keeps no threads of its own


@pytest.mark.parametrize("got", [(CPU_PROVIDER,), (CUDA_PROVIDER, CPU_PROVIDER)])
def test_a_session_that_fell_back_is_made_again_for_the_arena_with_a_limit(fake, fake_session, monkeypatch, got):
    monkeypatch.setattr(limited_arena, "make", lambda limit: None)
    asked = fake(fake_session(providers=got))
    graph = HEAD + " g (float[N] x, int64[M] shape) => (float[A] y) { y = Expand (x, shape) }"
    session(graph, SessionSettings(limit_bytes=resident_bytes() + (64 << 20)), Device("auto"))
    assert [[name for name, _ in providers] for _, providers, _ in asked][1:] == [[CPU_PROVIDER]] * (len(got) == 1)
    if len(got) == 1:
        assert asked[1][0].get_session_config_entry("session.use_env_allocators") == "1"


def test_a_session_that_fell_back_is_gone_before_it_is_made_again(fake, fake_session, monkeypatch):
    monkeypatch.setattr(limited_arena, "make", lambda limit: None)
    fake(None)
    made, alive = [], []

    def create(*args, **settings):
        alive.append([one() for one in made if one() is not None])
        one = fake_session(providers=(CPU_PROVIDER,))
        made.append(weakref.ref(one))
        return one

    monkeypatch.setattr(ort, "InferenceSession", create)
    graph = HEAD + " g (float[N] x, int64[M] shape) => (float[A] y) { y = Expand (x, shape) }"
    session(graph, SessionSettings(limit_bytes=1 << 30), Device("auto"))
    assert alive == [[], []]


@pytest.mark.parametrize(
    ("installed", "words"),
    [
        ([], r"pip install 'normfold\[cpu\]'"),
        (["onnxruntime 1.0", "onnxruntime-gpu 1.0"], "pip uninstall -y onnxruntime"),
    ],
)
def test_no_onnxruntime_or_two_is_an_error_with_the_command_that_mends_it(monkeypatch, installed, words):
    monkeypatch.setattr(devices, "installed_runtimes", lambda: installed)
    with pytest.raises(RuntimeMissing, match=words):
        devices.check_runtime()


def test_the_installed_onnxruntime_is_found():
    assert len(devices.installed_runtimes()) == 1
    devices.check_runtime()


def _cgroup(tmp_path, own: str, files: dict[str, str]):
    for name, content in files.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    (tmp_path / "own").write_text(own, encoding="utf-8")
    return tmp_path / "root", tmp_path / "own"


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "max 100000"}, None),
        ("0::/\n", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b\n", {"a/cpu.max": "50000 100000", "a/b/cpu.max": "max 100000"}, 0.5),
        ("0::/a/b\n", {"a/cpu.max": "400000 100000", "a/b/cpu.max": "200000 100000"}, 2.0),
        ("4:cpu,cpuacct:/x\n", {"cpu/x/cpu.cfs_quota_us": "200000", "cpu/x/cpu.cfs_period_us": "100000"}, 2.0),
        ("4:cpu,cpuacct:/x\n", {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"}, None),
        ("5:memory:/x\n", {"cpu/x/cpu.cfs_quota_us": "200000", "cpu/x/cpu.cfs_period_us": "100000"}, None),
        ("0::/\n", {"cpu.max": "garbage"}, None),
        ("", {}, None),
    ],
)
def test_the_cpu_quota_of_the_cgroup_is_read(tmp_path, own, files, quota):
    assert cgroup_quota(*_cgroup(tmp_path, own, files)) == quota


def test_cpus_are_bounded_by_the_quota_and_at_least_one(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert available_cpus(*_cgroup(tmp_path, "0::/\n", {"cpu.max": "100000 100000"})) == 1
    assert available_cpus(*_cgroup(tmp_path, "0::/\n", {"cpu.max": "250000 100000"})) == 3
    assert available_cpus(*_cgroup(tmp_path, "0::/\n", {"cpu.max": "max 100000"})) == 16
    assert available_cpus(*_cgroup(tmp_path, "0::/\n", {"cpu.max": "1000 100000"})) == 1
