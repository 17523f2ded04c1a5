"""What is left of onnxruntime's errors: recorded from onnxruntime 1.32."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import parser

from normfold.serving.errors import LoadError, OutOfMemory
from normfold.serving.runtime.devices import Device
from normfold.serving.runtime.reasons import lacks_memory, reason
from normfold.serving.runtime.session import Session
from normfold.serving.runtime.settings import SessionSettings

SOURCE = "/onnxruntime_src/onnxruntime/core"
FAIL = "[ONNXRuntimeError] : 1 : FAIL : "
RUN = f"{FAIL}Non-zero status code returned while running Reshape node. Name:'' Status Message: "


@pytest.mark.parametrize(
    ("raised", "sentence"),
    [
        (
            f"{RUN}{SOURCE}/providers/cpu/tensor/reshape_helper.h:91 onnxruntime::ReshapeHelper::ReshapeHelper(const "
            "onnxruntime::TensorShape&, onnxruntime::TensorShapeVector&, bool) a == b was false. It cannot be\n",
            "It cannot be",
        ),
        (
            f"{RUN}{SOURCE}/framework/op_kernel.cc:87 virtual OrtValue* onnxruntime::OpKernelContext::OutputMLValue("
            "int, const onnxruntime::TensorShape&) [ONNXRuntimeError] : 1 : FAIL : tensor.cc:57 CalculateTensor"
            "StorageSize Tensor shape.Size() must be >= 0",
            "Tensor shape.Size() must be >= 0",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Exception during initialization: "
            f"{SOURCE}/optimizer/initializer.cc:51 onnxruntime::Initializer::Initializer(const onnx::TensorProto&, "
            "const std::filesystem::__cxx11::path&) [ONNXRuntimeError] : 1 : FAIL : tensorprotoutils.cc:1730 Validate "
            "Initializer 'w': raw_data size (3 bytes) does not match",
            "Exception during initialization: Initializer 'w': raw_data size (3 bytes) does not match",
        ),
        (
            f"{RUN}{SOURCE}/common/safeint.h:17 static void SafeIntExceptionHandler<onnxruntime::OnnxRuntimeException>"
            "::SafeIntOnOverflow() Integer overflow",
            "Integer overflow",
        ),
        (
            f"{SOURCE}/graph/model.cc:182 onnxruntime::Model::Model(onnx::ModelProto&&, const std::function<void(int)>&"
            ") const [with T = float] Unsupported model IR version: 99",
            "Unsupported model IR version: 99",
        ),
        ("[ONNXRuntimeError] : 1 : FAIL : Node () Op (Add) [ShapeInferenceError] No", None),
        ("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Invalid rank for input: w Got: 1 Expected: 2", None),
        (f"{SOURCE}/a.cc:3 no signature", "no signature"),
    ],
)
def test_a_sentence_without_numbers_files_and_signatures_is_left(raised, sentence):
    assert reason(Exception(raised)) == (sentence or raised.split(" : ", 3)[-1] if sentence is None else sentence)


def test_missing_memory_is_recognised():
    for text in (
        "std::bad_alloc",
        "x.cc:3 Failed to allocate memory for requested buffer of size 4",
        "CUDA out of memory",
    ):
        assert lacks_memory(Exception(text))
    assert lacks_memory(MemoryError())
    assert not lacks_memory(Exception("Invalid rank for input: memory"))


def session(graph):
    data = parser.parse_model('<ir_version: 9, opset_import: ["": 18]> ' + graph).SerializeToString()
    return Session(data, Device("cpu"), SessionSettings())


def test_a_run_without_enough_memory_is_no_mistake_of_the_caller():
    made = session("g (int64[M] n) => (float[A,B] y) { y = ConstantOfShape (n) }")
    with pytest.raises(OutOfMemory, match=r"^the server has not enough memory to run the model on this input$"):
        made.run({"n": np.array([10**7, 10**7])}, ["y"])
    assert made.run({"n": np.array([1, 2])}, ["y"])[0].shape == (1, 2)


def test_a_graph_without_enough_memory_says_so(fake, models):
    fake(RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception during initialization: std::bad_alloc"))
    with pytest.raises(LoadError, match="cannot load the model: it needs more memory than there is"):
        Session(models.scale(), Device("cpu"), SessionSettings())
