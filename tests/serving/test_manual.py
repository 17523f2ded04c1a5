"""docs/protocol.md speaks of everything that there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from normfold.protos import grpc_service, model_config
from normfold.serving.catalog import config
from normfold.serving.infer import parameters
from normfold.serving.process import logs

MANUAL = (Path(__file__).resolve().parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
METHODS = [method.name for method in grpc_service.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods]
FIELDS = [field.name for field in model_config.ModelConfig.DESCRIPTOR.fields]
REQUEST = [field.name for field in grpc_service.ModelInferRequest.DESCRIPTOR.fields]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_its_row(method):
    assert f"\n| {method} |" in MANUAL


@pytest.mark.parametrize("name", [*FIELDS, *REQUEST, *config.PARAMETERS, *parameters.KINDS, *logs._KINDS])
def test_every_field_and_parameter_is_named(name):
    assert f"`{name}" in MANUAL or f".{name}`" in MANUAL or f"{name}`" in MANUAL
