"""How a worker answers its client from what all workers have answered."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from normfold.protos import grpc_service as pb
from normfold.protos import metrics as mx
from normfold.serving.catalog.entry import Entry, Version
from normfold.serving.catalog.following import Following
from normfold.serving.catalog.served import ServedModel
from normfold.serving.catalog.stage import Stage
from normfold.serving.errors import LoadHindered, StartError, Unavailable
from normfold.serving.infer.shared_memory import SharedMemory
from normfold.serving.infer.tracing import TraceSettings
from normfold.serving.process.logs import LogSettings
from normfold.serving.remote.store import RemoteError
from normfold.serving.rpc.methods import LOOP_BYTES, Method
from normfold.serving.rpc.traffic import Traffic
from normfold.serving.scheduling.statistics import Statistics
from normfold.serving.service.administration import Administration
from normfold.serving.service.snapshot import Snapshots
from normfold.serving.workers.exchange import Exchange
from normfold.serving.workers.messages import (
    AllAnswered,
    CountersChanged,
    Looked,
    LookNow,
    Perform,
    Performed,
    RestoreCounters,
    Serve,
    StartListening,
    WorkerAnswer,
)
from normfold.serving.workers.worker_link import WorkerLink

SERVICE = "/inference.GRPCInferenceService"
INDEX = Method(f"{SERVICE}/RepositoryIndex", pb.RepositoryIndexRequest, unary=lambda request: None)


def test_a_worker_whose_own_answer_took_too_long_says_so():
    index = pb.RepositoryIndexResponse(models=[pb.RepositoryIndexResponse.ModelIndex(name="m")]).SerializeToString()
    with pytest.raises(Unavailable, match="RepositoryIndex takes too long, as it does while a disk hangs"):
        WorkerLink(1, None)._one_answer(INDEX, AllAnswered(0, (WorkerAnswer(2, "", "", index),), ()))
    one = AllAnswered(0, (WorkerAnswer(2, "", "", index), WorkerAnswer(1, "", "", index)), ())
    assert WorkerLink(1, None)._one_answer(INDEX, one) == index


@pytest.mark.parametrize(("service", "lines"), [("normfold.Repository", 0), (SERVICE[1:], 1)])
def test_a_load_that_fails_in_one_worker_is_said_by_polling_alone(caplog, service, lines):
    """Each new try wrote a line beside the one of polling, which has each failure once."""
    load = Method(f"/{service}/RepositoryModelLoad", pb.RepositoryModelLoadRequest, unary=lambda request: None)
    answers = (WorkerAnswer(1, "", "", b""), WorkerAnswer(2, "LoadHindered", "no memory", b""))
    with pytest.raises(LoadHindered, match=r"no memory \(in worker 2\)"):
        WorkerLink(1, None)._one_answer(load, AllAnswered(0, answers, ()))
    assert len(caplog.records) == lines


class Worker:
    """A worker with the procedures that administer a server, and what the supervisor knows of it."""

    def __init__(self, number: int, exchange: Exchange, model_control: bool) -> None:
        self.number, self.served, self.left, self.ready, self.server_ready = number, (), False, True, True
        self.failed_starts, self.beside_others = 0, False
        self.listening = asyncio.get_running_loop().create_future()
        self.link, self._exchange = self, exchange
        self._inbox: asyncio.Queue = asyncio.Queue()
        self._performing: list[asyncio.Future] = []
        following = SimpleNamespace(end=lambda _: {}, follow=lambda _: None)
        nothing = {"changed": lambda: None, "hear": lambda *_: None}
        self.catalog = SimpleNamespace(entries={}, following=following, others=SimpleNamespace(ready=True), **nothing)
        self.traces, self.logs = TraceSettings(None), LogSettings("info")
        own = Administration(
            self.catalog,
            regions=SharedMemory(True),
            traces=self.traces,
            logs=self.logs,
            model_control=model_control,
        )
        others = WorkerLink(
            number, SimpleNamespace(send=lambda message: exchange.handle(self, message), receive=self._inbox.get)
        )
        self.methods = {method.name: method for method in others.share(own.methods())}
        self.may_listen = others.listen
        snapshots = SimpleNamespace(failed_calls=list)
        self.attending = asyncio.create_task(others.attend(self.catalog, snapshots, lambda unlike: None, None))

    async def ask(self, method: str, request):
        data = await self.methods[method].wire_unary(request.SerializeToString())
        return getattr(pb, f"{method}Response").FromString(data)

    # what the supervisor does with it

    def send(self, message) -> None:
        if isinstance(message, StartListening):
            self.listening.set_result(True)
        self._inbox.put_nowait(message)

    def perform(self, method: str, request: bytes) -> asyncio.Future:
        self._performing.append(asyncio.get_running_loop().create_future())
        self._inbox.put_nowait(Perform(len(self._performing) - 1, method, request))
        return self._performing[-1]

    def performed(self, message: Performed) -> None:
        self._performing[message.number].set_result(message.answer)


def play(model_control: bool, scenario) -> None:
    async def run() -> None:
        exchange = Exchange(2)
        workers = [Worker(number, exchange, model_control) for number in (1, 2)]
        for worker in workers:
            await exchange.join(worker)
            await worker.may_listen.wait()
        await asyncio.wait_for(scenario(exchange, *workers), 20)
        for worker in workers:
            worker.send(None)
            await worker.attending

    asyncio.run(run())


def trace_rate(value: str) -> pb.TraceSettingRequest:
    request = pb.TraceSettingRequest()
    request.settings["trace_rate"].value.append(value)
    return request


def rates(*workers: Worker) -> list[list[str]]:
    return [worker.traces.update("", {})["trace_rate"] for worker in workers]


def test_a_setting_that_one_worker_is_asked_to_change_changes_in_all():
    async def scenario(exchange, one, two):
        await one.ask("TraceSetting", trace_rate("7"))
        assert rates(one, two) == [["7"], ["7"]]
        assert len(exchange._journal.changes()) == 1

    play(True, scenario)


@pytest.mark.parametrize("large", [True, False])
def test_a_client_that_leaves_holds_its_large_request_as_long_as_the_workers_do(large):
    async def scenario(exchange, one, two):
        begun, goes_on = asyncio.Event(), asyncio.Event()

        async def load(*_) -> None:
            begun.set()
            await goes_on.wait()

        one.catalog.load = two.catalog.load = load
        request = pb.RepositoryModelLoadRequest(model_name="m")
        if large:
            request.parameters["file:1/model.onnx"].bytes_param = bytes(LOOP_BYTES)
        asked = asyncio.ensure_future(one.ask("RepositoryModelLoad", request))
        await begun.wait()
        asked.cancel()
        await one.ask("TraceSetting", trace_rate("7"))  # many turns of the event loop
        assert asked.done() != large
        goes_on.set()
        with pytest.raises(asyncio.CancelledError):
            await asked

    play(True, scenario)


def test_without_model_control_no_worker_changes_a_setting_and_none_that_comes_later():
    async def scenario(exchange, one, two):
        verbose = pb.LogSettingsRequest()
        verbose.settings["log_verbose_level"].uint32_param = 1
        before = one.logs.read()
        for worker in (one, two):
            for method, request in (("TraceSetting", trace_rate("7")), ("LogSettings", verbose)):
                with pytest.raises(Unavailable, match="changing settings of the log and of traces is not allowed"):
                    await worker.ask(method, request)
        assert rates(one, two) == [["1000"], ["1000"]]
        assert one.logs.read() == two.logs.read() == before
        assert exchange._journal.changes() == []
        read = await two.ask("LogSettings", pb.LogSettingsRequest())  # everybody may read
        assert read.settings["log_verbose_level"].uint32_param == 0
        assert (await two.ask("TraceSetting", pb.TraceSettingRequest())).settings["trace_rate"].value == ["1000"]

    play(False, scenario)


@pytest.mark.parametrize("must_have_all", [False, True])
def test_a_worker_knows_what_is_lost_and_whether_it_may_listen_without_it(must_have_all):
    messages = iter([Serve((ServedModel("m", (1,), b"", ""),)), StartListening(must_have_all), None])

    async def receive():
        return next(messages)

    async def run():
        link = WorkerLink(2, SimpleNamespace(receive=receive))
        catalog = SimpleNamespace(following=Following(), entries={}, changed=lambda: None)
        await link.attend(catalog, None, lambda unlike: None, None)
        assert link.listen.is_set()
        return link.lost, link.must_have_all

    lost = {"m": "'m' version 1, which the other workers serve, cannot be loaded"}
    assert asyncio.run(run()) == (lost, must_have_all)


def test_a_worker_reports_a_look_that_it_was_asked_for_when_the_look_is_over():
    messages, sent, asked = iter([LookNow(3), None]), [], []

    async def receive():
        return next(messages)

    async def run():
        link = WorkerLink(2, SimpleNamespace(receive=receive, send=sent.append))
        await link.attend(None, None, None, asked.append)

    asyncio.run(run())
    assert sent == []
    asked[0]()
    assert sent == [Looked(3)]


def test_an_error_of_a_class_of_another_room_keeps_its_sentence_and_its_status():
    sent = []

    async def load(request):
        raise RemoteError("s3://models: the credentials may not list or read it")

    async def run():
        link = WorkerLink(2, SimpleNamespace(send=sent.append))
        link.report_counters = lambda catalog, snapshots: None
        method = Method(
            "/inference.GRPCInferenceService/RepositoryModelLoad", pb.RepositoryModelLoadRequest, unary=load
        )
        link.share([method])
        await link._perform(Perform(1, method.path, b""), None, None)
        link._one_answer(method, AllAnswered(0, (sent[0].answer,), ()))

    with pytest.raises(StartError, match="the credentials may not list") as caught:
        asyncio.run(run())
    assert caught.value.status == RemoteError.status


def counted(requests: int) -> Version:
    """A version 1 of a model m that has answered this many requests."""
    statistics = Statistics()
    statistics.success.count = requests
    return Version("", SimpleNamespace(name="m", version=1, statistics=statistics))


def answered(counters: bytes) -> list[int]:
    return [one.statistics.inference_stats.success.count for one in mx.SnapshotResponse.FromString(counters).models]


def reports(entry: Entry) -> tuple[WorkerLink, SimpleNamespace, Snapshots, list[CountersChanged]]:
    sent: list[CountersChanged] = []
    catalog = SimpleNamespace(entries={"m": entry})
    return WorkerLink(1, SimpleNamespace(send=sent.append)), catalog, Snapshots(catalog, Traffic(), 1), sent


def test_the_counters_of_a_version_that_is_unloaded_do_not_come_back_with_a_new_worker():
    """The supervisor gave them to the next process, also when the model had been loaded again and counted from 0."""
    entry = Entry(versions={1: counted(5)})
    link, catalog, snapshots, sent = reports(entry)
    link.report_counters(catalog, snapshots)
    entry.versions = {1: Version("unloaded")}
    link.report_counters(catalog, snapshots)
    link.report_counters(catalog, snapshots)
    entry.versions = {1: counted(2)}
    link.report_counters(catalog, snapshots)
    assert [(each.model, each.version, answered(each.counters)) for each in sent] == [
        ("m", "1", [5]),
        ("m", "1", []),
        ("m", "1", [2]),
    ]


@pytest.mark.parametrize(
    ("entry", "kept"),
    [
        (Entry(), []),
        (Entry(versions={1: counted(1)}), [4]),
        (Entry(Stage.ASLEEP, present=(1,)), [3]),
    ],
    ids=["unloaded meanwhile", "in service", "lazy"],
)
def test_a_predecessor_s_counters_are_kept_for_what_is_still_there_alone(entry, kept):
    link, catalog, snapshots, sent = reports(entry)
    before = counted(3).model.statistics.snapshot("m", "1")

    async def restore() -> None:
        messages = iter([RestoreCounters((mx.SnapshotResponse(models=[before]).SerializeToString(),)), None])

        async def receive() -> RestoreCounters | None:
            return next(messages)

        link._link.receive = receive
        await link.attend(catalog, snapshots, None, None)

    asyncio.run(restore())
    assert [(each.model, each.version, answered(each.counters)) for each in sent] == [("m", "1", kept)]
