"""An exception from the handler of a signal may end a call at any place: the client works on, in every thread.

Python runs such handlers at the beginning of a function and after a call of a function in C. A profile function sees
the same places, and may raise an exception there.
"""

from __future__ import annotations

import itertools
import random
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from normfold.serving.client.client import Client
from normfold.serving.client.transport import blocking, dialling, retries, sharing

from .peer import Peer, serving

#: Where an exception may come: our modules, and those of Python that they call.
_PLACES = (str(Path(blocking.__file__).parent), threading.__file__)


class Interrupt(BaseException):
    pass


def interrupted(act, step) -> bool:
    """Carry out ``act`` and raise an exception at ``step`` of the transport; whether it came so far."""
    steps = itertools.count()

    def look(frame, event, what) -> None:
        # Since Python 3.14 a signal may come between taking the lock of a ``with`` and its body. The lock is never
        # released then, in Python's own modules neither.
        if event == "c_return" and what.__name__ == "__enter__":
            return
        if event in ("call", "c_return") and frame.f_code.co_filename.startswith(_PLACES) and next(steps) == step:
            sys.setprofile(None)
            raise Interrupt

    try:
        sys.setprofile(look)
        act()
    except Interrupt:
        return True
    finally:
        sys.setprofile(None)
    return False


def answers(peer: Peer) -> None:
    if not peer.seen:
        peer.greet()
    while True:
        peer.answer(peer.request())


def at_every_step(once) -> None:
    """Call ``once(step)`` with 0, 1, … until no exception came."""
    assert next(step for step in itertools.count() if not once(step)) > 50


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """Threads look soon whether they must go on by themselves, and pauses are short."""
    for module in (blocking, sharing):
        monkeypatch.setattr(module, "WAKE_SECONDS", 0.05, raising=False)
    monkeypatch.setattr(retries, "FIRST_SECONDS", 0.01)


@pytest.mark.parametrize("connected", [False, True])
def test_a_call_that_is_interrupted_at_any_step_leaves_a_client_that_works_in_all_threads(connected):
    def once(step: int) -> bool:
        with Client(address) as client:
            if connected:
                assert client.is_live(5)
            came = interrupted(lambda: client.is_live(5), step)
            assert client.is_live(5)
            assert thread.submit(client.is_live, 5).result(30)
            return came

    with serving(answers) as address, ThreadPoolExecutor(1) as thread:
        at_every_step(once)


def test_whoever_leads_may_be_interrupted_at_any_step_and_another_thread_reads_its_own_answer():
    def once(step: int) -> bool:
        sent, over = threading.Event(), threading.Event()

        def handle(peer: Peer) -> None:
            """Answers ServerLive once ServerReady is asked, and that once ServerLive has ended."""
            peer.greet()
            held = []
            while True:
                number = peer.request()
                if peer.headers_of[number][":path"].endswith("ServerLive"):
                    held.append(number)
                    sent.set()
                else:
                    for one in held:
                        peer.answer(one)
                    over.wait(20)
                    peer.answer(number)

        def other() -> bool:
            sent.wait(20)
            return client.is_ready(5)

        with serving(handle) as address, Client(address) as client, ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(other)
            came = interrupted(lambda: client.is_live(5), step)
            sent.set()
            over.set()
            assert waiting.result(30)
        return came

    at_every_step(once)


def test_whoever_connects_may_be_interrupted_at_any_step_and_another_thread_connects_for_itself(monkeypatch):
    def once(step: int) -> bool:
        begun: list[bool] = []  # an Event could be interrupted, too

        def slow(*arguments):
            if threading.current_thread() is threading.main_thread():
                begun.append(True)
                while not client._calls._waiting:
                    time.sleep(0)
            return dialling.dial(*arguments)

        def other() -> bool:
            while not begun:
                time.sleep(0.001)
            return client.is_live(5)

        monkeypatch.setattr(sharing, "dial", slow)
        with Client(address) as client:
            waiting = thread.submit(other)
            came = interrupted(lambda: client.is_live(5), step)
            begun.append(True)
            assert waiting.result(30)
        return came

    with serving(answers) as address, ThreadPoolExecutor(1) as thread:
        at_every_step(once)


def test_a_pause_before_another_try_may_be_interrupted_at_any_step_and_the_client_can_still_be_closed():
    def handle(peer: Peer) -> None:
        peer.greet()
        peer.refuse(peer.request(), 14)
        answers(peer)

    def once(step: int) -> bool:
        client = Client(address)
        came = interrupted(lambda: client.is_live(5), step)
        assert thread.submit(client.close).result(30) is None
        return came

    with serving(handle) as address, ThreadPoolExecutor(1) as thread:
        at_every_step(once)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="a signal may leave a lock taken there, as said above")
def test_signals_at_random_times_leave_a_client_that_works():
    class Stop(Exception):
        pass

    def stop(*_) -> None:
        nonlocal armed
        if armed:  # a signal of the turn before may come late, where another thread has taken it
            armed = False
            raise Stop

    generator, stops, armed = random.Random(3), 0, False
    before = signal.signal(signal.SIGALRM, stop)
    try:
        with serving(answers) as address:
            for number in range(2500):
                if number % 10 == 0:
                    client = Client(address)
                try:
                    armed = True
                    signal.setitimer(signal.ITIMER_REAL, generator.uniform(1e-5, 1e-3))
                    assert client.is_live(5)
                    armed = False
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except Stop:
                    stops += 1
                    assert client.is_live(5)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert stops > 100
