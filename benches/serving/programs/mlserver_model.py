"""MLServer's runtime for one model; ``mlserver start`` finds it through the settings written beside it."""

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from session import session


class Tiny(MLModel):
    async def load(self) -> bool:
        assert self._settings.parameters is not None
        self.session = session(str(self._settings.parameters.uri))
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        (y,) = self.session.run(None, {"x": NumpyCodec.decode_input(payload.inputs[0])})
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", y)])
