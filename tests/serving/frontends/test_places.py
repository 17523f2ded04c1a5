"""How many connections, and calls on them, clients may have."""

from __future__ import annotations

import threading

import pytest
from tests.serving.frontends.held import HELLO, connections, held
from tests.serving.frontends.raw import Raw
from tests.waiting import wait_until

from normfold.serving.frontends.http2.call_places import CallPlaces
from normfold.serving.frontends.http2.connection_places import ConnectionPlaces
from normfold.serving.frontends.http2.holding import Holding
from normfold.serving.frontends.http2.limits import CALL_BYTES, FEW_CALLS, ORDINARY_CALLS
from normfold.serving.frontends.limits import ClientLimits
from normfold.serving.process import loops
from normfold.serving.wire import http2_frames as h2


def test_a_new_connection_takes_the_place_of_one_without_calls(start):
    with start(limits=ClientLimits(max_connections=2)) as served:
        busy, idle = Raw(served.address), Raw(served.address)
        busy.ask(1, HELLO, "Wait")
        wait_until(lambda: served.methods.waiting == 1)
        assert idle.still_answers()
        third = Raw(served.address)
        assert third.still_answers()
        assert idle.ended_with() == h2.NO_ERROR
        third.ask(101, HELLO, "Wait")
        wait_until(lambda: served.methods.waiting == 2)
        assert Raw(served.address, greet=False).frame() is None
        assert len(connections(served)) == 2


@pytest.mark.parametrize("loop", [None, loops.factory()], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("busy", [False, True])
def test_connections_that_come_at_once_are_no_more_than_allowed(start, monkeypatch, loop, busy):
    # one wake-up of the loop accepts all of them, before it tells any connection that it is made
    monkeypatch.setattr(loops, "factory", lambda: loop)
    with start(limits=ClientLimits(max_connections=10)) as served:
        if busy:
            others = [Raw(served.address) for _ in range(10)]
            for other in others:
                other.ask(1, HELLO, "Wait")
            wait_until(lambda: served.methods.waiting == 10)
        most = []
        take = ConnectionPlaces.take
        monkeypatch.setattr(
            ConnectionPlaces, "take", lambda places, one: (take(places, one), most.append(len(places)))[0]
        )
        held, go_on = threading.Event(), threading.Event()
        served.loop.call_soon_threadsafe(lambda: (held.set(), go_on.wait(20)))
        assert held.wait(20)
        clients = [Raw(served.address, greet=False) for _ in range(100)]
        go_on.set()
        wait_until(lambda: len(most) == 100)
        assert max(most) == 10
        assert served.methods.waiting == (10 if busy else 0)
        for client in clients[: 100 if busy else 90]:
            assert client.ended_with() == -1
        if not busy:
            clients[-1].send(h2.PREFACE, h2.settings({}))
            assert clients[-1].still_answers()


@pytest.mark.parametrize("method", ["Each", "Iterate", "Echo"])
def test_calls_that_send_nothing_count_with_their_memory(served, method):
    client = Raw(served.address)
    streams = range(1, 200, 2)
    for stream in streams:
        client.ask(stream, None, method)
    wait_until(lambda: held(served) >= (len(streams) - FEW_CALLS) * CALL_BYTES)
    assert held(served) <= len(streams) * CALL_BYTES
    for stream in streams[10:]:
        client.send(h2.frame(h2.RST_STREAM, 0, stream, h2.CANCEL.to_bytes(4, "big")))
    wait_until(lambda: held(served) == FEW_CALLS * CALL_BYTES)
    assert len(connections(served)[0].calls) == 10
    client.socket.close()
    wait_until(lambda: held(served) == 0)


@pytest.mark.parametrize("limits", [ClientLimits(max_connection_bytes=1 << 20), ClientLimits(max_held_bytes=1 << 20)])
def test_calls_that_send_nothing_are_refused_for_another_try_beyond_the_limit(start, limits):
    with start(limits=limits) as served:
        client, most = Raw(served.address), (1 << 20) // CALL_BYTES + FEW_CALLS
        for stream in range(1, 2 * most + 100, 2):
            client.ask(stream, None, "Each")
        for refused in range(2 * most + 1, 2 * most + 100, 2):
            reset = client.until(h2.RST_STREAM)
            assert (reset.stream, int.from_bytes(reset.payload, "big")) == (refused, h2.REFUSED_STREAM)
        wait_until(lambda: len(connections(served)[0].calls) == most)  # a few are opened in each turn
        assert held(served) == 1 << 20
        assert Raw(served.address).still_answers()
        client.send(h2.frame(h2.DATA, h2.END_STREAM, 1, HELLO), h2.frame(h2.RST_STREAM, 0, 3, bytes(4)))
        assert client.still_answers(1001)


def test_ordinary_clients_have_places_for_their_calls_however_much_others_hold():
    of_all = Holding(1 << 20)
    of_all.add(1 << 20)
    holding = Holding(1 << 20, of_all)
    places = CallPlaces(holding)
    while places.more():
        assert places.most <= ORDINARY_CALLS
    assert places.most == ORDINARY_CALLS
    assert holding.bytes == (ORDINARY_CALLS - FEW_CALLS) * CALL_BYTES
    places.keep(0)
    assert (places.most, holding.bytes) == (FEW_CALLS, 0)


def test_a_long_trace_of_the_caller_is_not_kept(raw, served):
    raw.ask(1, None, "Each", traceparent="00-1-2-3", tracestate="s" * 512)
    raw.ask(3, None, "Each", traceparent="00-1-2-3", tracestate="s" * 513)
    raw.ask(5, None, "Each", traceparent="0" * 513, tracestate="s")
    raw.ask(7, None, "Each", traceparent="00-1-2-3", tracestate="a=" + "1" * 505 + ",b=2,c=3")
    wait_until(lambda: connections(served) and len(connections(served)[0].calls) == 4)
    traces = [call.trace_headers() for call in connections(served)[0].calls.values()]
    cut = {"traceparent": "00-1-2-3", "tracestate": "a=" + "1" * 505 + ",b=2"}
    assert traces == [{"traceparent": "00-1-2-3", "tracestate": "s" * 512}, {"traceparent": "00-1-2-3"}, {}, cut]
