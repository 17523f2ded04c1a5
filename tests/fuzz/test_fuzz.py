"""The short form of the fuzz: always the same bytes."""

from __future__ import annotations

import random

import pytest
from tests.fuzz.files import fuzz_configs, fuzz_models
from tests.fuzz.frames import fuzz_frames
from tests.fuzz.grammar import Grammar
from tests.fuzz.messages import INFER, METHODS, bases, fuzz_messages
from tests.reliability.load import Load

from normfold.protos import grpc_service as pb
from normfold.serving.frontends import FRONTENDS


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_every_message_is_answered_right_or_cleanly_refused(servers, frontend):
    found = fuzz_messages(servers[frontend].address, 1000)
    assert found.faults == []
    assert found.counts["OK"] > 50
    assert found.counts["INVALID_ARGUMENT"] > 100


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_every_connection_ends_and_harms_no_other(servers, frontend):
    address = servers[frontend].address
    requests = [(INFER, message.SerializeToString(deterministic=True)) for message in bases()]
    with Load(address, clients=1, pause_seconds=0.02) as load:
        found = fuzz_frames(address, requests, 500)
    assert found.faults == []
    assert found.counts["answered 1"] > 10
    assert load.outcomes.lost == []
    assert load.outcomes.right == load.outcomes.sent


def test_every_file_is_loaded_or_refused_with_a_sentence(servers, repository):
    address = servers[FRONTENDS[0]].address
    with Load(address, clients=1, pause_seconds=0.02) as load:
        models, configs = fuzz_models(address, 250), fuzz_configs(address, repository, 250)
    tried = fuzz_models(servers[FRONTENDS[1]].address, 12)
    assert models.faults == configs.faults == tried.faults == []
    assert min(models.counts["loaded"], models.counts["refused"], configs.counts["loaded"]) > 10
    assert load.outcomes.lost == []
    assert load.outcomes.right == load.outcomes.sent


def test_a_seed_gives_the_same_bytes_again():
    def drawn() -> list[bytes]:
        grammar = Grammar(random.Random(7))
        kinds = [grammar.draw(kind) for kind in METHODS.values()]
        kinds += [grammar.changed(message) for message in bases()]
        return [grammar.broken(message.SerializeToString(deterministic=True)) for message in kinds]

    assert drawn() == drawn()


def test_every_field_of_a_request_is_drawn_at_times():
    grammar = Grammar(random.Random(1))
    seen = {field.name for _ in range(200) for field, _ in grammar.draw(pb.ModelInferRequest).ListFields()}
    assert seen == {field.name for field in pb.ModelInferRequest.DESCRIPTOR.fields}
