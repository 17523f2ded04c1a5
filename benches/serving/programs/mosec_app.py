"""mosec with one model, raw bytes over HTTP, its batching. ``mosec_app.py --port PORT``, NORMFOLD_BENCH_MODEL set."""

import os

import numpy as np
from mosec import Server, Worker
from session import session


class Tiny(Worker):
    def __init__(self) -> None:
        self.session = session(os.environ["NORMFOLD_BENCH_MODEL"])

    def deserialize(self, data: bytes) -> np.ndarray:
        return np.frombuffer(data, np.float32).reshape(1, 1, 32)

    def serialize(self, data: np.ndarray) -> bytes:
        return data.tobytes()

    def forward(self, data: list[np.ndarray]) -> list[np.ndarray]:
        return list(self.session.run(None, {"x": np.concatenate(data)})[0])


if __name__ == "__main__":
    server = Server()
    server.append_worker(Tiny, num=1, max_batch_size=64, max_wait_time=1)  # ms; 0 would mean 10
    server.run()
