"""How a worker answers its client from what all workers have answered."""

from __future__ import annotations

import pytest

from normfold.protos import grpc_service as pb
from normfold.serving.errors import Unavailable
from normfold.serving.rpc.methods import Method
from normfold.serving.workers.messages import AllAnswered, WorkerAnswer
from normfold.serving.workers.worker_link import WorkerLink

INDEX = Method("/inference.GRPCInferenceService/RepositoryIndex", pb.RepositoryIndexRequest, unary=lambda request: None)


def test_a_worker_whose_own_answer_took_too_long_says_so():
    index = pb.RepositoryIndexResponse(models=[pb.RepositoryIndexResponse.ModelIndex(name="m")]).SerializeToString()
    with pytest.raises(Unavailable, match="RepositoryIndex takes too long, as it does while a disk hangs"):
        WorkerLink(1, None)._one_answer(INDEX, AllAnswered(0, (WorkerAnswer(2, "", "", index),), ()))
    one = AllAnswered(0, (WorkerAnswer(2, "", "", index), WorkerAnswer(1, "", "", index)), ())
    assert WorkerLink(1, None)._one_answer(INDEX, one) == index
