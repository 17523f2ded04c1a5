"""The messages of a model configuration, ``config.pbtxt``; `model_config.proto` says what each field means."""

from normfold.protos.pool import fill

fill(__name__, "model_config.proto")
