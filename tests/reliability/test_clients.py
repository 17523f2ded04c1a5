"""Bad clients: the good ones lose nothing, and nothing of the bad ones stays."""

from __future__ import annotations

import pytest
from tests.reliability.clients import FLOODS, SLOW_AND_VANISHING, Harm, harmed
from tests.reliability.kills import surprises
from tests.reliability.servers import ServerProcess, serving, write_repository

from normfold.serving.frontends import FRONTENDS


@pytest.fixture(scope="module", params=FRONTENDS)
def served(tmp_path_factory, request):
    """A server, and the name of its frontend."""
    repository = write_repository(tmp_path_factory.mktemp("clients"))
    with serving(repository, "--frontend", request.param) as one:
        yield one, request.param


@pytest.mark.parametrize("kinds", [SLOW_AND_VANISHING, FLOODS], ids=["slow and vanishing", "floods"])
def test_bad_clients_cost_good_ones_nothing(
    served: tuple[ServerProcess, str], times: int, kinds: tuple[Harm, ...]
) -> None:
    server, frontend = served
    outcomes = harmed(server, kinds, times)
    assert (surprises(outcomes, frontend) if kinds is FLOODS else outcomes.lost) == []
    assert outcomes.right + len(outcomes.lost) == outcomes.sent
    assert outcomes.refused == outcomes.cut == 0
