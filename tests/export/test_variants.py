from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx.parser
import pytest

from normfold.export import variants
from normfold.export.variants import choose

INPUTS = {"x": np.ones((1, 4), np.float32)}


def identity(times: int = 1) -> bytes:
    body = "\n".join(f"v{i + 1} = Relu (v{i})" for i in range(times - 1))
    text = f"""<ir_version: 8, opset_import: ["" : 18]>
    g (float[N, 4] x) => (float[N, 4] y) {{ v0 = Relu (x) {body} y = Relu (v{times - 1}) }}"""
    return bytes(onnx.parser.parse_model(text).SerializeToString())


def chosen(monkeypatch: pytest.MonkeyPatch, *measured: Mapping[str, float]) -> str:
    """The form that is published where the measurements, in turn, give these medians."""
    results = iter(measured)
    monkeypatch.setattr(variants, "medians", lambda *a, **k: (dict(next(results)), 9))
    found, rounds = choose({name: identity() for name in measured[0]}, INPUTS)
    assert rounds == 9
    (published,) = [v for v in found if v.published]
    return published.name


def test_the_folded_graph_is_published_unless_another_is_clearly_faster_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    slower, near, faster = (
        {"unfolded": 2.0, "folded": 1.0},
        {"unfolded": 0.9, "folded": 1.0},
        {"unfolded": 0.5, "folded": 1.0},
    )
    assert chosen(monkeypatch, slower) == "folded"
    assert chosen(monkeypatch, near) == "folded"
    assert chosen(monkeypatch, faster, near) == "folded"
    assert chosen(monkeypatch, faster, faster) == "unfolded"


def test_a_form_for_a_target_needs_a_smaller_margin_and_the_fastest_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"unfolded": 2.0, "folded": 1.0, "lifted": 0.9, "other": 0.95}
    assert chosen(monkeypatch, times, times) == "lifted"
    assert chosen(monkeypatch, {**times, "lifted": 0.99, "other": 0.98}) == "folded"


def test_real_graphs_are_timed_in_turn() -> None:
    found, rounds = choose({"unfolded": identity(60), "folded": identity()}, INPUTS)
    assert rounds >= 9
    assert all(v.median_ms > 0 for v in found)
    assert [v.bytes for v in found] == [len(identity(60)), len(identity())]
