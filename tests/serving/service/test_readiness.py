"""Readiness is what can be answered: Check, Watch, ServerReady, ModelReady and HTTP agree at every moment.

So does the index, until the server stops: then nothing is ready, and the index still says what is loaded.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normfold.protos import grpc_service as pb
from normfold.protos import health as hp
from normfold.serving.catalog.catalog import Catalog
from normfold.serving.catalog.load import LoadOptions
from normfold.serving.catalog.repository import Repository
from normfold.serving.errors import LoadError, NotFound, ServingError, StartError, Unavailable
from normfold.serving.infer.shared_memory import SharedMemory
from normfold.serving.infer.tracing import TraceSettings
from normfold.serving.process.logs import LogSettings
from normfold.serving.rpc.methods import Method
from normfold.serving.runtime.devices import Device
from normfold.serving.server import Server
from normfold.serving.service.administration import Administration
from normfold.serving.service.health import Health
from normfold.serving.service.http import HttpAnswers
from normfold.serving.service.service import InferenceService
from normfold.serving.settings import ServerConfig

S = grpc.StatusCode
SERVING, NOT_SERVING = hp.HealthCheckResponse.SERVING, hp.HealthCheckResponse.NOT_SERVING
UNKNOWN = hp.HealthCheckResponse.SERVICE_UNKNOWN
NAMES = ("a", "b", "c")


class World:
    """A catalog whose loads end when the test says so, and everything that reports its readiness."""

    def __init__(self, folder, executor, monkeypatch, strict):
        monkeypatch.setattr("normfold.serving.catalog.loader.load", self.load)
        options = LoadOptions(Device("cpu"), cpus=1, inline_seconds=1.0)
        self.catalog = Catalog(Repository(folder), options, executor, ("a", "b"))
        self.strict = strict
        regions, traces = SharedMemory(False), TraceSettings(None)
        self.service = InferenceService(self.catalog, regions=regions, traces=traces, strict_readiness=strict)
        logs = LogSettings("error")
        self.administration = Administration(self.catalog, regions=regions, traces=traces, logs=logs)
        self.health = Health(self.catalog, strict)
        self.gate, self.fails = threading.Semaphore(0), set()
        #: What should be in service, as this test counts it.
        self.wanted = {"a", "b"}
        self.watched = {}
        self.stopping = False

    def load(self, folder, written, version, *rest):
        """Stands for the load of one version: it waits, then succeeds or fails."""
        self.gate.acquire(timeout=30)
        if (folder.name, version) in self.fails:
            raise LoadError("broken")
        return SimpleNamespace(name=folder.name, version=version, describe=lambda: folder.name)

    def watch(self, name):
        async def watching():
            async for response in self.health.watch(hp.HealthCheckRequest(service=name)):
                self.watched[name] = response.status

        return asyncio.create_task(watching())

    async def http(self, path):
        """The status of an answer over HTTP, whose port asks this event loop from threads of its own."""
        snapshot = Method("/normfold.Metrics/Snapshot", pb.ServerReadyRequest, wire_unary=lambda data: data)
        answers = HttpAnswers(self.service, self.health, snapshot)
        return (await asyncio.to_thread(answers.answer, path)).status

    async def agree(self):
        """Ask all six, and compare their answers.

        A watcher needs two rounds of the loop to yield after a change. A load's thread may end in any round, also while
        the index is made, which reads the repository: so this waits until nothing has changed meanwhile.
        """
        seen = None
        while seen != (seen := [await self.check(name) for name in (*NAMES, "")]):
            rows = (await self.administration.repository_index(pb.RepositoryIndexRequest())).models
            http = {name: await self.http(f"/v2/models/{name}/ready") for name in NAMES}
            whole = await self.http("/v2/health/ready")
            for _ in range(3):
                await asyncio.sleep(0)
        answering = {row.name for row in rows if row.state == "READY"}
        for name in NAMES:
            ready = (await self.service.model_ready(pb.ModelReadyRequest(name=name))).ready
            assert ready == (name in answering and not self.stopping), (name, rows)
            assert http[name] == (200 if ready else 404 if await self.check(name) == UNKNOWN else 503)
            assert (await self.check(name) == SERVING) == ready
            assert self.watched[name] == await self.check(name)
        server = await self.server_ready()
        assert (await self.check("") == SERVING) == server
        assert whole == (200 if server else 503)
        assert self.watched[""] == await self.check("")
        loaded = self.catalog.started and (not self.strict or self.wanted <= answering)
        assert server == (loaded and not self.stopping)

    async def server_ready(self):
        try:
            return (await self.service.server_ready(pb.ServerReadyRequest())).ready
        except Unavailable:
            return False

    async def check(self, name):
        try:
            return (await self.health.check(hp.HealthCheckRequest(service=name))).status
        except NotFound:
            return UNKNOWN


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("readiness")
    for name in NAMES:
        for version in "12":
            (root / name / version).mkdir(parents=True)
            (root / name / version / "model.onnx").write_bytes(b"any")
    return root


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["load", "unload", "fail", "mend", "no config", "config"]),
        st.sampled_from(NAMES),
        st.integers(1, 2),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(strict=st.booleans(), broken=st.sets(st.tuples(st.sampled_from(NAMES), st.integers(1, 2))), steps=STEPS)
def test_all_six_agree_after_every_load_failure_and_unload_and_during_each_and_the_end(folder, strict, broken, steps):
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as executor:
        world = World(folder, executor, patch, strict)
        asyncio.run(_random_life(world, folder, broken, steps))


async def _random_life(world, folder, broken, steps):
    for name in NAMES:
        (folder / name / "config.pbtxt").write_text("version_policy { all {} }", encoding="utf-8")
    world.fails |= broken
    watchers = [world.watch(name) for name in (*NAMES, "")]
    await world.agree()
    await _carried_out(world, world.catalog.load_all())
    for kind, name, version in steps:
        if kind == "fail":
            world.fails.add((name, version))
        elif kind == "mend":
            world.fails.discard((name, version))
        elif kind == "unload":
            await world.catalog.unload(name, leave_out=True)
            world.wanted.discard(name)
        elif kind == "load":
            await _carried_out(world, world.catalog.load(name))
            if await world.check(name) == SERVING:
                world.wanted.add(name)
        else:
            text = "version_policy { all {} }" if kind == "config" else "version_policy {"
            (folder / name / "config.pbtxt").write_text(text, encoding="utf-8")
        await world.agree()
    rows = (await world.administration.repository_index(pb.RepositoryIndexRequest())).models
    assert "LOADING" not in {row.state for row in rows}
    world.catalog.leave()
    world.stopping = True
    await world.agree()
    await asyncio.wait_for(asyncio.gather(*watchers), 30)  # the end was their last answer


async def _carried_out(world, work):
    """Carry ``work`` out one version at a time; before each, all six must agree."""
    task = asyncio.create_task(work)
    try:
        while not task.done():
            await asyncio.sleep(0.001)
            await world.agree()
            world.gate.release()
            await asyncio.wait([task], timeout=0.01)
    except AssertionError:
        world.gate.release(100)  # no load waits any longer
        raise
    while world.gate.acquire(blocking=False):
        pass
    try:
        await task
    except ServingError:
        await world.agree()


def test_a_failed_new_version_leaves_the_server_ready_and_its_reason_in_the_index(serve, tmp_path, models, ask):
    models.write(tmp_path / "m", models.scale())
    with serve(tmp_path) as one:
        models.write(tmp_path / "m", b"broken", 2)
        with pytest.raises(grpc.RpcError):
            one.call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="m"))
        rows = one.call("RepositoryIndex", pb.RepositoryIndexRequest()).models
        assert [(row.version, row.state) for row in rows] == [("1", "READY"), ("2", "UNAVAILABLE")]
        assert "not an ONNX model" in rows[1].reason
        assert one.call("ServerReady", pb.ServerReadyRequest()).ready
        assert one.infer(ask("m")).model_version == "1"
        with pytest.raises(grpc.RpcError, match="version 2 is not at ready state: the file is not"):
            one.infer(ask("m", version="2"))


def test_versions_that_loaded_beside_a_failure_say_why_they_do_not_answer(serve, tmp_path, models):
    models.write(tmp_path / "m", models.scale(), config="version_policy { all {} }")
    with serve(tmp_path) as one:
        models.write(tmp_path / "m", models.scale(), 2)
        models.write(tmp_path / "m", b"broken", 3)
        with pytest.raises(grpc.RpcError):
            one.call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="m"))
        rows = {row.version: row for row in one.call("RepositoryIndex", pb.RepositoryIndexRequest()).models}
        assert (rows["1"].state, rows["2"].state) == ("READY", "UNAVAILABLE")
        assert rows["2"].reason == "not put in service, because version 3 failed to load"


@pytest.fixture
def slow(monkeypatch):
    """Loads wait for this gate."""
    from normfold.serving.catalog import loader

    gate, real = threading.Event(), loader.load
    monkeypatch.setattr(loader, "load", lambda *given: gate.wait(30) and real(*given))
    yield gate
    gate.set()


def test_while_a_further_model_loads_the_server_stays_ready(serve, tmp_path, models, slow):
    models.write(tmp_path / "m", models.scale())
    models.write(tmp_path / "n", models.scale())
    slow.set()
    with serve(tmp_path, load_models=("m",)) as one:
        slow.clear()
        asking = one.channel.unary_unary(
            "/inference.GRPCInferenceService/RepositoryModelLoad",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=pb.RepositoryModelLoadResponse.FromString,
        )
        loads = [asking.future(pb.RepositoryModelLoadRequest(model_name="n"), timeout=30)]
        for _ in range(200):
            rows = one.call("RepositoryIndex", pb.RepositoryIndexRequest()).models
            if "LOADING" in {row.state for row in rows if row.name == "n"}:
                break
            threading.Event().wait(0.05)
        else:
            pytest.fail("the load never began")
        loads.append(asking.future(pb.RepositoryModelLoadRequest(model_name="m"), timeout=30))
        assert one.call("ServerReady", pb.ServerReadyRequest()).ready
        assert one.call("ModelReady", pb.ModelReadyRequest(name="m")).ready
        assert not one.call("ModelReady", pb.ModelReadyRequest(name="n")).ready
        slow.set()
        for load in loads:
            load.result()
        assert one.call("ModelReady", pb.ModelReadyRequest(name="n")).ready


def test_a_model_that_is_still_loading_at_the_start_is_unavailable_and_never_unknown(tmp_path, models, ask, slow):
    for name in "mn":
        models.write(tmp_path / name, models.scale())
    with ThreadPoolExecutor(1) as executor:
        options = LoadOptions(Device("cpu"), cpus=1, inline_seconds=1.0)
        catalog = Catalog(Repository(tmp_path), options, executor)
        service = InferenceService(catalog, regions=SharedMemory(False), traces=TraceSettings(None))

        async def start():
            loading = asyncio.create_task(catalog.load_all())
            for wait in (0, 0.05):
                for name in "mn":
                    for version in ("", "1"):
                        with pytest.raises(ServingError, match="is not at ready state: it is still loading") as caught:
                            await service._inference.answer(ask(name, version).SerializeToString())
                        assert caught.value.status.name == "UNAVAILABLE"
                states = {(row.name, row.state) for row in catalog.index(False)}
                assert states == {("m", "LOADING"), ("n", "LOADING")}
                await asyncio.sleep(wait)
            slow.set()
            await loading
            assert catalog.find("n", "").version == 1

        asyncio.run(start())


def test_a_load_that_is_given_up_leaves_nothing_loading(tmp_path, models, slow):
    models.write(tmp_path / "m", models.scale())
    with ThreadPoolExecutor(1) as executor:
        catalog = Catalog(Repository(tmp_path), LoadOptions(Device("cpu"), cpus=1, inline_seconds=1.0), executor)

        async def give_up():
            await catalog.unload("m")
            loading = asyncio.create_task(catalog.load("m"))
            while not catalog.index(False):
                await asyncio.sleep(0.001)
            assert [row.state for row in catalog.index(False)] == ["LOADING"]
            loading.cancel()
            slow.set()  # the thread cannot be interrupted
            await asyncio.wait([loading])
            assert [row.state for row in catalog.index(False, ["m"])] == [""]
            await catalog.load("m")
            assert [row.state for row in catalog.index(False)] == ["READY"]

        asyncio.run(give_up())


def test_a_model_to_load_that_does_not_exist_is_an_error_at_the_start(tmp_path, models):
    models.write(tmp_path / "surnames", models.scale())
    models.write(tmp_path / "gunpoint", models.scale())
    config = ServerConfig(tmp_path, listen="127.0.0.1:0", load_models=("surname",))
    with pytest.raises(StartError, match=r"there is no model 'surname' to load; did you mean 'surnames'\?"):
        Server(config)
    config = ServerConfig(tmp_path, listen="127.0.0.1:0", load_models=("x",))
    with pytest.raises(StartError, match=r"there is no model 'x' to load; there are: 'gunpoint', 'surnames'"):
        Server(config)
