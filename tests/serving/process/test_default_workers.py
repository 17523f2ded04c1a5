"""The number of workers where nobody sets it."""

from __future__ import annotations

import pytest

from normfold.serving.process import cpus
from normfold.serving.process.cpus import default_workers


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (2, 2), (4, 4), (64, 4)])
def test_there_is_one_for_each_cpu_but_few(monkeypatch, count, expected):
    monkeypatch.setattr(cpus, "available_cpus", lambda: count)
    assert default_workers("cpu", "127.0.0.1:8001") == expected


@pytest.mark.parametrize(
    ("device", "listen"), [("cuda", "127.0.0.1:8001"), ("auto", "127.0.0.1:8001"), ("cpu", "unix:/run/s")]
)
def test_there_is_one_where_several_could_not_share(monkeypatch, device, listen):
    monkeypatch.setattr(cpus, "available_cpus", lambda: 8)
    assert default_workers(device, listen) == 1
