"""What the supervisor passes on: loads of several models at once, and all of it to workers that start meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from normfold.protos import health as hp
from normfold.protos import metrics as mx
from normfold.serving.catalog.served import ServedModel
from normfold.serving.rpc.methods import Method
from normfold.serving.service import http
from normfold.serving.workers import exchange as exchanges
from normfold.serving.workers.exchange import MOST_UNLIKE_LOADS, Exchange
from normfold.serving.workers.messages import (
    AllAnswered,
    AskAll,
    Failing,
    InService,
    Looked,
    LookForChanges,
    LookNow,
    ModelsReady,
    Remember,
    Serve,
    ServerReady,
    StartListening,
    WorkerAnswer,
)

LOAD = "/inference.GRPCInferenceService/RepositoryModelLoad"
UNLOAD = "/inference.GRPCInferenceService/RepositoryModelUnload"
V1, V2 = ServedModel("m", (1,), b"c", ""), ServedModel("m", (2,), b"c", "")
NONE = ServedModel("m", (), b"", "no")
LAZY = ServedModel("m", (1, 2), b"", "", lazy=True)
LAZY_FAILED = ServedModel("m", (1, 2), b"", "", lazy=True, refused=((2, "no"),), failing=(0, 2))


class Worker:
    """A worker that carries out a request when the test says so."""

    def __init__(self, number, served=()):
        self.number, self.served, self.left, self.ready, self.server_ready = number, served, False, True, False
        self.failed_starts, self.beside_others = 0, False
        self.listening = asyncio.get_running_loop().create_future()
        self.asked: list[tuple[bytes, asyncio.Future]] = []
        self.sent, self.link = [], self

    def perform(self, method, request):
        self.asked.append((request, asyncio.get_running_loop().create_future()))
        return self.asked[-1][1]

    def send(self, message):
        self.sent.append(message)
        if isinstance(message, StartListening) and not self.listening.done():
            self.listening.set_result(True)

    def gone(self):
        self.left = True

    def answer(self, request, error="", details=""):
        for asked, future in self.asked:
            if asked == request and not future.done():
                future.set_result(WorkerAnswer(self.number, error, details, b""))
                return
        raise AssertionError(f"{request!r} was not asked")


def load(number, model, request):
    return AskAll(number, LOAD, request, True, (Remember(("model", model), request),))


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


def play(scenario):
    async def run():
        exchange = Exchange(2)
        one, two = Worker(1, (V1,)), Worker(2, (V1,))
        for worker in (one, two):
            assert await exchange.join(worker)
        await asyncio.wait_for(scenario(exchange, one, two), 20)

    asyncio.run(run())


def test_a_load_without_end_does_not_delay_the_loads_of_other_models():
    async def scenario(exchange, one, two):
        exchange.handle(one, load(1, "m", b"m"))
        exchange.handle(one, load(2, "n", b"n"))
        exchange.handle(two, load(3, "m", b"m again"))
        exchange.handle(two, AskAll(4, "/LogSettings", b"log", True, (Remember(("log", "x"), b"log"),)))
        await settle()
        assert {request for request, _ in one.asked} == {b"m", b"n", b"log"}
        for worker in (one, two):
            worker.answer(b"n")
            worker.answer(b"log")
        await settle()
        assert {message.number for message in (*one.sent, *two.sent) if hasattr(message, "number")} == {2, 4}
        for worker in (one, two):
            worker.answer(b"m")
        await settle()
        assert one.asked[-1][0] == b"m again"

    play(scenario)


def test_nothing_is_kept_of_the_unload_of_a_model_that_no_worker_knows():
    async def scenario(exchange, one, two):
        for number, model in enumerate(("m", "nowhere"), 1):
            request = model.encode()
            exchange.handle(one, AskAll(number, UNLOAD, request, True, (Remember(("model", model), request),)))
            await settle()
            for worker in (one, two):
                worker.answer(request)
            await settle()
        assert [change.data for change in exchange._journal.changes()] == [b"m"]
        assert not exchange._order_of

    play(scenario)


@pytest.mark.parametrize(
    ("before", "kept"),
    [(NONE, [b"load"]), (LAZY, [b"unload"]), (LAZY_FAILED, [b"load"]), (V1, [b"unload"])],
    ids=["stands in", "lazy", "stands in for a lazy one", "goes on"],
)
def test_a_load_that_failed_is_kept_where_a_lower_version_stands_in(before, kept):
    """A worker that started later carried out the unload before it, and then lacked what the others served."""

    async def scenario(exchange, one, two):
        exchange.handle(one, AskAll(1, UNLOAD, b"unload", True, (Remember(("model", "m"), b"unload"),)))
        await settle()
        for worker in (one, two):
            worker.answer(b"unload")
        await settle()
        for worker in (one, two):
            exchange.handle(worker, InService((before,)))
        exchange.handle(one, load(2, "m", b"load"))
        await settle()
        for worker in (one, two):
            exchange.handle(worker, InService((V1,)))
            worker.answer(b"load", "LoadRefused")
        await settle()
        assert [change.data for change in exchange._journal.changes()] == kept
        assert [len(one.asked), len(two.asked)] == [2, 2]

    play(scenario)


def test_a_worker_that_joins_during_a_load_carries_it_out_too():
    async def scenario(exchange, one, two):
        exchange.handle(one, load(1, "m", b"m"))
        await settle()
        exchange.leave(two)
        two.asked[0][1].set_result(None)
        late = Worker(2)
        assert await exchange.join(late)
        assert not late.asked
        one.answer(b"m")
        await settle()
        late.answer(b"m")
        await settle()
        assert [message.number for message in one.sent if hasattr(message, "number")] == [1]

    play(scenario)


@pytest.mark.parametrize("loads", [2, 9])
@pytest.mark.parametrize("file", ["model", "configuration"])
def test_workers_that_have_read_different_files_load_again(loads, file):
    """``loads``: the first after which they have read the same files."""

    def read(content):
        written, digest = (b"c", content) if file == "model" else (content.encode(), "d")
        return InService((ServedModel("m", (1,), written, "", digests=(digest,)),))

    async def scenario(exchange, one, two):
        exchange.handle(one, load(1, "m", b"m"))
        answered: list[AllAnswered] = []
        done = 0
        while not answered:
            await settle()
            done += 1
            exchange.handle(one, read(f"of load {done}"))
            exchange.handle(two, read(f"of load {done}" if done >= loads else "older"))
            for worker in (one, two):
                worker.answer(b"m")
            await settle()
            answered = [message for message in one.sent if isinstance(message, AllAnswered)]
        assert done == min(loads, 1 + MOST_UNLIKE_LOADS)
        assert {answer.error for answer in answered[0].answers} == ({""} if loads == done else {"Unavailable"})

    play(scenario)


def test_workers_of_which_none_serves_a_model_are_alike_whatever_configuration_they_had():
    """A worker that started after the model was unloaded has none: unloading it once more was refused."""

    async def scenario(exchange, one, two):
        for worker, written in ((one, b"c"), (two, b"")):
            exchange.handle(worker, InService((ServedModel("m", (), written, "", wanted=False),)))
        exchange.handle(one, load(1, "m", b"m"))
        await settle()
        for worker in (one, two):
            worker.answer(b"m")
        await settle()
        (answered,) = [message for message in one.sent if isinstance(message, AllAnswered)]
        assert [answer.error for answer in answered.answers] == ["", ""]

    play(scenario)


def test_a_worker_that_could_not_load_what_others_did_tries_once_more(caplog):
    """Each new try of a server that polls wrote a line more."""

    async def scenario(exchange, one, two):
        exchange.handle(one, load(1, "m", b"m"))
        await settle()
        two.answer(b"m", "LoadRefused")
        one.answer(b"m")
        await settle()
        assert [len(one.asked), len(two.asked)] == [1, 2]
        two.answer(b"m")
        await settle()
        (answered,) = [message for message in one.sent if isinstance(message, AllAnswered)]
        assert [answer.error for answer in answered.answers] == ["", ""]

        exchange.handle(one, load(2, "m", b"m"))  # what none can is refused at once, and what fails twice then
        await settle()
        for worker in (one, two):
            worker.answer(b"m", "LoadRefused")
        await settle()
        assert [len(one.asked), len(two.asked)] == [2, 3]
        exchange.handle(one, load(3, "m", b"m"))
        await settle()
        one.answer(b"m")
        two.answer(b"m", "LoadRefused")
        await settle()
        two.answer(b"m", "LoadRefused")
        await settle()
        last = [message for message in one.sent if isinstance(message, AllAnswered)][-1]
        assert (last.number, [answer.error for answer in last.answers]) == (3, ["", "LoadRefused"])

    play(scenario)
    assert not caplog.text


def test_workers_with_a_lower_version_try_once_more_where_one_that_joined_meanwhile_could_load():
    """They went on with the lower version, and the new one had the higher."""

    async def scenario(exchange, one, two):
        exchange.leave(two)
        exchange.handle(one, InService((NONE,)))
        exchange.handle(one, load(1, "m", b"m"))
        await settle()
        late = Worker(2)
        assert await exchange.join(late)
        exchange.handle(one, InService((V1,)))
        one.answer(b"m", "LoadRefused")
        await settle()
        exchange.handle(late, InService((V2,)))
        late.answer(b"m")
        await settle()
        assert [len(one.asked), len(late.asked)] == [2, 1]
        exchange.handle(one, InService((V2,)))
        one.answer(b"m")
        await settle()
        (answered,) = [message for message in one.sent if isinstance(message, AllAnswered)]
        assert [answer.error for answer in answered.answers] == ["", ""]

    play(scenario)


def test_a_worker_that_joins_in_the_place_of_one_that_has_answered_carries_a_load_out_too():
    async def scenario(exchange, one, two):
        exchange.handle(one, load(1, "m", b"m"))
        await settle()
        two.answer(b"m")
        exchange.leave(two)
        late = Worker(2)
        assert await exchange.join(late)
        one.answer(b"m")
        await settle()
        late.answer(b"m")
        await settle()
        (answered,) = [message for message in one.sent if isinstance(message, AllAnswered)]
        assert [answer.worker for answer in answered.answers] == [1, 2]

    play(scenario)


def test_a_worker_knows_before_it_listens_that_the_server_is_ready():
    async def scenario(exchange, one, two):
        assert [one.sent.count(ServerReady(True)), two.sent.count(ServerReady(True))] == [1, 1]
        exchange.leave(two)
        late = Worker(2)
        assert await exchange.join(late)
        assert late.sent.index(ServerReady(True)) < late.sent.index(StartListening(must_have_all=True))
        assert late.sent.count(ServerReady(True)) == 1

    play(scenario)


@pytest.mark.parametrize("failing", [(0, 1, 2), (2,), (0,), ()])
def test_all_workers_know_which_models_one_cannot_load(failing):
    """A model was ready through the workers that had it in memory, and not through the others."""

    async def scenario(exchange, one, two):
        def told(worker):
            return [message for message in worker.sent if isinstance(message, Failing)]

        exchange.handle(two, InService((ServedModel("m", (1,), b"", "", lazy=True, failing=failing),)))
        expected = [Failing(()), Failing((("m", failing),))] if failing else [Failing(())]
        assert told(one) == told(two) == expected
        exchange.leave(one)
        one = Worker(1)
        assert await exchange.join(one)
        assert told(one) == expected[-1:]
        exchange.handle(two, InService((ServedModel("m", (1,), b"", "", lazy=True),)))
        assert told(one) == told(two)[-2:] == ([*expected[1:], Failing(())] if failing else [Failing(())])

    play(scenario)


def test_all_try_a_model_again_that_one_has_loaded_after_all_and_not_one_that_it_will_only_try_again():
    """Of a model that none could load, each new try in one worker brought new tries in the others, and these again."""

    async def scenario(exchange, one, two):
        for recoveries, failing in ((0, (0,)), (0, ()), (0, (0,)), (1, ()), (1, (0,)), (1, ())):
            model = ServedModel("m", (1,), b"", "", lazy=True, failing=failing, recoveries=recoveries)
            exchange.handle(two, InService((model,)))
        loaded = [message.loaded for message in one.sent if isinstance(message, Failing)]
        assert loaded[-6:] == [(), (), (), ("m",), (), ()]

    play(scenario)


def test_the_worker_that_cannot_load_a_model_is_gone():
    async def scenario(exchange, one, two):
        exchange.handle(two, InService((ServedModel("m", (1,), b"", "no", lazy=True, failing=(0,)),)))
        exchange.leave(two)
        assert [message for message in one.sent if isinstance(message, Failing)][-1] == Failing(())

    play(scenario)


def test_a_worker_that_does_not_listen_yet_says_nothing_about_the_server():
    async def scenario(exchange, one, two):
        exchange.leave(two)
        late = Worker(2, (V2,))
        late.ready = False
        late.listening = asyncio.get_running_loop().create_future()
        late.link = type("Deaf", (), {"send": lambda self, message: late.sent.append(message)})()
        joining = asyncio.create_task(exchange.join(late))
        await settle()
        assert exchange.ready
        assert exchange.serve == Serve((V1,))
        exchange.handle(one, ModelsReady(False))
        assert not exchange.ready
        late.listening.set_result(False)
        exchange.leave(late)
        await joining

    play(scenario)


def test_a_worker_listens_without_what_is_lost_when_no_other_does_and_it_was_refused_before():
    async def scenario(exchange, one, two):
        exchange.leave(one)
        exchange.leave(two)
        for number, failed_starts in ((1, 0), (2, 0), (1, 1), (2, 1), (1, 2), (2, 2)):
            late = Worker(number)
            late.failed_starts = failed_starts
            assert await exchange.join(late)
            first_to_listen = (number, failed_starts) == (1, 2)
            assert StartListening(must_have_all=not first_to_listen) in late.sent
            if failed_starts < 2:  # it was refused
                exchange.leave(late)

    play(scenario)


def test_no_worker_begins_to_look_while_the_server_stops():
    async def scenario(exchange, one, two):
        assert [one.sent.count(LookForChanges()), two.sent.count(LookForChanges())] == [1, 0]
        exchange.stopping = True
        exchange.leave(one)
        assert LookForChanges() not in two.sent

    play(scenario)


def test_a_worker_that_is_asked_to_look_and_ends_before_it_has_looked_leaves_it_to_the_next():
    async def scenario(exchange, one, two):
        exchange.look_now()
        exchange.look_now()
        exchange.handle(one, Looked(1))
        assert [one.sent.count(LookNow(1)), one.sent.count(LookNow(2))] == [1, 1]
        exchange.leave(one)
        assert two.sent[-2:] == [LookForChanges(), LookNow(2)]
        exchange.handle(two, Looked(2))
        assert await exchange.join(Worker(1))
        exchange.leave(two)
        assert exchange.looking.sent.count(LookForChanges()) == 1
        assert not any(isinstance(message, LookNow) for message in exchange.looking.sent)

    play(scenario)


@pytest.mark.parametrize(
    ("reports", "unlike"),
    [
        ((V1, V1), ()),
        ((V1, V2), ("m",)),
        ((V1, NONE), ("m",)),
        ((V1, ServedModel("m", (1,), b"other", "")), ("m",)),
        ((V1, None), ("m",)),
        ((NONE, ServedModel("m", (), b"c", "another reason")), ()),
    ],
)
def test_models_that_changed_while_the_workers_started_are_loaded_again_by_all(reports, unlike):
    """One worker answered with the old version for ever, the other with the new one."""

    async def scenario():
        exchange, workers = Exchange(2), []
        for number, report in enumerate(reports, 1):
            workers.append(Worker(number, () if report is None else (report,)))
            assert await exchange.join(workers[-1])
        looks = [message for worker in workers for message in worker.sent if isinstance(message, LookForChanges)]
        assert looks == [LookForChanges(unlike)]
        exchange.leave(workers[0])
        assert LookForChanges() in workers[1].sent

    asyncio.run(scenario())


def test_a_model_that_a_client_loads_while_the_last_worker_starts_is_left_as_the_client_wants_it():
    """A load from the repository after it took back the version, or the configuration, that the client had chosen."""

    async def scenario():
        exchange = Exchange(2)
        one, two = Worker(1, (V1,)), Worker(2, (V2,))
        assert await exchange.join(one)
        exchange.handle(one, load(1, "m", b"m"))
        await settle()
        assert await exchange.join(two)
        assert [message for message in one.sent if isinstance(message, LookForChanges)] == [LookForChanges()]
        one.answer(b"m")
        await settle()
        exchange.handle(two, InService((V1,)))
        two.answer(b"m")
        await settle()
        assert [message.number for message in one.sent if isinstance(message, AllAnswered)] == [1]

    asyncio.run(scenario())


def test_before_the_server_was_complete_no_worker_ends_it_for_a_model_that_is_lost():
    async def run():
        exchange = Exchange(2)
        one = Worker(1, (V1,))
        assert await exchange.join(one)
        exchange.leave(one)
        late = Worker(1)
        assert await exchange.join(late)
        assert StartListening(must_have_all=False) in late.sent

    asyncio.run(run())


def test_a_worker_is_compared_with_the_others_once_the_server_was_complete():
    """Before that, one that read the repository a moment later would end the start of the server."""

    async def run():
        exchange = Exchange(2)
        one, two = Worker(1, (V1,)), Worker(2, (V2,))
        for worker in (one, two):
            assert await exchange.join(worker)
            assert not any(isinstance(message, Serve) for message in worker.sent)
            assert StartListening(must_have_all=False) in worker.sent
        exchange.leave(two)
        late = Worker(2)
        assert await exchange.join(late)
        assert [message for message in late.sent if isinstance(message, Serve)] == [Serve((V1,))]
        assert StartListening(must_have_all=True) in late.sent

    asyncio.run(run())


def test_a_change_during_the_catching_up_of_a_worker_is_caught_up_with_too():
    async def scenario(exchange, one, two):
        exchange.handle(one, load(1, "m", b"first"))
        await settle()
        one.answer(b"first")
        two.answer(b"first")
        await settle()
        exchange.leave(two)
        late = Worker(2)
        joining = asyncio.create_task(exchange.join(late))
        exchange.handle(one, load(2, "n", b"second"))
        await settle()
        assert late.sent == [Serve((V1,))]
        exchange.handle(one, InService((V2,)))
        one.answer(b"second")
        await settle()
        late.answer(b"first")
        await settle()
        assert late.sent[-1] == Serve((V2,))
        late.answer(b"second")
        assert await joining

    play(scenario)


def test_a_load_that_fails_again_in_a_worker_that_starts_later_is_not_said_to_be_lacking(caplog):
    """The load had failed in the others, too, and had left a lower version in service."""

    async def scenario(exchange, one, two):
        exchange.handle(one, load(1, "m", b"m"))
        await settle()
        one.answer(b"m")
        two.answer(b"m")
        await settle()
        exchange.leave(two)
        late = Worker(2)
        joining = asyncio.create_task(exchange.join(late))
        await settle()
        late.answer(b"m", "LoadRefused", "version 2 is broken")
        assert await joining

    play(scenario)
    assert [record.getMessage() for record in caplog.records] == [
        f"worker 2 could not repeat {LOAD}: version 2 is broken"
    ]


def test_a_worker_that_starts_later_gets_what_the_others_serve():
    async def scenario(exchange, one, two):
        assert exchange.serve == Serve((V1,))
        exchange.handle(two, InService((NONE,)))
        assert exchange.serve == Serve((V1,))
        exchange.handle(one, InService((ServedModel("m", (1, 2), b"c", ""),)))
        exchange.handle(two, InService((V2,)))
        assert exchange.serve == Serve((ServedModel("m", (1, 2), b"c", ""),))
        exchange.handle(one, InService((V2,)))
        exchange.handle(two, InService((ServedModel("m", (1, 2), b"c", ""),)))
        assert exchange.serve == Serve((ServedModel("m", (1, 2), b"c", ""),))
        exchange.leave(two)
        exchange.handle(one, InService((NONE,)))
        exchange.leave(one)
        assert exchange.serve == Serve((NONE,))

    play(scenario)
    assert Exchange(1).serve == Serve(None)


def test_a_worker_that_starts_later_gets_the_reason_of_a_model_that_one_of_the_others_could_not_load():
    """The index of all workers has the reason, too."""
    asleep, failed = ServedModel("m", (1,), b"", "", lazy=True), ServedModel("m", (1,), b"", "no", lazy=True)

    async def scenario(exchange, one, two):
        for first, second in ((asleep, failed), (failed, asleep)):
            exchange.handle(one, InService((first,)))
            exchange.handle(two, InService((second,)))
            assert exchange.serve == Serve((failed,))

    play(scenario)


def test_while_no_worker_listens_the_contents_of_the_files_are_left_to_the_disk():
    read = ServedModel("m", (1,), b"c", "", digests=("d",))

    async def scenario(exchange, one, two):
        for worker in (one, two):
            exchange.handle(worker, InService((read,)))
        exchange.leave(one)
        assert exchange.serve == Serve((read,))
        exchange.leave(two)
        assert exchange.serve == Serve((V1,))
        assert await exchange.join(Worker(1, (read,)))
        assert exchange.serve == Serve((read,))

    play(scenario)


class Healthy:
    async def check(self, request):
        return hp.HealthCheckResponse(status=hp.HealthCheckResponse.SERVING)


def test_the_http_port_waits_clearly_longer_than_the_question_that_it_asks():
    assert 2 * exchanges.QUESTION_SECONDS <= http.LOOP_SECONDS


def test_metrics_come_without_the_worker_that_hangs(monkeypatch):
    monkeypatch.setattr(exchanges, "QUESTION_SECONDS", 0.01)
    path = "/normfold.Metrics/Snapshot"
    process = mx.ProcessSnapshot(worker=1)
    counters = mx.SnapshotResponse(processes=[process]).SerializeToString()

    async def scenario(exchange, one, two):
        async def snapshot(data):
            exchange.handle(one, AskAll(1, path, data, False, ()))
            await settle()
            one.asked[0][1].set_result(WorkerAnswer(1, "", "", counters))
            while not (answered := [message for message in one.sent if isinstance(message, AllAnswered)]):
                await asyncio.sleep(0.001)
            (answer,) = answered[0].answers
            return answer.answer

        answers = http.HttpAnswers(None, Healthy(), Method(path, mx.SnapshotRequest, wire_unary=snapshot))
        answer = await asyncio.to_thread(answers.answer, "/metrics")
        assert answer.status == 200
        assert b'worker="1"' in answer.body
        assert two.asked
        assert not two.asked[0][1].done()

    play(scenario)


def test_an_index_waits_longer_for_the_workers_because_they_read_the_disk(monkeypatch):
    waits = []

    async def wait(calls, timeout):
        waits.append(timeout)

    monkeypatch.setattr(exchanges.asyncio, "wait", wait)

    async def scenario(exchange, one, two):
        for number, method in enumerate(("RepositoryIndex", "ModelStatistics")):
            exchange.handle(one, AskAll(number, f"/inference.GRPCInferenceService/{method}", b"", False, ()))
            await settle()

    play(scenario)
    assert waits == [exchanges.INDEX_SECONDS, exchanges.QUESTION_SECONDS]
