"""LitServe with one model, its default JSON over HTTP, and its batching. ``litserve_app.py PORT MODEL.onnx``."""

import sys

import litserve
import numpy as np
from session import session


class Tiny(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.session = session(sys.argv[2])

    def decode_request(self, request: dict[str, list[list[list[float]]]]) -> np.ndarray:
        return np.asarray(request["x"], np.float32)

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.session.run(None, {"x": x})[0]

    def encode_response(self, y: np.ndarray) -> dict[str, list[list[float]]]:
        return {"y": y.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Tiny(), accelerator="cpu", workers_per_device=1)
    server.run(port=int(sys.argv[1]), host="127.0.0.1", generate_client_file=False, log_level="warning")
