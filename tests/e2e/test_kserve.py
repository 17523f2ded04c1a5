"""KServe's Python client, in an environment of its own, against the real server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KSERVE = "kserve==0.21.0"

SCRIPT = """
import asyncio, sys
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest

X = np.array([[1, 2, 3, 4], [4, 3, 2, 1]], np.float32)

async def main(address):
    client = InferenceGRPCClient(url=address)
    assert await client.is_server_ready()
    assert await client.is_server_live()
    assert await client.is_model_ready("m")
    assert not await client.is_model_ready("nope")
    x = InferInput("x", list(X.shape), "FP32")
    x.set_data_from_numpy(X, binary_data=True)
    answer = await client.infer(InferRequest(model_name="m", infer_inputs=[x], request_id="9"))
    assert (answer.id, answer.model_version) == ("9", "2"), answer
    np.testing.assert_array_equal(answer.outputs[0].as_numpy(), 3 * X)
    typed = InferInput("x", list(X.shape), "FP32", data=X.ravel().tolist())
    answer = await client.infer(InferRequest(model_name="m", infer_inputs=[typed]))
    np.testing.assert_array_equal(answer.outputs[1].as_numpy(), -X)
    text = InferInput("x", [1, 2], "BYTES")
    text.set_data_from_numpy(np.array([["a", "é"]], object), binary_data=True)
    answer = await client.infer(InferRequest(model_name="text", infer_inputs=[text]))
    assert [v.decode() if isinstance(v, bytes) else v for v in answer.outputs[0].as_numpy().ravel()] == ["a", "é"]
    try:
        await client.infer(InferRequest(model_name="nope", infer_inputs=[x]))
    except Exception as error:
        assert "Request for unknown model: 'nope' is not found" in str(error), error
    else:
        raise AssertionError("an unknown model was answered")

asyncio.run(main(sys.argv[1]))
print("PASS")
"""


@pytest.fixture(scope="module")
def python() -> str:
    """A Python with kserve: NORMFOLD_KSERVE_PYTHON, or that of .venv-kserve, which is made when it is missing."""
    named = os.environ.get("NORMFOLD_KSERVE_PYTHON")
    if named:
        return named
    folder = ROOT / ".venv-kserve"
    made = folder / "installed"
    if not made.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [
            str(folder / "bin" / "pip"),
            "install",
            "--quiet",
            "--no-compile",
            "--disable-pip-version-check",
            KSERVE,
        ]
        try:
            done = subprocess.run(install, capture_output=True, text=True, timeout=280, check=False)
        except subprocess.TimeoutExpired:
            pytest.skip(f"{KSERVE} could not be installed into {folder.name} within 280 s")
        if done.returncode:
            pytest.skip(f"{KSERVE} could not be installed into {folder.name}: {done.stderr.strip()[-300:]}")
        made.touch()
    return str(folder / "bin" / "python")


@pytest.mark.timeout(600)
def test_kserves_client_gets_the_same_numbers(python, address):
    done = subprocess.run([python, "-c", SCRIPT, address], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()[-4:]) == (0, "PASS"), done.stderr[-3000:]


@pytest.mark.parametrize(
    "imports",
    ["import kserve, normfold.protos.grpc_service as ours", "import normfold.protos.grpc_service as ours, kserve"],
)
@pytest.mark.timeout(600)
def test_kserve_imports_beside_ours_in_either_order(python, imports):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    script = f"{imports}; print(ours.ModelInferRequest(model_name='m').model_name)"
    done = subprocess.run(
        [python, "-c", script], capture_output=True, text=True, timeout=120, check=False, env=environment
    )
    assert (done.returncode, done.stdout.strip()) == (0, "m"), done.stderr[-3000:]
