"""config.pbtxt: what is honoured, what is refused with which reason, what is noted, what is filled in."""

from __future__ import annotations

import pytest

from normfold.protos import grpc_service as pb
from normfold.protos import model_config as mc
from normfold.protos.datatypes import by_name
from normfold.serving.catalog import config
from normfold.serving.catalog.contract import TensorSpec, agree, reshaped
from normfold.serving.catalog.warmup import guesses
from normfold.serving.errors import ConfigError
from normfold.serving.runtime.settings import ModelTensor, SessionSettings
from normfold.serving.scheduling import batching

X = ModelTensor("x", by_name("FP32"), (-1, 4))
Y = ModelTensor("y", by_name("FP32"), (-1, 4))

REFUSED = {
    'name: "other"': "names the model 'other', but its folder is 'm': delete the line 'name: \"other\"' in it (the",
    'platform: "tensorrt_plan"': "platform 'tensorrt_plan' is not served",
    'backend: "python"': "backend 'python' is not served",
    'runtime: "libx.so"': "runtime 'libx.so' is not served",
    "max_batch_size: -1": "max_batch_size must be 0 or more",
    'default_model_filename: "../x.onnx"': "must be a plain file name",
    'default_model_filename: ".x"': "must be a plain file name",
    "sequence_batching {}": "sequence_batching is not supported",
    "ensemble_scheduling {}": "ensemble_scheduling is not supported",
    "model_transaction_policy { decoupled: true }": "decoupled is not supported",
    "batch_input { kind: BATCH_ELEMENT_COUNT }": "batch_input is not supported",
    "batch_output { kind: BATCH_SCATTER_WITH_INPUT_SHAPE }": "batch_output is not supported",
    'cc_model_filenames { key: "7.5" value: "m.onnx" }': "cc_model_filenames is not supported",
    'model_operations { op_library_filename: "evil.so" }': "model_operations is not supported",
    'model_repository_agents { agents { name: "checksum" } }': "model_repository_agents is not supported",
    "input { data_type: TYPE_FP32 dims: 4 }": "has no name",
    'input { name: "x" is_shape_tensor: true }': "is_shape_tensor of 'x' is not supported",
    'input { name: "x" is_non_linear_format_io: true }': "is_non_linear_format_io of 'x' is not supported",
    'input { name: "x" allow_ragged_batch: true }': "allow_ragged_batch of 'x' is not supported",
    'input { name: "x" dims: 0 }': "0 is not a size",
    'output { name: "y" dims: -2 }': "-2 is not a size",
    'input { name: "x" } input { name: "x" }': "'x' is described twice",
    "optimization { graph { level: 7 } }": "graph.level must be -1, 0, 1 or 2",
    'optimization { execution_accelerators { gpu_execution_accelerator { name: "auto_io" } } }': "there is 'tensorrt'",
    'optimization { execution_accelerators { cpu_execution_accelerator { name: "openvino" } } }': "'openvino'",
    "optimization { cuda { graphs: true graph_spec { batch_size: 1 } } }": "graph_spec is not supported",
    "instance_group { count: -1 }": "count must be 1 or more",
    'instance_group { profile: "1" }': "instance_group.profile is not supported",
    "instance_group { passive: true }": "instance_group.passive is not supported",
    'instance_group { host_policy: "h" }': "instance_group.host_policy is not supported",
    "instance_group { secondary_devices { device_id: 1 } }": "instance_group.secondary_devices is not supported",
    "instance_group { rate_limiter { priority: 1 } }": "instance_group.rate_limiter is not supported",
    "dynamic_batching {}": "dynamic_batching needs max_batch_size of 1 or more",
    "max_batch_size: 4 dynamic_batching { preferred_batch_size: 5 }": "preferred_batch_size 5 must lie between 1 and",
    "max_batch_size: 4 dynamic_batching { priority_levels: 2 }": "default_priority_level must lie between 1 and",
    "max_batch_size: 4 dynamic_batching { priority_queue_policy { key: 1 value {} } }": "levels go from 1 to",
    'parameters { key: "intra_op_thread_cuont" value { string_value: "1" } }': "did you mean 'intra_op_thread_count'?",
    'parameters { key: "zzz" value { string_value: "1" } }': "there are: intra_op_thread_count",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_be_honoured_is_refused_with_its_reason(text):
    with pytest.raises(ConfigError) as caught:
        config.check(config.parse(text), "m")
    assert REFUSED[text] in str(caught.value)


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ('metric_tags { key: "a" value: "b" }', "metric_tags has no effect"),
        ("model_metrics { metric_control {} }", "model_metrics has no effect"),
        ("optimization { priority: PRIORITY_MAX }", "optimization.priority has no effect"),
        ("optimization { eager_batching: true }", "optimization.eager_batching has no effect"),
        ("optimization { cuda { busy_wait_events: true } }", "optimization.cuda.busy_wait_events has no effect"),
        ("optimization { gather_kernel_buffer_threshold: 1 }", "gather_kernel_buffer_threshold has no effect"),
    ],
)
def test_a_hint_without_effect_is_noted(text, note):
    assert note in config.check(config.parse(text), "m")[0]


def test_what_triton_itself_writes_is_taken():
    text = """
    name: "m" platform: "onnxruntime_onnx" backend: "onnxruntime" max_batch_size: 8
    input { name: "x" data_type: TYPE_FP32 format: FORMAT_NONE dims: [ 4 ] }
    output [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] label_filename: "l" } ]
    instance_group [ { name: "m_0" count: 2 kind: KIND_CPU } ]
    default_model_filename: "model.onnx"
    optimization { input_pinned_memory { enable: true } output_pinned_memory { enable: true } }
    dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 100 preserve_ordering: true }
    """
    assert config.check(config.parse(text), "m") == []


@pytest.mark.parametrize(
    ("text", "words"),
    [("max_batch_size: x", "line 1:17"), ("\nmax_batch_sizes: 1", "line 2:1"), ("input {", "config.pbtxt, line 1:")],
)
def test_a_file_that_cannot_be_read_is_refused_with_line_and_column(text, words):
    with pytest.raises(ConfigError, match=words):
        config.parse(text)


@pytest.mark.parametrize(
    ("text", "json", "words"),
    [
        ('input { name: "x" data_type: 4294967295 }', '{"input": [{"data_type": 4294967295}]}', "4294967295"),
        ('input { data_type: -1 }', '{"input": [{"dataType": -1}]}', "data_type is -1, expected one of .*TYPE_FP32"),
        ('instance_group { kind: 77 }', '{"instanceGroup": [{"kind": 77}]}', "kind is 77, expected one of KIND_AUTO"),
        (
            'model_warmup { inputs { key: "x" value { data_type: 99 } } }',
            '{"modelWarmup": [{"inputs": {"x": {"dataType": 99}}}]}',
            "model_warmup.inputs.data_type is 99",
        ),
    ],
)  # fmt: skip
def test_a_number_that_names_nothing_is_refused_in_text_and_in_json(text, json, words):
    """make fuzz found both kinds: one ended the start of the server, the other the load with an error of ours."""
    with pytest.raises(ConfigError, match=words):
        config.parse(text)
    with pytest.raises(ConfigError, match=words if "expected" in words else "config"):
        config.parse_json(json)


def test_a_config_that_cannot_be_read_does_not_keep_the_server_from_its_other_models(serve, models, tmp_path, ask):
    models.write(tmp_path / "m", models.scale())
    models.write(tmp_path / "bad", models.scale(), config='input { name: "x" data_type: 4294967295 }')
    with serve(tmp_path) as one:
        assert one.infer(ask()).model_name == "m"


@pytest.mark.parametrize("value", ["dims: 4", "data_type: TYPE_INVALID dims: 4 zero_data: true"])
def test_a_warm_up_without_a_type_is_refused_by_its_name(serve, models, tmp_path, value):
    config_text = f'max_batch_size: 8 model_warmup {{ name: "w" inputs {{ key: "x" value {{ {value} }} }} }}'
    models.write(tmp_path / "odd", models.scale(), config=config_text)
    with serve(tmp_path, strict_readiness=False) as one:
        (row,) = one.call("RepositoryIndex", pb.RepositoryIndexRequest()).models
    assert "model_warmup 'w': 'x' [1, 4] is not" in row.reason


def test_a_file_with_a_size_of_zero_beside_one_without_end_is_loaded(serve, models, tmp_path, ask):
    """make fuzz found it: no array can be made of that shape, though it has no numbers."""
    text = f'<ir_version: 9, opset_import: ["": 18]> g (float[0,{2**63 - 1}] x) => (float[A,B] y) {{ y = Neg (x) }}'
    models.write(tmp_path / "m", models.scale())
    models.write(tmp_path / "odd", text)
    with serve(tmp_path) as one:
        assert one.infer(ask()).model_name == "m"
        assert [row.state for row in one.call("RepositoryIndex", pb.RepositoryIndexRequest()).models] == ["READY"] * 2


def test_json_takes_numbers_as_text_and_refuses_unknown_fields():
    assert config.parse_json('{"max_batch_size": "16"}').max_batch_size == 16
    for text in ('{"nope": 1}', "[", "3", '{"max_batch_size": "x"}', '{"a":' * 100):
        with pytest.raises(ConfigError):
            config.parse_json(text)


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        ("", [10]),
        ("version_policy { latest { num_versions: 2 } }", [3, 10]),
        ("version_policy { latest { num_versions: 9 } }", [1, 3, 10]),
        ("version_policy { latest {} }", [10]),
        ("version_policy { all {} }", [1, 3, 10]),
        ("version_policy { specific { versions: [1, 3, 7] } }", [1, 3]),
        ("version_policy { specific {} }", []),
    ],
)
def test_the_version_policy_picks_the_versions(policy, chosen):
    assert config.versions_in_service(config.parse(policy), [10, 1, 3]) == chosen


def _parameter(key: str, value: str) -> mc.ModelConfig:
    return config.parse(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}')


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (_parameter("intra_op_thread_count", "3"), {"intra_op_threads": 3}),
        (_parameter("intra_op_thread_count", "0"), {"intra_op_threads": 2}),
        (_parameter("inter_op_thread_count", "4"), {"inter_op_threads": 4}),
        (_parameter("execution_mode", "1"), {"parallel": True, "memory_pattern": False}),
        (_parameter("enable_mem_arena", "0"), {"arena": False}),
        (_parameter("enable_mem_pattern", "0"), {"memory_pattern": False}),
        (_parameter("memory.enable_memory_arena_shrinkage", "cpu:0"), {"arena_shrinkage": "cpu:0"}),
        (_parameter("session.use_device_allocator_for_initializers", "1"), {"device_allocator": True}),
        (_parameter("gpu_mem_limit", "100"), {"cuda_options": (("gpu_mem_limit", "100"),)}),
        (config.parse("optimization { graph { level: -1 } }"), {"graph_level": "basic"}),
        (config.parse("optimization { graph { level: 1 } }"), {"graph_level": "extended"}),
        (config.parse("optimization { graph { level: 2 } }"), {"graph_level": "none"}),
    ],
)
def test_the_backends_parameters_reach_the_session(text, expected):
    made = config.settings(text, SessionSettings(intra_op_threads=2))
    assert {name: getattr(made, name) for name in expected} == expected


@pytest.mark.parametrize("value", ["x", "-1", "2000", "", "²", "9" * 5000])
def test_a_parameter_that_is_no_number_is_refused(value):
    with pytest.raises(ConfigError, match="must be a number from 0 to 1024"):
        config.settings(_parameter("intra_op_thread_count", value), SessionSettings())


def test_without_a_config_everything_comes_from_the_file():
    full = config.complete(mc.ModelConfig(), "m", [X], [Y], instances=2)
    assert (full.name, full.max_batch_size, full.default_model_filename) == ("m", 0, "model.onnx")
    assert [(i.name, i.data_type, list(i.dims)) for i in full.input] == [("x", mc.TYPE_FP32, [-1, 4])]
    assert [(o.name, o.data_type, list(o.dims)) for o in full.output] == [("y", mc.TYPE_FP32, [-1, 4])]
    assert full.version_policy.latest.num_versions == 1
    assert (full.instance_group[0].name, full.instance_group[0].count) == ("m_0", 2)


def test_a_batch_size_takes_the_first_dimension_off():
    full = config.complete(config.parse("max_batch_size: 4 dynamic_batching {}"), "m", [X], [Y], 1)
    assert list(full.input[0].dims) == [4]
    assert list(full.dynamic_batching.preferred_batch_size) == [4]
    contract = agree(full, [X], [Y], {})
    assert contract.inputs["x"].shape == (-1, 4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('input { name: "w" data_type: TYPE_FP32 dims: [-1, 4] }', "config.pbtxt has input 'w'"),
        ('input { name: "x" data_type: TYPE_INT64 dims: [-1, 4] }', "says TYPE_INT64, the file has TYPE_FP32"),
        ('input { name: "x" data_type: TYPE_FP32 dims: [-1, 5] }', "says [-1, 5], the file has [-1, 4]"),
        ('input { name: "x" data_type: TYPE_FP32 dims: 4 }', "says [4], the file has [-1, 4]"),
        ('input { name: "x" data_type: TYPE_FP32 dims: [-1, -1] }', "says [-1, -1], the file has [-1, 4]"),
        ('max_batch_size: 4 input { name: "x" data_type: TYPE_FP32 dims: [-1, 4] }', "(batch first)"),
        ('input { name: "x" data_type: TYPE_FP32 dims: [-1, 4] optional: true }', "calls it optional"),
        (
            'input { name: "x" data_type: TYPE_FP32 dims: [-1, 8] reshape { shape: [-1, 4] } }',
            "dims [-1, 8] cannot be reshaped to [-1, 4]",
        ),
        ('output { name: "y" data_type: TYPE_FP32 dims: [-1, 5] }', "output 'y'"),
    ],
)
def test_a_config_that_contradicts_the_file_is_refused(text, words):
    full = config.complete(config.parse(text), "m", [X], [Y], 1)
    with pytest.raises(ConfigError) as caught:
        agree(full, [X], [Y], {})
    assert words in str(caught.value)


def test_a_fixed_batch_dimension_cannot_batch():
    fixed = ModelTensor("x", by_name("FP32"), (1, 4))
    full = config.complete(config.parse("max_batch_size: 4"), "m", [fixed], [Y], 1)
    with pytest.raises(ConfigError, match="does not start with a dynamic dimension"):
        agree(full, [fixed], [Y], {})


def test_an_input_with_a_default_is_optional_when_the_config_says_so():
    scale = ModelTensor("s", by_name("FP32"), (1,), optional=True)
    text = 'input { name: "x" } input { name: "s" optional: true }'
    contract = agree(config.complete(config.parse(text), "m", [X, scale], [Y], 1), [X, scale], [Y], {})
    assert contract.required == {"x"}
    assert list(contract.inputs) == ["x", "s"]


def test_a_config_may_narrow_what_the_file_leaves_open():
    text = 'input { name: "x" data_type: TYPE_FP32 dims: [3, 4] }'
    assert agree(config.complete(config.parse(text), "m", [X], [Y], 1), [X], [Y], {}).inputs["x"].shape == (3, 4)


def test_reshape_carries_open_sizes_over_in_order():
    assert reshaped((2, 5, 3), (-1, -1, 3), (-1, 3, -1)) == (2, 3, 5)
    assert reshaped((2, 1), (-1, 1), (-1,)) == (2,)


def test_a_file_without_ranks_takes_any_shape_until_the_config_says_one():
    free = ModelTensor("x", by_name("FP32"), None)
    contract = agree(config.complete(mc.ModelConfig(), "m", [free], [Y], 1), [free], [Y], {})
    assert contract.inputs["x"].fits((7, 7, 7))
    assert contract.inputs["x"].fits(())
    said = config.complete(config.parse('input { name: "x" data_type: TYPE_FP32 dims: 4 }'), "m", [free], [Y], 1)
    assert not agree(said, [free], [Y], {}).inputs["x"].fits((7, 7, 7))


def test_a_spec_reads_as_name_datatype_and_shape():
    assert str(TensorSpec("x", by_name("FP32"), (-1, 4))) == "x FP32[-1,4]"


def test_the_batching_policy_is_read_from_the_config():
    text = """
    max_batch_size: 16
    dynamic_batching {
      preferred_batch_size: [4, 8] max_queue_delay_microseconds: 100 priority_levels: 3 default_priority_level: 2
      default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 7 max_queue_size: 5 }
      priority_queue_policy { key: 1 value { allow_timeout_override: true } }
    }
    """
    policy = batching.read_policy(config.parse(text))
    assert (policy.max_rows, policy.preferred, policy.max_delay_us) == (16, {4, 8}, 100)
    assert (policy.levels, policy.default_level) == (3, 2)
    assert policy.default == batching.QueuePolicy(timeout_us=7, delay=True, max_size=5)
    assert policy.queue(1) == batching.QueuePolicy(allow_override=True)
    assert policy.queue(2) is policy.default
    assert batching.read_policy(config.parse("max_batch_size: 4")) == batching.BatchPolicy()


def test_an_output_that_the_file_lists_twice_is_one_output():
    full = config.complete(mc.ModelConfig(), "m", [X], [Y, Y], 1)
    assert [output.name for output in full.output] == ["y"]
    assert list(agree(full, [X], [Y, Y], {}).outputs) == ["y"]


def test_more_dimensions_than_arrays_have_are_refused():
    deep = ModelTensor("x", by_name("FP32"), (-1, *([1] * 100)))
    with pytest.raises(ConfigError, match="'x' has 101 dimensions; fewer than 64 can be served"):
        agree(config.complete(mc.ModelConfig(), "m", [deep], [Y], 1), [deep], [Y], {})
    said = config.parse('input { name: "x" data_type: TYPE_FP32 ' + "dims: 1 " * 70 + "}")
    any_rank = ModelTensor("x", by_name("FP32"), None)
    with pytest.raises(ConfigError, match="'x' has 70 dimensions"):
        agree(config.complete(said, "m", [any_rank], [Y], 1), [any_rank], [Y], {})


def test_guesses_hold_no_more_elements_than_memory():
    class Taken:
        inputs = (ModelTensor("x", by_name("FP32"), (-1, 1 << 40)),)

    assert list(guesses(Taken(), batched=True)) == []
