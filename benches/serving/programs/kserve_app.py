"""KServe's Python server with one model. ``kserve_app.py GRPC_PORT HTTP_PORT MODEL.onnx``."""

import sys

from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from session import session


class Tiny(Model):
    def __init__(self) -> None:
        super().__init__("tiny")
        self.session = session(sys.argv[3])
        self.ready = True

    def predict(self, payload: InferRequest, *_: object, **__: object) -> InferResponse:
        (y,) = self.session.run(None, {"x": payload.inputs[0].as_numpy()})
        output = InferOutput("y", list(y.shape), "FP32")
        output.set_data_from_numpy(y, binary_data=True)
        return InferResponse(response_id=payload.id, model_name="tiny", infer_outputs=[output], use_binary_outputs=True)


ModelServer(http_port=int(sys.argv[2]), grpc_port=int(sys.argv[1]), workers=1, enable_latency_logging=False).start(
    [Tiny()]
)
