"""Bad clients: the good ones lose nothing, and nothing of the bad ones stays."""

from __future__ import annotations

import pytest
from tests.reliability.clients import FLOODS, SLOW_AND_VANISHING, Harm, harmed
from tests.reliability.servers import ServerProcess, serving, write_repository

from normfold.serving.frontends import FRONTENDS


@pytest.fixture(scope="module", params=FRONTENDS)
def server(tmp_path_factory, request):
    repository = write_repository(tmp_path_factory.mktemp("clients"))
    with serving(repository, "--frontend", request.param) as one:
        yield one


@pytest.mark.parametrize("kinds", [SLOW_AND_VANISHING, FLOODS], ids=["slow and vanishing", "floods"])
def test_bad_clients_cost_good_ones_nothing(server: ServerProcess, times: int, kinds: tuple[Harm, ...]) -> None:
    outcomes = harmed(server, kinds, times)
    assert outcomes.lost == []
    assert outcomes.right == outcomes.sent
    assert outcomes.refused == outcomes.cut == 0
