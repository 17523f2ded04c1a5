"""Every procedure of every service has its right, so that a token opens nothing that nobody thought of."""

from __future__ import annotations

from pathlib import Path

import pytest

from normfold.protos import grpc_service, health, metrics, reflection_v1, reflection_v1alpha
from normfold.serving.access.scopes import RIGHTS, Scope
from normfold.serving.server import Server
from normfold.serving.settings import ServerConfig

FILES = (grpc_service, health, reflection_v1, reflection_v1alpha, metrics)


@pytest.fixture(scope="module")
def methods(repository: Path) -> dict[str, object]:
    """The methods of a whole server by their paths, as its frontend has them."""
    server = Server(ServerConfig(repository, frontend="http2", strict_readiness=False))
    return {path.decode(): method for path, method in server._frontend._service.requests._methods.items()}


def test_every_method_of_the_server_has_a_right_and_every_right_a_method(methods):
    assert set(RIGHTS) == set(methods)


def test_every_procedure_of_the_protocols_has_a_right():
    services = [one for file in FILES for one in file.DESCRIPTOR.services_by_name.values()]
    paths = {f"/{service.full_name}/{method.name}" for service in services for method in service.methods}
    assert len(services) == 5
    assert paths == set(RIGHTS)


@pytest.mark.parametrize("path", RIGHTS)
def test_the_fields_that_name_a_model_are_in_the_request(methods, path):
    fields = methods[path].request.DESCRIPTOR.fields_by_name
    assert set(RIGHTS[path].model or ()) <= set(fields)
    if RIGHTS[path].model is None:  # a request that concerns no model has no field for one
        assert not {"name", "model_name", "service"} & set(fields)


def test_what_changes_the_server_needs_admin_and_inference_infer():
    admin = {path.rpartition("/")[2] for path, right in RIGHTS.items() if right.scope is Scope.ADMIN}
    words = ("Load", "Unload", "Register", "Unregister", "Setting", "Settings")
    assert admin == {path.rpartition("/")[2] for path in RIGHTS if path.endswith(words)}
    infer = {path.rpartition("/")[2] for path, right in RIGHTS.items() if right.scope is Scope.INFER}
    assert infer == {"ModelInfer", "ModelStreamInfer"}


def test_health_is_the_only_service_that_may_be_open():
    opened = {path.rpartition("/")[2] for path, right in RIGHTS.items() if right.health}
    assert opened == {"Check", "Watch", "ServerLive", "ServerReady", "ModelReady"}
